"""Whole training steps: images per second of this network and, where it is installed, of PyTorch, taking turns.

Example: python -m benchmarks.step --device cpu --model alexnet -b 32

A step is forward, loss, backward and update, for several random batches in turn. PyTorch starts from float32 images on
its device, with the zeros of an overhanging first layer already around them; convnet starts from stored uint8 images in
host memory, as in training: upload, crop, mean, scale and layout are part of its step. PyTorch's variants (memory
format, optimizer) are all tried first; the fastest takes part. Both use the same number of threads, and each its own
choice of kernels for the processor (OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are ignored). Both use the same precision;
PyTorch's bf16 is autocast.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import timing
from convnet import Network, parallel
from convnet.precision import PRECISIONS

# Logits may differ by so much of the largest: in tf32 and bf16 by rounding operands to 11 and 8 bits on both sides,
# once in each of about ten layers.
AGREEMENT = {"fp32": 1e-4, "tf32": 2 * 10**0.5 * 2.0**-11, "bf16": 2 * 10**0.5 * 2.0**-8}
BATCHES = 4
LR = 1e-3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, emu[:i], cuda:i[,cuda:j] (default: auto)")
    parser.add_argument("--model", default="alexnet", help="network (default: alexnet)")
    parser.add_argument("-b", "--batch-size", type=int, default=32, help="images per step (default: 32)")
    parser.add_argument("--steps", type=int, default=10, help="measured turns of each side (default: 10)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of both sides (default: fp32)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)

    with Network(options.model, options.device, options.batch_size, options.precision) as net:
        results = compare(net, options.steps, with_torch=not options.no_torch)
        device = ",".join(net.devices)
    path = timing.write(
        "step", device, {"model": options.model, "precision": options.precision, **results}, options.output
    )
    print(report(results, device))
    print(f"written to {path}")
    return 0


def compare(net: Network, turns: int, with_torch: bool = True) -> dict[str, Any]:
    """Times of ``turns`` steps of each side, one after the other; raises ``RuntimeError`` when the two do not agree."""
    random = np.random.default_rng()
    crop, n = net.spec.crop, net.batch_size
    stored = [random.integers(0, 256, (n, crop, crop, 3), dtype=np.uint8) for _ in range(BATCHES)]
    labels = [random.integers(0, net.spec.classes, n).astype(np.int32) for _ in range(BATCHES)]
    windows, tints = np.zeros((n, 3), np.int32), np.zeros((n, 3), np.float32)
    last_layer = net.spec.layers[-1].name
    mean = np.full((3, crop, crop), 127.5, np.float32)
    net.set_input(mean)

    def ours(number: int) -> None:
        net.train_batch(stored[number % BATCHES], labels[number % BATCHES], windows, tints)
        net.step(lr=LR)

    results: dict[str, Any] = {"batch_size": n, "threads": parallel.threads()}
    sides: dict[str, Callable[[int], None]] = {"convnet": ours}
    waits: dict[str, Callable[[], Any]] = {"convnet": lambda: net.activation(last_layer)}
    if with_torch:
        images = [(batch.transpose(0, 3, 1, 2) - mean) * np.float32(net.spec.input_scale) for batch in stored]
        peer, results["torch"] = _fastest_torch(net, [np.ascontiguousarray(x) for x in images], labels)
        if peer is not None:
            results["logits_difference"] = _check_agreement(
                net.evaluate_batch(stored[0], windows), peer.logits(images[0]), net.precision
            )
            sides["torch"], waits["torch"] = peer.train, peer.synchronize
    times: dict[str, list[float]] = {name: [] for name in sides}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    for turn in range(turns + 1):
        for name, step in sides.items():
            start = time.perf_counter()
            step(turn)
            waits[name]()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    results |= {"seconds": times, "load_before": load}
    for name, values in times.items():
        results[f"{name}_images_per_second"] = n / statistics.median(values)
    if "torch" in times:
        ratios = [theirs / own for own, theirs in zip(times["convnet"], times["torch"], strict=True)]
        results |= {"ratio": statistics.median(ratios), "ratio_noise": timing.noise(ratios), "ratios": ratios}
    return results


def _fastest_torch(net: Network, images: list[np.ndarray], labels: list[np.ndarray]) -> tuple[Any, dict[str, Any]]:
    """The fastest variant with the network's weights, and the seconds of each; None where PyTorch cannot take part."""
    device = net.devices[0]
    if len(net.devices) > 1 or device.startswith("emu"):
        return None, {"left_out": f"no counterpart of {','.join(net.devices)}"}
    try:
        import torch
    except ImportError:
        return None, {"left_out": "not installed"}
    from benchmarks.torch_network import VARIANTS, TorchNetwork

    if device.startswith("cuda") and not torch.cuda.is_available():
        return None, {"left_out": "PyTorch sees no GPU"}
    torch.set_num_threads(parallel.threads())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = net.precision == "tf32"
    torch.backends.cudnn.benchmark = True
    seconds = {}
    for variant in VARIANTS:
        peer = TorchNetwork(net.spec, net.weights(), images, labels, variant, device, LR, net.precision)
        times = []
        for turn in range(4):
            start = time.perf_counter()
            peer.train(turn)
            peer.synchronize()
            times.append(time.perf_counter() - start)
        seconds[variant] = min(times[1:])
        del peer
    best = min(seconds, key=lambda variant: seconds[variant])
    tried = {" ".join(variant): value for variant, value in seconds.items()}
    return TorchNetwork(net.spec, net.weights(), images, labels, best, device, LR, net.precision), {
        "variant": " ".join(best),
        "tried": tried,
    }


def _check_agreement(ours: np.ndarray, theirs: np.ndarray, precision: str = "fp32") -> float:
    """The largest difference of the logits relative to the largest logit; an unequal function is not worth a race."""
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not difference < AGREEMENT[precision]:
        raise RuntimeError(f"the logits of the two networks differ by {difference:.1e} of the largest: not timed")
    return difference


def report(results: dict[str, Any], device: str) -> str:
    header = ("", "images/s", "ms/step", "noise")
    rows = []
    for name, values in results["seconds"].items():
        shown = f"{name} ({device})" if name == "convnet" else f"{name} ({results['torch']['variant']})"
        milliseconds = f"{1e3 * statistics.median(values):.1f}"
        rows.append(
            (shown, f"{results[f'{name}_images_per_second']:.1f}", milliseconds, f"{100 * timing.noise(values):.0f} %")
        )
    text = timing.table(header, rows)
    if "ratio" in results:
        text += f"\nconvnet runs at {results['ratio']:.2f} x PyTorch's speed (+- {100 * results['ratio_noise']:.0f} %)"
    elif "left_out" in results.get("torch", {}):
        text += f"\nPyTorch: {results['torch']['left_out']}"
    return text


if __name__ == "__main__":
    sys.exit(timing.command(main))
