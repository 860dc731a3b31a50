"""What a GPU does that the designs of our kernels assume: the rates of its parts, one by one.

Example: python -m benchmarks.machine --device cuda:0

Each group of rows answers a question, says what today's kernels assume and what follows where the measurement differs.
The kernels are in ``machine.cu``, which nvcc compiles for the device's architecture; what is unchanged since the last
time is taken from build/machine. A row compares its kernel's results with a loop on the host before the kernel is
timed, and a wrong result has no rate. Rates per clock divide by clocks of the multiprocessor, counted inside the
kernel; rates per second and launches by the device's events. A group runs in a process of its own, which ends itself
when its time is up, so that a kernel that hangs or breaks off costs the rest of its group and nothing else; the file is
written again behind every group. On ``emu`` the kernels are run with few trips and compared, and nothing is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import timing
from convnet.devices.protocol import DeviceError

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "benchmarks" / "machine.cu"
KERNELS = ROOT / "src" / "kernels"
CACHE = ROOT / "build" / "machine"


@dataclass(frozen=True)
class Row:
    name: str  # as in machine.cu
    assumed: float  # in the group's unit
    flops: float = 0.0  # of one wgmma


@dataclass(frozen=True)
class Group:
    question: str
    unit: str  # a key of UNITS
    assumes: str
    follows: str  # when the measurement differs
    rows: tuple[Row, ...]
    hopper: bool = False  # needs sm_90a


@dataclass(frozen=True)
class Measured:
    """What a row returns: the time of all its ``work`` (FLOPs, bytes or launches) on so many multiprocessors."""

    seconds: float
    clocks: float
    work: float
    multiprocessors: float


UNITS = {
    "bytes per clock and multiprocessor": lambda row, m: m.work / m.clocks / m.multiprocessors,
    "FLOP per clock and multiprocessor": lambda row, m: m.work / m.clocks / m.multiprocessors,
    "clocks per wgmma": lambda row, m: row.flops * m.clocks * m.multiprocessors / m.work,
    "TB/s": lambda row, m: m.work / m.seconds / 1e12,
    "us per launch": lambda row, m: 1e6 * m.seconds / m.work,
}


def _products(operands: str, least: int, reading_a: int, *columns: int) -> tuple[Row, ...]:
    """wgmma of 64 x N x 16: N / 2 clocks of arithmetic, or as long as the operands take to be read: A ``reading_a``
    clocks, B N / 4 at 128 bytes per clock."""
    return tuple(Row(f"wgmma {operands} {n}", max(n / 2, reading_a + n / 4, least), 2.0 * 64 * n * 16) for n in columns)


FULL_RATE = "N / 2 clocks (4096 FLOP per clock), or 16 + N / 4 where reading operands takes longer: below N = 64"
GROUPS = {
    "l2": Group(
        "What do tensor copies of rows of 128 bytes (strips of forward and backward data) and of 64 bytes (halves of "
        "the lanes in backward filter) bring a multiprocessor out of L2, when all of them read?",
        "bytes per clock and multiprocessor",
        "about 40, from published figures; at wgmma's full rate tiles of conv5 need 38, with shared weights 28, of two "
        "pixels 53",
        "below 28 the 13 x 13 layers wait for L2 although clusters share weights; above 53 tiles of two pixels are "
        "possible; 64-byte rows well below 128: whole lanes and fewer stages in backward filter",
        (Row("l2 128", 40.0), Row("l2 64", 40.0)),
        hopper=True,
    ),
    "multicast": Group(
        "What arrives at a multiprocessor when two blocks of a cluster send each other half of what both need?",
        "bytes per clock and multiprocessor",
        "at least the 53 of tiles of two pixels, which with shared weights take 37 from L2",
        "no more than without multicast: clusters bring nothing; 53 and more: tiles of two pixels are possible in them",
        (Row("multicast 128", 53.0), Row("multicast 64", 53.0)),
        hopper=True,
    ),
    "forward": Group(
        "How fast is wgmma with A along M and B along N (lanes and filters contiguous, 128-byte swizzle), by N?",
        "clocks per wgmma",
        FULL_RATE,
        "slower from N = 64 on: the layout costs, compare backward filter, try weights along the reduction; N / 2 "
        "below N = 64, too: narrow tiles are free",
        _products("forward", 0, 16, 8, 16, 32, 48, 64, 96, 128, 192, 256),
        hopper=True,
    ),
    "backward data": Group(
        "How fast is wgmma with A along M (128-byte swizzle) and B along the reduction (64-byte swizzle), by N?",
        "clocks per wgmma",
        FULL_RATE + "; 28 instead of 24 for the 48 channels of conv2",
        "slower than forward: 64 filters a stage, for the 128-byte swizzle; N = 48 slower than 28: channels on M, "
        "padded to 64",
        _products("backward data", 0, 16, 48, 64, 96, 128, 192, 256),
        hopper=True,
    ),
    "backward filter": Group(
        "How fast is wgmma with both operands along the reduction (64-byte swizzle), by N?",
        "clocks per wgmma",
        FULL_RATE,
        "slower than forward: whole lanes (128-byte swizzle) and fewer stages; only N = 144 or 240 slower: other "
        "numbers of taps and channels per tile",
        _products("backward filter", 0, 16, 48, 64, 96, 128, 144, 192, 240, 256),
        hopper=True,
    ),
    "registers": Group(
        "How fast is wgmma with A in registers, as no kernel of ours has it, and B along N?",
        "clocks per wgmma",
        "N / 2, at least 12: reading A from shared memory costs nothing from N = 64 on",
        "faster than forward at the N of our tiles: keep operands that are used again in registers",
        _products("registers", 12, 0, 48, 64, 96, 128, 192, 256),
        hopper=True,
    ),
    "warps": Group(
        "How fast are mma.sync (bf16 16 x 8 x 16, tf32 16 x 8 x 8) and FFMA from registers, in blocks like ours?",
        "FLOP per clock and multiprocessor",
        "mma.sync 62.9 % of the peaks of wgmma, of which whole kernels keep 80 %; kernels of FFMA 80 % of its 256",
        "the floors of tf32 and fp32 (benchmarks/floors.py) move by as much; mma.sync near wgmma's peak: tf32 needs "
        "no kernels of wgmma",
        (Row("mma bf16", 0.629 * 4096), Row("mma tf32", 0.629 * 2048), Row("ffma", 0.8 * 256)),
    ),
    "memory": Group(
        "How fast is device memory, read and written bytes together: the driver's copy, one by a kernel, 16 bytes a "
        "thread, and an update that reads 8 and writes 10 bytes per weight?",
        "TB/s",
        "4.3 for all of them (benchmarks/floors.py)",
        "floors of passes bound by memory move by as much; update below copy: weights in slices, as the fused update "
        "on Hopper has them; kernel below driver: more bytes in flight in the element-by-element kernels",
        (Row("copy driver", 4.3), Row("copy kernel", 4.3), Row("update", 4.3)),
    ),
    "launches": Group(
        "What does a launch cost between kernels that do nothing (small: 128 threads; large: 384 and 200 KB), in a "
        "stream or a graph, one after the other (plain) or by programmatic launch (early), and how long does the "
        "host queue one?",
        "us per launch",
        "1.5 (graph, early) to 4: 31 launches take 45 to 120 us of a step",
        "early no better than plain: no programmatic launches; a graph no better than a stream: only the host's time "
        "speaks for it; more than 4: fuse further",
        (
            *(Row(f"launch {size} stream {start}", 4.0) for size in ("small", "large") for start in ("plain", "early")),
            *(Row(f"launch {size} graph plain", 4.0) for size in ("small", "large")),
            *(Row(f"launch {size} graph early", 1.5) for size in ("small", "large")),
            Row("launch host", 4.0),
        ),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.machine", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:i or emu (default: cuda:0)")
    parser.add_argument("--seconds", type=float, default=0.1, help="of measuring, per row (default: 0.1)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)
    device = options.device
    architecture = _architecture(device)
    path = timing.target("machine", device, options.output)
    library = build(architecture)
    rows: list[dict[str, Any]] = []
    for name, group in GROUPS.items():
        if group.hopper and architecture not in ("90a", "emu"):
            answers: list[Answer] = [("needs sm_90a", None)] * len(group.rows)
        else:
            answers = run_group(name, library, int(device.partition(":")[2] or 0), options.seconds)
        found = [_result(name, row, *answer) for row, answer in zip(group.rows, answers, strict=True)]
        print(report(group, found), flush=True)
        rows += found
        timing.write("machine", device, {"architecture": architecture, "rows": rows}, str(path))
    print(f"written to {path}")
    return 0 if all(row["status"] in FINE for row in rows) else 1


def _architecture(device: str) -> str:
    """What the kernels are compiled for: "90a", "80", ... or "emu"."""
    kind, _, index = device.partition(":")
    if device == "emu":
        return "emu"
    if kind != "cuda" or not (index or "0").isdecimal():
        raise ValueError(f"machine: --device {device} is no GPU to measure; use cuda:i, or emu to see the kernels run")
    from convnet.devices import cuda as cuda

    gpus = cuda.describe()["gpus"]
    if int(index or 0) >= len(gpus):
        raise DeviceError(f"{device}: the driver shows {len(gpus)} GPUs, numbered from 0")
    digits = gpus[int(index or 0)]["compute_capability"].replace(".", "")
    return "90a" if digits == "90" else str(digits)


# ---- building ----


def build(architecture: str) -> Path:
    """The kernels as a shared library, for a GPU by nvcc or for the emulator by the C++ compiler."""
    options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-DCONVNET_EMU", "-fno-math-errno", "-ffp-contract=off"]
    if architecture == "emu":
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
        command = [compiler, *options, "-Wno-unknown-pragmas", "-pthread", "-x", "c++", str(SOURCE)]
        command += map(str, sorted((KERNELS / "emu").glob("*.cpp")))
        missing = "there is no C++ compiler on PATH to build the emulator's kernels with; install g++, or set CXX"
    else:
        compiler = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
        target = f"arch=compute_{architecture},code=sm_{architecture}"
        command = [compiler, "-std=c++17", "-O3", "-gencode", target, "-shared", "-Xcompiler=-fPIC,-O1", str(SOURCE)]
        missing = (
            "there is no nvcc on PATH to compile benchmarks/machine.cu with; install the CUDA toolkit, or set CUDACXX"
        )
    if compiler is None:
        raise DeviceError(f"machine: {missing}")
    content = hashlib.sha256(" ".join(map(str, command)).encode())
    for file in [SOURCE, *sorted(file for file in KERNELS.rglob("*") if file.suffix in (".cuh", ".hpp", ".cpp"))]:
        content.update(file.read_bytes())
    library = CACHE / f"machine-{architecture}-{content.hexdigest()[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
        if done.returncode:
            raise DeviceError(f"machine: {compiler} cannot compile benchmarks/machine.cu:\n{done.stdout}{done.stderr}")
        unfinished.replace(library)
    return library


# ---- running ----

FINE = ("measured", "ran", "needs sm_90a", "not in the emulator")
Answer = tuple[str, "Measured | None"]  # the status, and what was measured where that is "measured"


def run_group(name: str, library: Path, index: int, seconds: float, limit: float | None = None) -> list[Answer]:
    """What became of every row of a group, in their order."""
    group = GROUPS[name]
    limit = limit or 15 + 4 * seconds * len(group.rows)
    code = "import sys; from benchmarks import machine; machine.child(*sys.argv[1:])"
    command = [sys.executable, "-c", code, name, str(library), str(index), str(seconds), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    answers: list[Answer] = []
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        answers.append((answer["status"], Measured(*answer["numbers"]) if answer["status"] == "measured" else None))
    missing = len(group.rows) - len(answers)
    if missing and done.returncode == -signal.SIGALRM:
        answers.append((f"stopped after the {limit:.0f} s of its group", None))
    elif missing:
        error = (done.stderr.splitlines() or [""])[-1]
        answers.append((f"ended the process with exit code {done.returncode}: {error}", None))
    return answers + [("not reached", None)] * (missing - 1)


def child(name: str, library: str, index: str, seconds: str, limit: str) -> None:
    """Runs a group in this process, one line of JSON for each row as soon as it is done."""
    signal.setitimer(signal.ITIMER_REAL, float(limit))  # nobody catches it, so that it ends a call that hangs, too
    run = ctypes.CDLL(library).machine_run
    text, numbers_of = ctypes.c_char_p, ctypes.POINTER(ctypes.c_double)
    run.argtypes = [text, ctypes.c_int, ctypes.c_double, numbers_of, text, ctypes.c_int]
    for row in GROUPS[name].rows:
        numbers, error = (ctypes.c_double * 4)(), ctypes.create_string_buffer(1000)
        code = run(row.name.encode(), int(index), float(seconds), numbers, error, len(error))
        status = error.value.decode(errors="replace") if code else "measured" if numbers[0] else "ran"
        print(json.dumps({"status": status, "numbers": list(numbers)}), flush=True)


# ---- showing ----


def _result(name: str, row: Row, status: str, measured: Measured | None) -> dict[str, Any]:
    group = GROUPS[name]
    return {
        "group": name, "row": row.name, "question": group.question, "assumes": group.assumes, "follows": group.follows,
        "unit": group.unit, "assumed": row.assumed, "status": status,
        "measured": UNITS[group.unit](row, measured) if measured else None,
        "per_second": measured.work / measured.seconds if measured and group.unit != "us per launch" else None,
        "clock_hz": measured.clocks / measured.seconds if measured and measured.clocks else None,
    }  # fmt: skip


def report(group: Group, rows: list[dict[str, Any]]) -> str:
    """The question, what is assumed and what follows, and a line for each row."""
    lines = []
    for row in rows:
        cells = (f"{row['assumed']:.4g}", "", "", "", row["status"])
        if row["measured"] is not None:
            share = f"{row['measured'] / row['assumed']:.2f} x"
            rate = f"{row['per_second'] / 1e12:.4g}" if row["per_second"] else ""
            clock = f"{row['clock_hz'] / 1e6:.0f}" if row["clock_hz"] else ""
            cells = (cells[0], f"{row['measured']:.4g}", share, rate, clock)
        lines.append((row["row"], *cells))
    header = (group.unit, "assumed", "measured", "of it", "T/s", "MHz")
    text = f"{group.question}\n  assumed: {group.assumes}\n  if not:  {group.follows}\n"
    return text + timing.table(header, lines) + "\n"


if __name__ == "__main__":
    sys.exit(timing.command(main))
