"""What the benchmarks share: clocks, medians and their noise, a description of the machine, and the JSON files."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import IGNORED
from convnet.devices import switches
from convnet.devices.protocol import Device, DeviceError, Stream
from convnet.output import versions
from convnet.output.files import write_atomically

RESULTS = Path(__file__).parent / "results"
COPIED = 1 << 26  # floats in a copy that keeps a GPU busy: about 0.13 ms of an H200
MOST_COPIES = 256  # with the calls still fewer than a GPU takes into its queue
BLOCK, MOST_CALLS = 5e-4, 128  # seconds, and calls, between two marks


def command(work: Callable[[], int]) -> int:
    """Runs a benchmark; a mistake in its options or a missing device is one line and an exit code, as in cli.py."""
    try:
        return work()
    except (ValueError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 6 if isinstance(error, DeviceError) else 2


class Clock:
    """Seconds that work takes on a stream of ``device``: by its own clock, with marks in that stream, where it has one.

    A GPU is kept busy with copies until all calls are queued, so that the host's time does not count, and makes one
    call more in front of the first mark: caches are as warm as repeating the same call leaves them.
    """

    def __init__(self, device: Device):
        self.device, self.marks = device, device.name.startswith("cuda")
        self._copies = 1  # that keep it busy; as many more as it turns out to need
        self._buffers = [device.empty((COPIED,)) for _ in range(2)] if self.marks else []

    def keep_busy(self, stream: Stream) -> None:
        """Gives a GPU something to do on ``stream``."""
        for _ in range(self._copies if self.marks else 0):
            stream.copy(*self._buffers)

    def longer(self) -> bool:
        """From now on twice as long; False, and as in the beginning, where that is more than anybody should need."""
        self._copies = 2 * self._copies if self._copies < MOST_COPIES else 1
        return self._copies > 1

    def seconds(self, stream: Stream, work: Callable[[], None], calls: int = 1) -> float:
        """Of ``calls`` calls of ``work``, which queues on ``stream``.

        Raises ``RuntimeError`` where a GPU cannot be kept busy until the last one is queued.
        """
        if not self.marks:
            self.device.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                work()
            self.device.synchronize()
            return time.perf_counter() - start
        while True:
            self.device.synchronize()
            self.keep_busy(stream)
            work()
            before: Any = stream.record()
            for _ in range(calls):
                work()
            late = before.event.query()
            after: Any = stream.record()
            self.device.synchronize()
            if not late:
                return float(after.elapsed_since(before)) / 1e3
            if not self.longer():
                raise RuntimeError(
                    f"{self.device.name} came to the first of {calls} calls before the last was queued, however busy "
                    "it was kept: the time would be the host's"
                )

    def calls(self, stream: Stream, work: Callable[[], None]) -> int:
        """How many calls make a block, by a first one, which warms up: on a GPU an even number, so that what the marks
        cost does not show; elsewhere one.
        """
        once = self.seconds(stream, work)
        return 2 * min(MOST_CALLS // 2, math.ceil(BLOCK / 2 / once)) if self.marks else 1

    def repeated(
        self, stream: Stream, work: Callable[[], None], seconds: float = 1.0, least: int = 3, most: int = 50
    ) -> tuple[list[float], float | None]:
        """Seconds per call of every block; and on a GPU how many times as long a block takes as half of one, in turns:
        2 where nothing but the work is timed.

        For about ``seconds``, and at least ``least`` and at most ``most`` blocks.
        """
        calls = self.calls(stream, work)
        end = time.perf_counter() + seconds
        blocks: list[float] = []
        halves: list[float] = []
        while len(blocks) < least or (len(blocks) < most and time.perf_counter() < end):
            if self.marks:
                halves.append(self.seconds(stream, work, calls // 2))
            blocks.append(self.seconds(stream, work, calls))
        growth = statistics.median(blocks) / statistics.median(halves) if halves else None
        return [block / calls for block in blocks], growth


def in_turns(
    sides: Sequence[tuple[Callable[[int], None], Callable[[], None]]], turns: int, block: float
) -> list[list[float]]:
    """Seconds per call of every side, ``turns`` times, the sides one after the other in each turn.

    A side is a function of the number of the call, and one that waits until its calls are done. A turn is as many calls
    as fill ``block`` seconds, at least one. The first call and one turn go unmeasured.
    """
    counts = []
    for work, wait in sides:
        work(0)
        wait()
        start = time.perf_counter()
        work(1)
        wait()
        counts.append(max(1, round(block / (time.perf_counter() - start))))
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(turns + 1):
        for (work, wait), count, found in zip(sides, counts, times, strict=True):
            start = time.perf_counter()
            for number in range(count):
                work(number)
            wait()
            if turn:
                found.append((time.perf_counter() - start) / count)
    return times


def reason(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def noise(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / middle


@functools.cache
def description(device: str) -> dict[str, Any]:
    """Where and on what the numbers were taken, as things were when this was first asked for."""
    from threadpoolctl import threadpool_info

    blas = [f"{d['internal_api']} {d['version']} {d.get('architecture', '')}".strip() for d in threadpool_info()
            if d["user_api"] == "blas"]  # fmt: skip
    found: dict[str, Any] = {
        "device": device,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "blas": blas,
        "environment_ignored": IGNORED,
        "off": [part for part, on in switches.states().items() if not on],
        "versions": versions.versions(),
    }
    if device.startswith("cuda"):
        from convnet.devices import cuda as cuda

        found["cuda"] = cuda.describe()
        found["clocks"] = _clocks()
    return found


def _clocks() -> str:
    """What nvidia-smi says of clocks, power and temperature; "" where it says nothing."""
    query = ["--query-gpu=name,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"]
    try:
        done = subprocess.run(["nvidia-smi", *query, "--format=csv"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _commit() -> str:
    """The commit of this checkout, "+" behind it when files differ from it; "" outside a checkout."""
    root = Path(__file__).parent.parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def target(name: str, device: str, path: str | None) -> Path:
    """The file that results go to: ``path``, or one in the results folder that says what and when."""
    return Path(path) if path else RESULTS / f"{name}-{device.replace(':', '')}-{time.strftime('%Y%m%d-%H%M%S')}.json"


def write(name: str, device: str, results: dict[str, Any], path: str | None) -> Path:
    """Writes ``results`` with the machine's description to ``target(...)``, whole or not at all; returns the file."""
    file = target(name, device, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        file, (json.dumps({"benchmark": name, **description(device), **results}, indent=1) + "\n").encode()
    )
    return file


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
