"""How long a training step, or inference, will take on an H200, before anyone has measured it: what binds each kernel.

Examples: python -m benchmarks.predict --precision bf16 -b 128
          python -m benchmarks.predict --part forward -b 8

Needs no GPU. Which kernels are started, with which grids, the launchers themselves say
(``benchmarks/launches.py``); how many instructions of each kind they execute was counted from their machine code by
``tools/count_instructions.py`` and is committed for steps of 128 images of ``alexnet`` and inference of up to 8 of them
(tests/golden/instructions.json); all else is counted when it is asked for, which takes a minute or two, nvcc and
nvdisasm. A kernel takes the time of the resource that it keeps busy the longest, on the multiprocessor with the most
work, and a constant for its start. One kernel runs at a time.

With ``--beside FILE.json``, written by ``benchmarks.timeline`` on a GPU, measured times stand beside the predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import floors, launches, timing
from benchmarks.launches import MULTIPROCESSORS, Launch
from convnet.kernels.precision import PRECISIONS
from convnet.network.networks import network
from convnet.network.spec import NetworkSpec

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "instructions.json"
COUNTING = ROOT / "tools" / "count_instructions.py"
WARP = 32

# Assumptions, none of them measured by this project. Rates are what well-tuned programs reach on an H200: those of
# floors.py, and the others in proportion to them.
CLOCK = 1.755e9  # under load; what peaks are computed with
TENSOR = floors.FLOPS["bf16"] / (MULTIPROCESSORS * 4096 * CLOCK)  # of 4096 FLOP a clock: power limits the clock
MMA_SYNC = 0.629  # of what wgmma reaches: published averages for Hopper
FFMA_SHARE = 0.94  # of the instructions of the program whose FFMA reach the rate of floors.py
ISSUE = floors.FLOPS["fp32"] / (MULTIPROCESSORS * 256 * CLOCK) / FFMA_SHARE  # of the slots for instructions
L2_BYTES = 40 * TENSOR  # per clock and multiprocessor: 40 at the rate at which wgmma runs, from published figures
SHARED_BYTES = 128  # per clock and multiprocessor
START = 1e-6  # seconds from a kernel to the next in a graph, with programmatic launch: filling and draining included
LATENCY = 0.8e-6  # seconds of a block that waits for memory once

# Instructions of a warp per clock and multiprocessor (CUDA C++ Programming Guide, throughput of arithmetic on 9.0);
# those that are in none are bound by issue alone.
ISSUED = 4.0
PIPES = {
    "integer": (2.0, (
        "IADD3", "VIADD", "LOP3", "SHF", "LEA", "ISETP", "SEL", "PRMT", "IABS", "VIMNMX", "VIADDMNMX", "FMNMX", "FSETP",
        "FSEL", "F2FP", "I2IP", "PLOP3", "P2R", "R2P", "I2FP",
    )),
    "multiply": (2.0, ("IMAD",)),
    "special": (0.5, ("MUFU", "F2I", "I2F", "FRND")),
    "exchange": (1.0, ("LDS", "STS", "LDSM", "STSM", "SHFL", "LDG", "STG", "LDGSTS")),
}  # fmt: skip


@dataclass
class Prediction:
    """Of one launch. ``rounds``: how often all multiprocessors are filled with as many blocks as fit."""

    call: int  # of an op, from 0: it may start several kernels
    layer: str
    op: str
    kernel: str
    seconds: float
    bound: str
    blocks: int
    blocks_at_once: int  # per multiprocessor
    rounds: float
    instructions: float
    ffma: float
    tensor_clocks: float  # of the busiest multiprocessor
    bytes_l2: float
    bytes_memory: float
    resources: dict[str, float] = field(default_factory=dict)  # seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.predict", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="alexnet", help="network (default: alexnet)")
    parser.add_argument("-b", "--batch-size", type=int, default=128, help="images (default: 128)")
    parser.add_argument(
        "--part", choices=launches.PARTS, default="step", help="a training step, or inference (default: step)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the kernels (default: bf16)")
    parser.add_argument(
        "--beside", metavar="FILE.json", help="measured by benchmarks.timeline: compares, writes nothing"
    )
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)
    if options.beside:
        measured = read_timeline(options.beside)
        predicted = work("step", network(measured["model"]), measured["batch_size"], measured["precision"])
        print(beside(predicted, measured))
        return 0
    results = work(options.part, network(options.model), options.batch_size, options.precision)
    print(report(results))
    print(f"written to {timing.write('predict', 'none', results, options.output)}")
    return 0


def work(part: str, spec: NetworkSpec, batch_size: int, precision: str) -> dict[str, Any]:
    """Predictions for all kernels of a training step, or of inference, and their sum.

    Raises ``ValueError`` where the instructions of these have not been counted.
    """
    started = launches.of(part, spec, batch_size, precision)
    counted = counts(part, spec.name, batch_size, precision)
    if len(started) != len(counted):
        raise ValueError(f"{part} has {len(started)} launches, {len(counted)} were counted; {REMEDY}")
    predicted = []
    for launch, count in zip(started, counted, strict=True):
        there = tuple(count["grid"]), tuple(count["block"]), count["shared_bytes"]
        here = launch.grid, launch.block, launch.shared_bytes
        if here != there or not launches.is_kernel(launch.kernel, count["kernel"]):
            raise ValueError(
                f"{launch.layer} {launch.op} starts {launch.kernel} with grid, block and shared memory {here}, counted "
                f"was {count['kernel']} with {there}; {REMEDY}"
            )
        predicted.append(predict(launch, count))
    return {
        "part": part, "model": spec.name, "batch_size": batch_size, "precision": precision,
        "seconds": sum(x.seconds for x in predicted),
        "floor_seconds": floors.total(floors.plan(spec, batch_size, precision, part), precision),
        "launches": len(predicted),
        "assumptions": {
            "clock": CLOCK, "tensor_share": TENSOR, "mma_sync_share": MMA_SYNC, "issue_share": ISSUE,
            "l2_bytes_per_clock": L2_BYTES, "memory_bytes_per_second": floors.BYTES, "start_seconds": START,
            "latency_seconds": LATENCY,
        },
        "kernels": [asdict(x) for x in predicted],
    }  # fmt: skip


REMEDY = "run python tools/count_instructions.py --update where nvcc and nvdisasm are"


def key(part: str, model: str, batch_size: int, precision: str) -> str:
    return f"{part} of {model}, {batch_size} images, {precision}"


def counts(part: str, model: str, batch_size: int, precision: str) -> list[dict[str, Any]]:
    """What every launch of such work executes: committed, or counted now."""
    images, known = launches.computed(part, batch_size), json.loads(GOLDEN.read_text())["launches"]
    wanted = key(part, model, images, precision)
    if wanted in known:
        found: list[dict[str, Any]] = known[wanted]
        return found
    print(f"counting the instructions of: {wanted}", file=sys.stderr, flush=True)
    command = [sys.executable, str(COUNTING), "--of", part, model, str(images), precision]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"the instructions of {wanted} cannot be counted here "
            f"({(done.stderr.strip().splitlines() or ['no reason given'])[-1]}); without a compiler there are: "
            f"{'; '.join(known)}"
        )
    counted: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return counted


def predict(launch: Launch, count: dict[str, Any]) -> Prediction:
    """``count``: an entry of instructions.json."""
    instructions: dict[str, float] = count["instructions"]
    # Of all work, what the busiest multiprocessor does. Blocks are handed out one by one; where there are no more than
    # multiprocessors, the heaviest one decides.
    blocks = launch.blocks
    share = math.ceil(blocks / MULTIPROCESSORS) / blocks if blocks > MULTIPROCESSORS else count["heaviest"] / blocks
    at_once = blocks_at_once(launch, count["registers"])
    rounds = blocks / (MULTIPROCESSORS * at_once)
    moved, memory = count["loaded"] + count["stored"], memory_bytes(launch, count)

    clocks = {"issue": sum(instructions.values()) / ISSUED / ISSUE}
    for pipe, (rate, names) in PIPES.items():
        clocks[pipe] = of(instructions, *names) / rate / ISSUE
    clocks["shared"] = shared_bytes(instructions) / SHARED_BYTES
    wgmma, mma_sync = tensor_clocks(instructions)
    clocks["tensor"] = (wgmma + mma_sync / MMA_SYNC) / TENSOR
    clocks["l2"] = moved / L2_BYTES
    resources = {name: share * value / CLOCK for name, value in clocks.items()}
    resources["memory"] = memory / floors.BYTES
    resources["latency"] = LATENCY * math.ceil(rounds)
    longest = max(resources, key=lambda name: resources[name])
    return Prediction(
        launch.call, launch.layer, launch.op, count["kernel"],
        START + resources[longest], longest if resources[longest] > START else "launch",
        blocks, at_once, round(rounds, 3), sum(instructions.values()), instructions.get("FFMA", 0),
        share * (wgmma + mma_sync), moved, memory, {name: value for name, value in resources.items() if value},
    )  # fmt: skip


def of(instructions: dict[str, float], *names: str) -> float:
    """How many there are with these names, whatever follows a dot."""
    return sum(n for kind, n in instructions.items() if kind.partition(".")[0] in names)


def tensor_clocks(instructions: dict[str, float]) -> tuple[float, float]:
    """Of all products by wgmma, and of all by mma.sync, at the peak rate. Four warps issue a wgmma together; it takes
    the time of its multiplications, or that in which its operands leave shared memory: 64 x 16 values, unless they come
    from registers (".R"), and 16 x N at 128 bytes a clock. In tf32 terms are 8, of twice the bytes at half the rate."""
    wgmma = 0.0
    for kind, n in instructions.items():
        if kind.startswith("HGMMA.64x"):
            columns = int(kind.split("x")[1])
            wgmma += n / 4 * max(columns / 2, (0 if kind.endswith(".R") else 16) + columns / 4)
    return wgmma, of(instructions, "HMMA")  # 2048 FLOP in tf32, 4096 in bf16: one clock each


def shared_bytes(instructions: dict[str, float]) -> float:
    """That threads read and write, without conflicts. Four matrices of 8 x 8 are 512 bytes."""
    found = 512 * of(instructions, "LDSM", "STSM")
    for kind, n in instructions.items():
        name, _, bits = kind.partition(".")
        if name in ("LDS", "STS", "LDGSTS"):
            found += n * WARP * int(bits) / 8
    return found


def memory_bytes(launch: Launch, count: dict[str, Any]) -> float:
    """Nothing is taken to be in the second level of cache from the kernel before: operands are read once, and what is
    stored is written. Parts of sums, which are no operand, are what a kernel loads."""
    stored: float = count["stored"]
    if not launch.bytes:
        return count["loaded"] + stored
    return min(count["loaded"], max(launch.bytes - stored, 0.0)) + stored


def blocks_at_once(launch: Launch, registers: int) -> int:
    """How many blocks fit on a multiprocessor of sm_90."""
    warps = -(-launch.threads // WARP)
    per_warp = -(-registers * WARP // 256) * 256
    return max(1, min(32, 64 // warps, 65536 // (per_warp * warps), 233472 // (launch.shared_bytes + 1024)))


# ---- showing


def report(results: dict[str, Any]) -> str:
    rows = [
        (
            f"{x['layer']} {x['kernel']}".strip(), f"{1e6 * x['seconds']:.1f}", x["bound"], f"{x['blocks']}",
            f"{x['rounds']:.2f}", f"{x['instructions'] / 1e6:.2f}", f"{x['tensor_clocks']:.0f}",
            f"{x['bytes_l2'] / 1e6:.1f}", f"{x['bytes_memory'] / 1e6:.1f}",
        )
        for x in results["kernels"]
    ]  # fmt: skip
    header = ("layer and kernel", "us", "bound", "blocks", "rounds", "M instr.", "tensor clocks", "MB L2", "MB memory")
    seconds: dict[str, float] = {}
    for x in results["kernels"]:
        seconds[x["bound"]] = seconds.get(x["bound"], 0.0) + x["seconds"]
    shares = sorted(seconds.items(), key=lambda item: -item[1])
    return "\n".join([
        timing.table(header, rows),
        "bound by " + ", ".join(f"{name} {1e6 * value:.0f} us" for name, value in shares),
        f"{results['launches']} launches, {1e3 * results['seconds']:.3f} ms (predicted), floor "
        f"{1e3 * results['floor_seconds']:.3f} ms; {results['batch_size'] / results['seconds']:,.0f} images/s",
    ])  # fmt: skip


def read_timeline(path: str) -> dict[str, Any]:
    """What ``benchmarks.timeline`` wrote. Raises ``ValueError`` for other files."""
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; name a file of benchmarks.timeline") from error
    if not isinstance(found, dict) or found.get("benchmark") != "timeline":
        raise ValueError(f"{path} is not a timeline; name a file of benchmarks.timeline")
    return found


def beside(predicted: dict[str, Any], measured: dict[str, Any]) -> str:
    """Calls of ops in order, with predicted and measured microseconds, and the largest disagreement."""
    calls: list[list[Any]] = []  # layer, op, seconds
    for x in predicted["kernels"]:
        if x["call"] == len(calls):
            calls.append([x["layer"], x["op"], 0.0])
        calls[-1][2] += x["seconds"]
    found = [(x["layer"], x["kernel"]) for x in measured["launches"]]
    if found != [(layer, op) for layer, op, _ in calls]:
        raise ValueError("the measured step does not consist of the ops of this program; measure it anew")
    pairs = [
        (f"{layer} {op}".strip(), p, x["seconds"])
        for (layer, op, p), x in zip(calls, measured["launches"], strict=True)
    ]
    rows = [(name, f"{1e6 * p:.1f}", f"{1e6 * m:.1f}", f"{m / p:.2f}") for name, p, m in pairs]
    total = "all", f"{1e6 * sum(p for _, p, _ in pairs):.1f}", f"{1e6 * sum(m for *_, m in pairs):.1f}", ""
    name, p, m = max(pairs, key=lambda pair: abs(pair[1] - pair[2]))
    return "\n".join([
        timing.table(("layer and op", "predicted us", "measured us", "ratio"), [*rows, total]),
        f"largest disagreement: {name}, predicted {1e6 * p:.1f} us, measured {1e6 * m:.1f} us",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(timing.command(main))
