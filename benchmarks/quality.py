"""Whether training here is training as PyTorch does it: the same weights, data and order through both, loss by loss.

Example: python -m benchmarks.quality --warm-up 200 --lr 0.005 --steps 150 --figure quality.png

A network without dropout learns the drawn shapes on both sides, PyTorch's in float32 on the CPU. Two right programs do
not stay together for ever: training amplifies rounding, and now and then all at once, where a value crosses zero in
front of a ReLU or two maxima change places. How far apart it takes two programs is measured, too: PyTorch trains again,
``CONTROLS`` times, from weights that were each moved by one rounding of the precision, up or down at random.

The curves overlap when ours is no further from PyTorch's than ``FACTOR`` times the furthest control plus the rounding
of the loss itself, in each stretch of the run: its last half, the quarter before, the eighth before that and so on. The
furthest is that of the stretch or of the next one, for it is chance when amplification sets in. A distance is the root
mean square of the difference of the losses. If all of them were normal numbers of one size, a right program would fail
about once in a hundred stretches. As long as no control has gone its own way, wrong programs are told from right ones,
in fp32 by the last digits of the loss; from then on, whether ours learns as well. Nowhere is training as sensitive as
at its start, where networks leave chance sooner or later for no reason but rounding; ``--warm-up`` goes past that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import timing
from convnet import Network
from convnet.data import Loader, Statistics, open_dataset
from convnet.kernels.precision import PRECISIONS
from convnet.network.networks import network
from convnet.network.spec import Conv, NetworkSpec
from convnet.output.figures import BLUE, ORANGE, check_path

CONTROLS, FACTOR, STRETCHES = 3, 4.0, 7
ROUNDING = {"fp32": 2.0**-23, "tf32": 2.0**-11, "bf16": 2.0**-8}  # of a weight: in fp32 one unit in the last place
LOSS_ROUNDING = 2.0**-22  # of its value: sums of float32 on both sides
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
COLOURS = Statistics(
    mean=np.empty((3, 0, 0), np.float32),
    std=np.full(3, 60, np.float32),
    deviations=np.array([100, 15, 5], np.float32),
    directions=np.eye(3, dtype=np.float32),
)
MEAN = 110.0  # of all pixels, about


@dataclass(frozen=True)
class Batch:
    """Stored images (n, size, size, 3) with labels (n,), windows and noise (n, 3), as a ``Loader`` gives them."""

    images: np.ndarray
    labels: np.ndarray
    windows: np.ndarray
    noise: np.ndarray

    def inputs(self, spec: NetworkSpec) -> tuple[Any, Any]:
        """Images float32 (n, 3, ...), with a first layer's overhang, and labels as PyTorch's network is to see them."""
        import torch

        from benchmarks.torch_network import overhang

        cut = np.empty((len(self.images), 3, spec.crop, spec.crop), np.float32)
        for k, (top, left, flip) in enumerate(self.windows):
            window = self.images[k, top : top + spec.crop, left : left + spec.crop].transpose(2, 0, 1)
            cut[k] = window[:, :, ::-1] if flip else window
        cut = (cut - np.float32(MEAN) + self.noise[:, :, None, None]) * np.float32(spec.input_scale)
        first, x = spec.layers[0], torch.from_numpy(cut)
        x = overhang(x, first) if isinstance(first, Conv) and first.ceil_mode else x
        return x, torch.from_numpy(self.labels).long()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="of our side: cpu, emu[:i], cuda:i (default: cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of our side (default: fp32)")
    parser.add_argument("--model", default="alexnet-tiny", help="network (default: alexnet-tiny)")
    parser.add_argument("-b", "--batch-size", type=int, default=16, help="images per step (default: 16)")
    parser.add_argument("--steps", type=int, default=300, help="default: 300")
    parser.add_argument("--lr", type=float, default=0.02, help="learning rate (default: 0.02)")
    parser.add_argument(
        "--warm-up", type=int, default=0, metavar="N", help="steps at four times the rate, before (default: 0)"
    )
    parser.add_argument("--figure", metavar="FILE.png", help="draw it, too (.png or .svg)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)
    if min(options.batch_size, options.steps) < 1:
        raise ValueError("at least 1 image and 1 step are needed")
    figure = check_path(options.figure) if options.figure else None
    spec = network(options.model, dropout=0.0, num_classes=10)
    batches = draw_batches(spec, options.batch_size, options.warm_up + options.steps)
    before, batches = batches[: options.warm_up], batches[options.warm_up :]
    path = timing.target("quality", options.device, options.output)
    settings = {"model": spec.name, "precision": options.precision, "batch_size": options.batch_size, "lr": options.lr,
                "warm_up": options.warm_up}  # fmt: skip
    results: dict[str, Any] = {}
    for _ in compare(spec, options.device, options.precision, batches, options.lr, results, before):
        timing.write("quality", options.device, {**settings, **results}, str(path))
    print(report(results))
    if figure:
        drawn = draw({**settings, **results, "device": options.device})
        drawn.savefig(figure, dpi=120, metadata={"Software": None} if figure.suffix == ".png" else None)
    print(f"written to {path}")
    return 0 if results["overlap"] else 1


def draw_batches(spec: NetworkSpec, n: int, steps: int) -> list[Batch]:
    """The first ``steps`` batches of the drawn shapes, shuffled, with random crops, flips and colour noise."""
    dataset, found = open_dataset("shapes", size=spec.image_size, seed=0), []
    options = {"batch_size": n, "crop": spec.crop, "seed": 0, "augment": True, "statistics": COLOURS, "workers": 0}
    with Loader(dataset.train, **options) as loader:
        epoch = 0
        while True:
            for batch in loader.epoch(epoch):
                found.append(Batch(batch.images.copy(), batch.labels, batch.windows, batch.noise))
                if len(found) == steps:
                    return found
            epoch += 1


def compare(
    spec: NetworkSpec, device: str, precision: str, batches: list[Batch], lr: float, results: dict[str, Any],
    before: Sequence[Batch] = (),
) -> Iterator[None]:  # fmt: skip
    """Fills ``results`` with the losses of PyTorch, of ours and of the controls, and the verdict; yields after each.

    The weights they all start from are those of a new network that PyTorch trained on the batches ``before``.
    """
    with Network(spec, device, len(batches[0].labels), precision) as net:
        weights = net.weights()
        if before:
            weights = theirs(spec, weights, before, 4 * lr)[1]
            net.load_weights(weights)
        results["pytorch"], _ = theirs(spec, weights, batches, lr)
        yield
        results["convnet"] = ours(net, batches, lr)
        yield
    results["controls"] = []
    for seed in range(CONTROLS):
        control, _ = theirs(spec, moved(weights, ROUNDING[precision], seed), batches, lr)
        results["controls"].append(control)
        yield
    results |= verdict(results["pytorch"], results["convnet"], results["controls"])
    yield


def ours(net: Network, batches: list[Batch], lr: float, weight_decay: float = WEIGHT_DECAY) -> list[float]:
    """The loss of every step."""
    net.set_input(np.full((3, net.spec.crop, net.spec.crop), MEAN, np.float32))
    losses = []
    for batch in batches:
        found, _ = net.train_batch(batch.images, batch.labels, batch.windows, batch.noise)
        net.step(lr, MOMENTUM, weight_decay)
        losses.append(float(found.mean(dtype=np.float64)))
    return losses


def theirs(
    spec: NetworkSpec, weights: dict[str, np.ndarray], batches: Sequence[Batch], lr: float
) -> tuple[list[float], dict[str, np.ndarray]]:
    """The same by PyTorch, and the weights afterwards."""
    from benchmarks.torch_network import TorchNetwork, Variant

    first = batches[0].inputs(spec)
    peer = TorchNetwork(spec, weights, [first], Variant(), "cpu", "fp32", lr, MOMENTUM, WEIGHT_DECAY)
    losses = []
    for batch in batches:
        peer.optimizer.zero_grad(set_to_none=True)
        loss = peer.loss(*batch.inputs(spec))
        loss.backward()
        peer.optimizer.step()
        losses.append(loss.item())
    return losses, {name: value.detach().numpy() for name, value in peer.parameters.items()}


def moved(weights: dict[str, np.ndarray], rounding: float, seed: int) -> dict[str, np.ndarray]:
    """Every weight larger or smaller by its ``rounding``-th part."""
    random = np.random.default_rng(seed)
    return {
        name: (value * (1 + rounding * random.choice([-1.0, 1.0], value.shape))).astype(np.float32)
        for name, value in weights.items()
    }


def verdict(pytorch: list[float], convnet: list[float], controls: list[list[float]]) -> dict[str, Any]:
    """Distances and their limits in every stretch of the run, the steps at which these end, and whether the curves
    ``overlap``."""
    reference, n = np.array(pytorch), len(pytorch)
    ends = sorted({n >> k for k in range(STRETCHES)} - {0})
    stretches = [slice(*cut) for cut in pairwise([0, *ends])]

    def distances(curve: list[float]) -> np.ndarray:
        squares = (np.array(curve) - reference) ** 2
        return np.sqrt([squares[stretch].mean() for stretch in stretches])

    furthest = np.max([distances(control) for control in controls], axis=0)
    furthest = np.maximum(furthest, [*furthest[1:], 0.0])
    limits = FACTOR * furthest + [LOSS_ROUNDING * reference[stretch].mean() for stretch in stretches]
    found = distances(convnet)
    overlap = bool((found <= limits).all())  # not where anything is NaN
    return {"ends": ends, "distances": found.tolist(), "limits": limits.tolist(), "overlap": overlap}


def report(results: dict[str, Any]) -> str:
    lines = [
        (f"to step {end}", f"{distance:.2e}", f"{limit:.2e}", f"{distance / limit:.2f}")
        for end, distance, limit in zip(results["ends"], results["distances"], results["limits"], strict=True)
    ]
    last = slice(-max(1, len(results["pytorch"]) // 10), None)
    ends = (f"{name} {np.mean(results[name][last]):.3f}" for name in ("pytorch", "convnet"))
    return (
        f"{timing.table(('', 'distance', 'limit', 'ratio'), lines)}\n"
        f"mean loss of the last tenth of {len(results['pytorch'])} steps: {', '.join(ends)}\n"
        f"the curves {'overlap' if results['overlap'] else 'DO NOT OVERLAP'}"
    )


def smooth(values: list[float], reach: int) -> np.ndarray:
    """The mean of each value and its neighbours, fewer at the ends."""
    parts = (values[max(0, k - reach) : k + reach + 1] for k in range(len(values)))
    return np.array([np.mean(part) for part in parts])


def draw(results: dict[str, Any]) -> Figure:
    """All curves over each other, and under them how far ours and the controls are from PyTorch's, step by step."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, apart = figure.subplots(2, 1, sharex=True)
    reference, steps = np.array(results["pytorch"]), range(1, 1 + len(results["pytorch"]))
    reach = len(reference) // 30
    for number, control in enumerate(results["controls"]):
        name = "PyTorch from weights moved by one rounding" if not number else None
        losses.plot(steps, smooth(control, reach), color="0.7", linewidth=1.5, label=name)
    losses.plot(steps, smooth(results["pytorch"], reach), color=ORANGE, linewidth=4, alpha=0.7, label="PyTorch")
    losses.plot(steps, smooth(results["convnet"], reach), color=BLUE, linewidth=1.5, label="convnet")
    losses.set_ylabel(f"loss, mean of {2 * reach + 1} steps" if reach else "loss")
    results_of = f"{results['model']}, {results['batch_size']} images a step, {results['precision']}"
    losses.set_title(f"{results_of} on {results['device']}, beside PyTorch in float32", fontsize=10)
    smallest = LOSS_ROUNDING * reference.mean() / 4
    for number, control in enumerate(results["controls"]):
        difference = np.maximum(np.abs(np.array(control) - reference), smallest)
        name = "PyTorch from weights moved by one rounding" if not number else None
        apart.plot(steps, difference, color="0.7", linewidth=1, label=name)
    difference = np.maximum(np.abs(np.array(results["convnet"]) - reference), smallest)
    apart.plot(steps, difference, color=BLUE, linewidth=1, label="convnet")
    apart.set_yscale("log")
    apart.set_ylabel("distance from PyTorch's loss")
    apart.set_xlabel("step")
    for axes in (losses, apart):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    sys.exit(timing.command(main))
