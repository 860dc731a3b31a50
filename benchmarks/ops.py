"""Every layer and pass of a network on one device: time, rates, share of the device's peak, ratio to the CPU's kernels.

Example: python -m benchmarks.ops --device cpu --model alexnet -b 32 --layer conv2 fc6

A kernel whose result is wrong, or that raises, is not timed: its row says why, the others go on, and the run ends with
exit code 1. Results are written behind every row, so that those of a device that is lost on the way are there. The
peaks are measured in the same run by the device's own means, a large copy and a large matrix product in float32; a
share above 100 % means that the data lay in a cache, or tensor cores. The environment does not choose the processor's
kernels (``benchmarks.CHOOSING``): its own are what is timed.

Times are warm: the same buffers in every call, of which a cache serves what it holds. On a GPU they are those of blocks
of calls without a gap (``timing.Clock``), "doubled" is how many times as long a block takes as half of one, 2.00 where
nothing but the work is timed, "floor" is the time that benchmarks/floors.py allows an H200 over ours, and "x cuDNN" the
time of the best of PyTorch's kernels over ours, taken in turns, on the same stream and by the same clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import cudnn, floors, timing
from benchmarks.problems import WINDOWS, Problem, problems
from convnet.devices.opening import open_device
from convnet.devices.protocol import Device, Stream
from convnet.kernels.precision import PRECISIONS
from convnet.kernels.shapes import ConvShape, LinearShape
from convnet.network.networks import network
from convnet.network.spec import NetworkSpec
from convnet.ops import ops

DOUBTFUL = 0.1  # so far from 2, a growth is told


@dataclass
class Row:
    layer: str
    name: str
    failed: str | None = None  # why it is not timed
    seconds: float | None = None
    noise: float | None = None
    growth: float | None = None  # time of twice the calls / time; None but on GPUs
    gflops: float | None = None
    gbytes: float | None = None
    compute_share: float | None = None
    memory_share: float | None = None
    floor_share: float | None = None  # floor of an H200 / time here; None but on GPUs
    over_cpu: float | None = None  # time of the kernels of "cpu" / time here; None where they are timed or left out
    over_cudnn: float | None = None  # time of PyTorch's fastest candidate / time here; None where there is none
    cudnn_candidate: str | None = None  # which one that is
    cudnn_failed: str | None = None  # why there is none


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, emu[:i] or cuda:i (default: cpu)")
    parser.add_argument("--model", default="alexnet", help="network (default: alexnet)")
    parser.add_argument("-b", "--batch-size", type=int, default=32, help="images (default: 32)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the kernels (default: fp32)")
    parser.add_argument(
        "--layer",
        nargs="+",
        metavar="NAME",
        help='only these layers, or "avg-pool", "rand-pool", "rnorm", "cnorm", "blur", "nailbed", "local", "softmax", '
        '"sgd"',
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time to spend on each pass (default: 1)")
    parser.add_argument(
        "--no-cpu", action="store_true", help="leave out the comparison with the kernels of the device cpu"
    )
    parser.add_argument("--no-cudnn", action="store_true", help="leave out the comparison with PyTorch on a GPU")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)

    spec = network(options.model)
    known = [*(layer.name for layer in spec.layers), *WINDOWS, "softmax", "sgd"]
    named = [*known, "local"]  # which no layer of the network is
    for name in options.layer or []:
        if name not in named:
            parser.error(f'no layer is called "{name}"; there are {", ".join(named)}')
    device = open_device(options.device)
    device.check_precision(options.precision)
    run = Run(device, spec, options)
    path = timing.target("ops", device.name, options.output)
    run.save = lambda: timing.write("ops", device.name, run.results(), str(path))
    try:
        run.measure_peaks()
        for name in options.layer or known:
            run.measure_layer(name)
    except DeviceGone as error:
        run.failed = True
        print(f"error: {error}; nothing more can be measured", file=sys.stderr)
    print(report(run.rows))
    print(f"written to {path}")
    return 1 if run.failed else 0


class DeviceGone(RuntimeError):
    """The device is beyond help, and with it the rest of the run."""


class Run:
    """Everything measured so far."""

    def __init__(self, device: Device, spec: NetworkSpec, options: argparse.Namespace):
        self.device, self.spec, self.precision, self.seconds = device, spec, options.precision, options.seconds
        self.clock = timing.Clock(device)
        beside = not options.no_cpu and device.name != "cpu" and self.precision == "fp32"
        self.cpu = timing.Clock(open_device("cpu")) if beside else None
        self.gpu = device.name.startswith("cuda")
        self.peer = self.gpu and not options.no_cudnn
        self.batch_size, self.seed = options.batch_size, int(np.random.default_rng().integers(2**32))
        self.peaks: tuple[float, float] | None = None  # bytes and FLOP per second
        self.rows: list[Row] = []
        self.failed = False
        self.save: Callable[[], Any] = lambda: None

    def results(self) -> dict[str, Any]:
        copied, multiplied = self.peaks or (None, None)
        return {
            "model": self.spec.name, "batch_size": self.batch_size, "precision": self.precision, "seed": self.seed,
            "peak_bytes_per_second": copied, "peak_flops": multiplied, "rows": [asdict(row) for row in self.rows],
        }  # fmt: skip

    def measure_peaks(self) -> None:
        """Without them there are no shares."""
        with self._going_on("the peaks"):
            self.peaks = peaks(self.clock, self.seconds)
            copied, multiplied = self.peaks
            print(f"peaks of {self.device.name}: {copied / 1e9:.1f} GB/s, {multiplied / 1e9:.1f} GFLOP/s")

    def measure_layer(self, name: str) -> None:
        """Adds a row for every problem of a layer, "softmax", "sgd" or "local"."""
        wanted = (self.spec, self.batch_size, self.precision, self.seed, [name])
        with self._going_on(name):  # what fails between two problems, such as memory for the next, ends the layer
            others = problems(self.cpu.device, *wanted) if self.cpu else None
            for problem in problems(self.device, *wanted):
                row = Row(problem.layer, problem.name)
                self.rows.append(row)
                with self._going_on(f"{row.layer} {row.name}", row):
                    self.measure(problem, next(others) if others else None, row)

    @contextmanager
    def _going_on(self, what: str, row: Row | None = None) -> Iterator[None]:
        """Tells what fails within, and notes it in ``row``, a new one where there is none; then everything is saved.
        Raises ``DeviceGone`` where the device is of no use afterwards.
        """
        try:
            yield
        except DeviceGone:
            raise
        except Exception as error:
            self.failed = True
            if row is None:
                row = Row(what, "")
                self.rows.append(row)
            row.failed = timing.reason(error)
            place = f"{self.device.name}, {self.spec.name}, seed {self.seed}: {what}"
            print(f"error: {place}: {row.failed}; not timed", file=sys.stderr, flush=True)
            self._check_alive(what)
        finally:
            self.save()

    def _check_alive(self, what: str) -> None:
        try:
            self.device.synchronize()
        except Exception as error:
            raise DeviceGone(f"{self.device.name} fails behind {what}: {timing.reason(error)}") from error

    def measure(self, problem: Problem, other: Problem | None, row: Row) -> None:
        """Checks ``problem`` and then times it. Raises ``WrongResult``."""
        self.device.synchronize()
        problem.run()
        self.device.synchronize()
        problem.check()
        times, row.growth = self.clock.repeated(problem.stream, problem.run, self.seconds)
        median = statistics.median(times)
        row.seconds, row.noise = median, timing.noise(times)
        row.gflops, row.gbytes = problem.flops / median / 1e9, problem.bytes / median / 1e9
        if self.peaks:
            copied, multiplied = self.peaks
            row.compute_share, row.memory_share = row.gflops * 1e9 / multiplied, row.gbytes * 1e9 / copied
        if self.gpu:
            row.floor_share = floors.seconds(problem.flops, problem.bytes, self.precision) / median
        if self.cpu and other:
            theirs, _ = self.cpu.repeated(other.stream, other.run, min(self.seconds, 0.5), most=10)
            row.over_cpu = statistics.median(theirs) / median
        if self.peer and problem.shape is not None:
            try:
                compare(self.clock, problem, self.precision, row, self.seconds)
            except Exception as error:
                row.cudnn_failed = timing.reason(error)
                self._check_alive(f"PyTorch's {row.layer} {row.name}")


def compare(clock: timing.Clock, problem: Problem, precision: str, row: Row, seconds: float) -> None:
    """Times PyTorch's candidates for the same product and ours in turns; notes the ratio to the fastest."""
    import torch

    product: Any = cudnn.convolution if isinstance(problem.shape, ConvShape) else cudnn.linear
    stream: Any = problem.stream
    # PyTorch works on the problem's stream, so that one clock times both
    theirs = torch.cuda.ExternalStream(stream.stream.handle, clock.device.name)
    with cudnn.settings(precision), torch.cuda.stream(theirs):
        candidates = product(problem.shape, problem.name, precision)
        ours, *medians = _in_turns(clock, stream, [problem.run, *candidates.values()], seconds)
    fastest, row.cudnn_candidate = min(zip(medians, candidates, strict=True))
    row.over_cudnn = fastest / ours
    candidates.clear()
    torch.cuda.empty_cache()  # which PyTorch keeps for this stream alone


def _in_turns(clock: timing.Clock, stream: Stream, works: list[Callable[[], Any]], seconds: float) -> list[float]:
    """The median of the seconds per call of each."""
    calls = [clock.calls(stream, work) for work in works]  # algorithms are searched here
    times: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or (len(times[0]) < 50 and time.perf_counter() < end):
        for work, count, found in zip(works, calls, times, strict=True):
            found.append(clock.seconds(stream, work, count) / count)
    return [statistics.median(found) for found in times]


def peaks(clock: timing.Clock, seconds: float) -> tuple[float, float]:
    """Bytes per second of a large copy (read and written) and FLOP/s of a large matrix product in float32."""
    device = clock.device
    small = device.name.startswith("emu")  # nobody measures the speed of the emulator; it only has to run
    stream = device.stream()
    source, target = (device.empty(((1 << 16) if small else (1 << 26),)) for _ in range(2))
    stream.upload(source, np.zeros(source.shape, np.float32))
    # whichever is faster: on a CPU the kernel uses all cores, the copy one
    copying, _ = clock.repeated(stream, lambda: stream.copy(target, source), seconds / 2)
    scaling, _ = clock.repeated(stream, lambda: ops.scale(stream, "fp32", source, 1.0, target), seconds / 2)
    size = 64 if small else 4096
    lanes = device.lanes(size)
    shape = LinearShape(size, size, size, lanes)
    x, weight, y = (device.empty(s) for s in (shape.x, shape.weight, shape.y))
    random = np.random.default_rng(0)
    for array in (x, weight):
        stream.upload(array, random.standard_normal(array.shape, dtype=np.float32))
    workspace = device.empty((-(-device.kernels.linear_workspace(shape, "fp32") // 4),))
    multiplying, _ = clock.repeated(stream, lambda: _multiply(stream, shape, x, weight, y, workspace), seconds)
    return 2 * source.nbytes / min(copying + scaling), 2.0 * shape.macs / min(multiplying)


def _multiply(stream: Stream, shape: LinearShape, x: Any, weight: Any, y: Any, workspace: Any) -> None:
    ops.linear_forward(stream, shape, "fp32", x, weight, None, y, False, None, None, workspace)


def report(rows: list[Row]) -> str:
    header = ("layer and pass", "ms", "noise", "doubled", "GFLOP/s", "of peak", "GB/s", "of peak", "floor", "x cuDNN",
              "x cpu", "")  # fmt: skip

    def optional(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else form.format(factor * value)

    lines = []
    for row in rows:
        remarks = [f"not timed: {row.failed}"] if row.failed else []
        remarks += [f"no cuDNN: {row.cudnn_failed}"] if row.cudnn_failed else []
        if row.growth is not None and abs(row.growth / 2 - 1) > DOUBTFUL:
            remarks.append("time does not grow with the work")
        lines.append((
            f"{row.layer} {row.name}", optional(row.seconds, "{:.4f}", 1e3), optional(row.noise, "{:.0f} %", 100),
            optional(row.growth, "{:.2f}"), optional(row.gflops, "{:.1f}"),
            optional(row.compute_share, "{:.0f} %", 100), optional(row.gbytes, "{:.1f}"),
            optional(row.memory_share, "{:.0f} %", 100), optional(row.floor_share, "{:.0f} %", 100),
            optional(row.over_cudnn, "{:.2f}"), optional(row.over_cpu, "{:.2f}"), "; ".join(remarks),
        ))  # fmt: skip
    text = timing.table(header, lines)
    text += f"\nall together {1e3 * sum(row.seconds or 0.0 for row in rows):.1f} ms"
    missing = sum(row.failed is not None for row in rows)
    return text + (f" without the {missing} not timed" if missing else "")


if __name__ == "__main__":
    sys.exit(timing.command(main))
