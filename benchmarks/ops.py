"""Every layer and pass of a network on one device: time, rates, share of the device's peak, ratio to the NumPy kernels.

Example: python -m benchmarks.ops --device cpu --model alexnet -b 32 --layer conv2 fc6

A kernel whose result is wrong is not timed: the run ends with exit code 1 and names it. The peaks are measured in the
same run by the device's own means, a large copy and a large matrix product; a share above 100 % means that the data lay
in a cache. OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are ignored: the processor's own kernels are what is timed.
Times are warm: the same buffers in every repetition. On a GPU "floor" is the time that benchmarks/floors.py allows an
H200 over ours, and "x cuDNN" the time of the best of PyTorch's kernels over ours, taken in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import cudnn, floors, timing
from benchmarks.problems import Problem, WrongResult, problems
from convnet import ops
from convnet.backend import Device, Stream, open_device
from convnet.precision import PRECISIONS
from convnet.shapes import ConvShape, LinearShape
from convnet.spec import network


@dataclass
class Row:
    layer: str
    name: str
    seconds: float
    noise: float
    gflops: float
    gbytes: float
    compute_share: float
    memory_share: float
    floor_share: float | None = None  # floor of an H200 / time here; None but on GPUs
    over_numpy: float | None = None  # time of the NumPy kernels / time here; None where they are timed or left out
    over_cudnn: float | None = None  # time of PyTorch's fastest candidate / time here; None where there is none
    cudnn_candidate: str | None = None  # which one that is


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, emu[:i] or cuda:i (default: cpu)")
    parser.add_argument("--model", default="alexnet", help="network (default: alexnet)")
    parser.add_argument("-b", "--batch-size", type=int, default=32, help="images (default: 32)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the kernels (default: fp32)")
    parser.add_argument("--layer", nargs="+", metavar="NAME", help='only these layers, also "softmax" and "sgd"')
    parser.add_argument("--seconds", type=float, default=1.0, help="time to spend on each pass (default: 1)")
    parser.add_argument("--no-numpy", action="store_true", help="leave out the comparison with the NumPy kernels")
    parser.add_argument("--no-cudnn", action="store_true", help="leave out the comparison with PyTorch on a GPU")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)

    spec = network(options.model)
    known = [layer.name for layer in spec.layers] + ["softmax", "sgd"]
    for name in options.layer or []:
        if name not in known:
            parser.error(f'no layer is called "{name}"; there are {", ".join(known)}')
    device = open_device(options.device)
    device.check_precision(options.precision)
    cpu = None if options.no_numpy or device.name == "cpu" or options.precision != "fp32" else open_device("cpu")
    peer = device.name.startswith("cuda") and not options.no_cudnn
    seed = int(np.random.default_rng().integers(2**32))
    copied, multiplied = peaks(device, options.seconds)
    print(f"peaks of {device.name}: {copied / 1e9:.1f} GB/s, {multiplied / 1e9:.1f} GFLOP/s")
    wanted = (spec, options.batch_size, options.precision, seed, options.layer)
    rows = []
    try:
        others = problems(cpu, *wanted) if cpu else None
        for problem in problems(device, *wanted):
            other = next(others) if others else None
            row = measure(device, problem, cpu, other, options.seconds, copied, multiplied)
            if device.name.startswith("cuda"):
                row.floor_share = floors.seconds(problem.flops, problem.bytes, options.precision) / row.seconds
            if peer and problem.shape is not None:
                compare(device, problem, options.precision, row, options.seconds)
            rows.append(row)
    except WrongResult as error:
        print(f"error: {device.name}, {options.model}, seed {seed}: {error}; nothing is timed", file=sys.stderr)
        return 1
    print(report(rows))
    results = {
        "model": options.model, "batch_size": options.batch_size, "precision": options.precision,
        "seed": seed, "peak_bytes_per_second": copied,
        "peak_flops": multiplied, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    print(f"written to {timing.write('ops', device.name, results, options.output)}")
    return 0


def measure(
    device: Device, problem: Problem, cpu: Device | None, other: Problem | None, seconds: float, copied: float,
    multiplied: float,
) -> Row:  # fmt: skip
    """Checks ``problem`` and then times it. Raises ``WrongResult``."""
    stream = device.stream()
    device.synchronize()
    problem.run()
    device.synchronize()
    problem.check()
    times = timing.repeated(lambda: timing.timed(device, stream, problem.run), seconds)
    median = statistics.median(times)
    over_numpy = None
    if cpu is not None and other is not None:
        reference = cpu.stream()
        theirs = timing.repeated(lambda: timing.timed(cpu, reference, other.run), min(seconds, 0.5), most=10)
        over_numpy = statistics.median(theirs) / median
    gflops, gbytes = problem.flops / median / 1e9, problem.bytes / median / 1e9
    return Row(
        problem.layer, problem.name, median, timing.noise(times), gflops, gbytes, gflops * 1e9 / multiplied,
        gbytes * 1e9 / copied, over_numpy=over_numpy,
    )  # fmt: skip


def compare(device: Device, problem: Problem, precision: str, row: Row, seconds: float) -> None:
    """Times PyTorch's candidates for the same product and ours in turns; notes the ratio to the fastest."""
    import torch

    stream, product = device.stream(), cudnn.convolution if isinstance(problem.shape, ConvShape) else cudnn.linear

    def theirs(work: cudnn.Work) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        before.record()
        work()
        after.record()
        torch.cuda.synchronize()
        return float(before.elapsed_time(after)) / 1e3

    with cudnn.settings(precision):
        candidates = product(problem.shape, problem.name, precision)  # type: ignore[operator]
        times: dict[str, list[float]] = {name: [] for name in candidates}
        ours: list[float] = []
        for work in candidates.values():  # algorithms are searched here
            theirs(work)
        while len(ours) < 5 or (sum(ours) < seconds and len(ours) < 50):
            ours.append(timing.timed(device, stream, problem.run))
            for name, work in candidates.items():
                times[name].append(theirs(work))
    medians = {name: statistics.median(values) for name, values in times.items()}
    row.cudnn_candidate = min(medians, key=lambda name: medians[name])
    row.over_cudnn = medians[row.cudnn_candidate] / statistics.median(ours)


def peaks(device: Device, seconds: float) -> tuple[float, float]:
    """Bytes per second of a large copy (read and written) and FLOP/s of a large matrix product."""
    small = device.name.startswith("emu")  # nobody measures the speed of the emulator; it only has to run
    stream = device.stream()
    source, target = (device.empty(((1 << 16) if small else (1 << 26),)) for _ in range(2))
    stream.upload(source, np.zeros(source.shape, np.float32))
    # whichever is faster: on a CPU the kernel uses all cores, the copy one
    copying = timing.repeated(lambda: timing.timed(device, stream, lambda: stream.copy(target, source)), seconds / 2)
    copying += timing.repeated(
        lambda: timing.timed(device, stream, lambda: ops.scale(stream, "fp32", source, 1.0, target)), seconds / 2
    )
    size = 64 if small else 4096
    lanes = device.lanes(size)
    shape = LinearShape(size, size, size, lanes)
    x, weight, y = (device.empty(s) for s in (shape.x, shape.weight, shape.y))
    random = np.random.default_rng(0)
    for array in (x, weight):
        stream.upload(array, random.standard_normal(array.shape, dtype=np.float32))
    workspace = device.empty((-(-device.kernels.linear_workspace(shape, "fp32") // 4),))
    multiplying = timing.repeated(
        lambda: timing.timed(device, stream, lambda: _multiply(stream, shape, x, weight, y, workspace)), seconds
    )
    return 2 * source.nbytes / min(copying), 2.0 * shape.macs / min(multiplying)


def _multiply(stream: Stream, shape: LinearShape, x: Any, weight: Any, y: Any, workspace: Any) -> None:
    ops.linear_forward(stream, shape, "fp32", x, weight, None, y, False, None, None, workspace)


def report(rows: list[Row]) -> str:
    header = ("layer and pass", "ms", "noise", "GFLOP/s", "of peak", "GB/s", "of peak", "floor", "x cuDNN", "x NumPy")

    def optional(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    lines = []
    for row in rows:
        lines.append((
            f"{row.layer} {row.name}", f"{1e3 * row.seconds:.3f}", f"{100 * row.noise:.0f} %", f"{row.gflops:.1f}",
            f"{100 * row.compute_share:.0f} %", f"{row.gbytes:.1f}", f"{100 * row.memory_share:.0f} %",
            optional(row.floor_share and 100 * row.floor_share, "{:.0f} %"), optional(row.over_cudnn, "{:.2f}"),
            optional(row.over_numpy, "{:.2f}"),
        ))  # fmt: skip
    total = sum(row.seconds for row in rows)
    return f"{timing.table(header, lines)}\nall together {1e3 * total:.1f} ms"


if __name__ == "__main__":
    sys.exit(timing.command(main))
