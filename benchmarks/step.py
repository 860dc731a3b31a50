"""Training steps, parts of them, and inference: images per second of this network and of PyTorch, taking turns.

Example: python -m benchmarks.step --device cuda:0 --precision bf16,tf32 -b 128,256

"step" is forward, loss, backward and update, "forward+backward" the same without the update, "forward" inference. Every
row is one way of writing the network in PyTorch (``torch_network.Variant``: memory format, LRN as it comes or
rewritten, eager, compiled, captured as a CUDA graph), measured in blocks of calls that alternate with blocks of ours in
the same process; the fastest row of each part is "best PyTorch", and the ratio is that row's. cuDNN searches all its
algorithms, the optimizer is the fused one, gradients are set to none, and each of eight batches holds other images.
PyTorch starts from its own images in the type and layout that it likes best; ours from uint8 pictures in the device's
memory, so that crop, flip, mean, scale and layout are part of it. Both use the same precision (PyTorch's bf16 is
autocast) and number of threads. A row that fails is kept with its reason.

On a GPU all precisions and batch sizes are measured unless told otherwise, each within its share of ``--minutes``; rows
that find no time left say so. Elsewhere PyTorch runs call by call, and 32 images in fp32 are the default. Results are
written behind every row.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import cudnn, floors, pictures, timing
from benchmarks.our_network import LR, MOMENTUM, WEIGHT_DECAY, OurNetwork, mean_image
from convnet import Network
from convnet.devices.opening import device_names, open_device
from convnet.kernels.precision import PRECISIONS
from convnet.network.networks import network

# Logits may differ by so much of the largest: in tf32 and bf16 by rounding operands to 11 and 8 bits on both sides,
# once in each of about ten layers.
AGREEMENT = {"fp32": 1e-4, "tf32": 2 * 10**0.5 * 2.0**-11, "bf16": 2 * 10**0.5 * 2.0**-8}
WORK = {"step": "step", "forward+backward": "train", "forward": "forward"}  # methods of both sides, by part
MODES = ("eager", "graph", "compile", "compile+graph")  # of PyTorch
MINUTES = 8.0
LATE = "no time left"
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, emu[:i], cuda:i[,cuda:j] (default: a GPU or cpu)")
    parser.add_argument("--model", default="alexnet", help="network (default: alexnet)")
    parser.add_argument("-b", "--batch-size", metavar="N,...", help="images per step (GPU: 128,256,512,1024; else 32)")
    parser.add_argument("--precision", metavar="P,...", help="of both sides (GPU: bf16,tf32,fp32; else fp32)")
    parser.add_argument(
        "--inference", metavar="N,...", help="images for the forward pass alone (GPU: 1,8,64,128,512; else 1,8,64)"
    )
    parser.add_argument("--parts", default=",".join(WORK), help=f"of a step (default: {','.join(WORK)})")
    parser.add_argument("--modes", metavar="M,...", help="of PyTorch (GPU: all; else eager)")
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each side in a row (default: 5)")
    parser.add_argument("--minutes", type=float, help=f"when to stop (GPU: {MINUTES:g}; else never)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = next((name for name in device_names() if name.startswith("cuda")), "cpu")
    gpu = options.device.startswith("cuda")

    def chosen(text: str | None, on_gpu: str, elsewhere: str) -> list[str]:
        return [part for part in ((on_gpu if gpu else elsewhere) if text is None else text).split(",") if part]

    batches = [int(n) for n in chosen(options.batch_size, "128,256,512,1024", "32")]
    inference = [int(n) for n in chosen(options.inference, "1,8,64,128,512", "1,8,64")]
    modes = chosen(options.modes, ",".join(MODES), "eager")
    precisions = chosen(options.precision, "bf16,tf32,fp32", "fp32")
    parts = options.parts.split(",")
    for wanted, known in ((precisions, PRECISIONS), (parts, list(WORK)), (modes, MODES)):
        if unknown := [name for name in wanted if name not in known]:
            parser.error(f'"{unknown[0]}" is none of {", ".join(known)}')
    minutes = options.minutes or (MINUTES if gpu else None)
    race = Race(options.model, options.device, modes, options.turns, not options.no_torch)
    path = timing.target("step", options.device, options.output)
    race.save = lambda: timing.write("step", options.device, race.results(), str(path))
    # inference over as many images as a step has is part of that
    problems = [(n, p, parts) for n in batches for p in precisions]
    problems += [
        (n, p, ["forward"]) for n in inference for p in precisions if not ("forward" in parts and n in batches)
    ]
    end = time.monotonic() + 60 * minutes if minutes else None
    if gpu and minutes:  # a library that hangs must not hold the machine; what was measured is on disk
        faulthandler.dump_traceback_later(90 * minutes + 60, exit=True, file=sys.__stderr__)
    try:
        for number, (n, precision, wanted) in enumerate(problems):
            left = sum(len(later) for *_, later in problems[number:])
            race.run(n, precision, wanted, (end - time.monotonic()) * len(wanted) / left if end else None)
            print(report(race.best[-len(wanted) :], header=not number), flush=True)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"written to {path}")
    return 0 if any("seconds" in row for row in race.ours) else 1


def cpu_threads() -> int:
    """How many threads the kernels of the device "cpu" take."""
    return int(open_device("cpu").kernels.threads())


class Race:
    """Everything measured so far: ``ours`` and PyTorch's ``rows``, and of these the ``best``, per problem and part."""

    def __init__(self, model: str, device: str, modes: list[str], turns: int = 5, with_torch: bool = True):
        self.spec, self.device, self.modes, self.turns = network(model), device, modes, turns
        self.ours: list[Row] = []
        self.rows: list[Row] = []
        self.best: list[Row] = []
        self.left_out = _why_not(device) if with_torch else "not wanted"
        # seconds of a turn; on a CPU what waits awake behind the other side's last call takes some milliseconds of it
        self.block = 0.05 if device.startswith("cuda") else 0.5
        self.save: Callable[[], Any] = lambda: None
        self.album = pictures.Album(self.spec.image_size)

    def results(self) -> dict[str, Any]:
        return {
            "model": self.spec.name, "threads": cpu_threads(), "left_out": self.left_out,
            "best": self.best, "ours": self.ours, "rows": self.rows,
        }  # fmt: skip

    def run(self, n: int, precision: str, parts: list[str], share: float | None = None) -> None:
        """Measures ``parts`` with ``n`` images, in ``share`` seconds where these suffice for more than one variant, and
        not at all where none are left."""
        end = time.monotonic() + share if share is not None else float("inf")
        place = {"batch_size": n, "precision": precision}
        batches = pictures.batches(n, self.spec.classes, self.spec.image_size, self.spec.crop, seed=n)
        try:
            if share is not None and share < 0:
                raise TimeoutError(LATE)
            net = Network(self.spec, self.device, n, precision)
        except (RuntimeError, TimeoutError) as error:  # no memory, most likely
            failed = [{**place, "part": part, "failed": timing.reason(error)} for part in parts]
            self.ours += failed
            self.best += failed
            self.save()
            return
        with net:
            ours = OurNetwork(net, self.album, batches)
            times: dict[str, list[float]] = {part: [] for part in parts}
            if not self.left_out:
                try:
                    with cudnn.settings(precision):
                        for row, peer in self._peers(ours, place):
                            for part in parts:
                                self._row({**row, "part": part}, ours, peer, times[part], end)
                except RuntimeError as error:
                    self.rows.append({**place, "failed": timing.reason(error)})
            for part in parts:
                self._own(place, part, ours, times[part])

    def _peers(self, ours: OurNetwork, place: Row) -> Iterator[tuple[Row, Callable[[], Any]]]:
        """What to measure, and a function that makes the network for it, the same one in both of its modes."""
        import torch

        from benchmarks.torch_network import VARIANTS, TorchNetwork, on_device

        torch.set_num_threads(cpu_threads())
        mean = mean_image(self.spec.crop)
        stored = [batch.images(self.album, self.spec.crop) for batch in ours.batches]
        batches = [
            (on_device(self.spec, images, mean, self.device), torch.from_numpy(batch.labels).long().to(self.device))
            for images, batch in zip(stored, ours.batches, strict=True)
        ]
        expected, weights = ours.first_logits(), ours.net.weights()
        for variant in VARIANTS:
            made: list[Any] = []  # the network, once it is known to be right

            def peer(captured: bool, variant: Any = variant, made: list[Any] = made) -> Any:
                if not made:
                    hyper = LR, MOMENTUM, WEIGHT_DECAY
                    new = TorchNetwork(self.spec, weights, batches, variant, self.device, place["precision"], *hyper)
                    check_agreement(expected, new.first_logits(), place["precision"])
                    made.append(new)
                made[0].captured = captured
                return made[0]

            for captured in (False, True):
                if variant.mode(captured) in self.modes:
                    row = {**place, "mode": variant.mode(captured), "variant": str(variant)}
                    yield row, lambda captured=captured: peer(captured)
            made.clear()
            gc.collect()  # networks refer to themselves
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()

    def _row(self, row: Row, ours: OurNetwork, peer: Callable[[], Any], times: list[float], end: float) -> None:
        """Adds ``row`` with what was measured, or why nothing was; our own ``times`` grow."""
        work = WORK[row["part"]]
        if times and time.monotonic() > end:
            row["failed"] = LATE
        else:
            try:
                theirs = peer()
                sides = [(getattr(side, work), side.synchronize) for side in (ours, theirs)]
                own, other = timing.in_turns(sides, self.turns, self.block)
                times += own
                row |= compared(own, other, row["batch_size"])
                if row["part"] == "step":
                    row["memory_bytes"] = theirs.peak_memory()
            except Exception as error:
                row["failed"] = timing.reason(error)
                ours.synchronize()  # raises where the device is beyond help
        self.rows.append(row)
        self.save()

    def _own(self, place: Row, part: str, ours: OurNetwork, times: list[float]) -> None:
        n, precision = place["batch_size"], place["precision"]
        row = {**place, "part": part}
        try:
            if not times:
                times += timing.in_turns([(getattr(ours, WORK[part]), ours.synchronize)], self.turns, self.block)[0]
            seconds = statistics.median(times)
            row |= {"seconds": seconds, "noise": timing.noise(times), "images_per_second": n / seconds}
            row["memory_bytes"] = ours.memory
            if self.device.startswith("cuda"):
                row["floor_seconds"] = floors.total(floors.plan(self.spec, n, precision, part), precision)
                row["floor_share"] = row["floor_seconds"] / seconds
        except RuntimeError as error:
            row["failed"] = timing.reason(error)
        self.ours.append(row)
        measured = [r for r in self.rows if r.items() >= {**place, "part": part}.items() and "seconds" in r]
        fastest = min(measured, key=lambda r: r["seconds"], default=None)
        self.best.append({**row, "torch": fastest} if fastest else row)
        self.save()


def _why_not(device: str) -> str | None:
    """Why PyTorch cannot take part on ``device``, or None."""
    if "," in device or device.startswith("emu"):
        return f"no counterpart of {device}"
    try:
        import torch
    except ImportError:
        return "not installed"
    return "PyTorch sees no GPU" if device.startswith("cuda") and not torch.cuda.is_available() else None


def compared(own: list[float], theirs: list[float], n: int) -> Row:
    """What a row says of PyTorch's seconds per call beside ours of the same turns."""
    ratios = [b / a for a, b in zip(own, theirs, strict=True)]
    seconds = statistics.median(theirs)
    return {
        "seconds": seconds, "noise": timing.noise(theirs), "images_per_second": n / seconds,
        "convnet_seconds": statistics.median(own), "ratio": statistics.median(ratios),
        "ratio_noise": timing.noise(ratios), "turns": {"convnet": own, "torch": theirs},
    }  # fmt: skip


def check_agreement(ours: np.ndarray, theirs: np.ndarray, precision: str = "fp32") -> float:
    """The largest difference of the logits relative to the largest logit; an unequal function is not worth a race."""
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not difference < AGREEMENT[precision]:
        raise RuntimeError(f"the logits of the two networks differ by {difference:.1e} of the largest: not timed")
    return difference


def report(best: list[Row], header: bool = True) -> str:
    """One line per part."""
    lines = []
    for row in best:
        theirs = row.get("torch")
        if "seconds" not in row:
            lines.append((f"{row['precision']} {row['batch_size']} {row['part']}", *[""] * 7, row.get("failed", "")))
            continue
        share, memory = row.get("floor_share"), row.get("memory_bytes")
        lines.append((
            f"{row['precision']} {row['batch_size']} {row['part']}", f"{1e3 * row['seconds']:.2f}",
            f"{row['images_per_second']:.0f}", f"{100 * row['noise']:.0f} %",
            "" if share is None else f"{100 * share:.0f} %", "" if memory is None else f"{memory / 1e9:.2f}",
            f"{theirs['images_per_second']:.0f}" if theirs else "",
            f"{theirs['ratio']:.2f} (+- {100 * theirs['ratio_noise']:.0f} %)" if theirs else "",
            f"{theirs['mode']} {theirs['variant']}" if theirs else "",
        ))  # fmt: skip
    names = ("images and part", "ms", "images/s", "noise", "floor", "GB", "PyTorch", "x PyTorch", "best PyTorch")
    return timing.table(names, lines) if header else timing.table(names, lines).partition("\n")[2]


if __name__ == "__main__":
    sys.exit(timing.command(main))
