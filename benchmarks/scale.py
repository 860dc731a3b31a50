"""Several processes: what crosses between them, what a step takes, and what that makes of many machines.

    python -m benchmarks.scale -n 2          starts two processes on this machine by mpirun, and is each of them

Measured between this machine's processes, ours beside PyTorch's DistributedDataParallel over gloo, taking turns: sums
of arrays that everybody gets, and a training step on the same images with the same network. Then, from the bytes of a
step and the bandwidth and latency that are given, by the formulas of ``convnet.network.traffic``: a step on many GPUs,
data parallel, and with the fully-connected layers cut ("one weird trick", Krizhevsky 2014).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pictures, timing
from benchmarks.our_network import mean_image
from convnet import Network
from convnet.devices.blas import share_cores
from convnet.devices.opening import open_device
from convnet.group.group import Group
from convnet.group.launch import joined, launched
from convnet.network.networks import network
from convnet.network.spec import NetworkSpec, parameter_shapes
from convnet.network.traffic import data_parallel, hybrid

SIZES = (1, 8, 32)  # MB that are summed up
MANY = (8, 16, 64, 256, 1024)  # GPUs
LR, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
PREDICTED = timing.RESULTS / "predict-bf16.json"
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=2, help="processes on this machine (default: 2)")
    parser.add_argument("--model", default="alexnet-tiny", help="network of the step (default: alexnet-tiny)")
    parser.add_argument("-b", "--batch-size", type=int, default=128, help="images of all processes (default: 128)")
    parser.add_argument("--turns", type=int, default=7, help="measured turns of each side (default: 7)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--bandwidth", type=float, default=50, help="of the model: GB/s of a GPU (default: 50)")
    parser.add_argument("--latency", type=float, default=2, help="of the model: us of a message (default: 2)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)
    if launched() is None and options.n > 1:
        beside = Path(sys.executable).with_name("mpirun")
        command = [str(beside) if beside.exists() else "mpirun", "-n", str(options.n), sys.executable, "-m"]
        return subprocess.run([*command, "benchmarks.scale", *(arguments or sys.argv[1:])]).returncode
    group = joined()
    share_cores(group.neighbours)
    race = Race(group, options.model, options.batch_size, options.turns, not options.no_torch)
    found = {"processes": group.size, "sums": race.sums(), "step": race.step()}
    found["model"] = model(network("alexnet"), 128, options.bandwidth * 1e9, options.latency * 1e-6)
    if group.rank == 0:
        print(report(found), flush=True)
        print(f"written to {timing.write('scale', 'cpu', found, options.output)}", flush=True)
    return 0


class Race:
    """Both sides on all processes, which do everything together."""

    def __init__(self, group: Group, model: str, batch_size: int, turns: int, with_torch: bool):
        self.group, self.turns = group, turns
        self.spec, self.batch_size = network(model), batch_size
        self.theirs = Theirs(group) if with_torch else None

    def turn_about(self, sides: dict[str, Callable[[], None]], calls: int) -> dict[str, list[float]]:
        """Seconds per call of each side, the slowest process's, turn by turn; one turn before is not counted."""
        found: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(self.turns + 1):
            for name, work in sides.items():
                self.group.everyone(None, "a turn")
                start = time.perf_counter()
                for _ in range(calls):
                    work()
                taken = (time.perf_counter() - start) / calls
                if turn:
                    found[name].append(max(self.group.everyone(taken, "a turn")))
        return found

    def sums(self) -> list[Row]:
        """Of arrays of so many MB: summed up over all processes, everybody getting the sum."""
        rows = []
        for megabytes in SIZES:
            sides: dict[str, Callable[[], None]] = {"ours": Sum(self.group, megabytes * 2**20 // 4).run}
            if self.theirs:
                sides["gloo"] = self.theirs.sum(megabytes * 2**20 // 4)
            seconds = self.turn_about(sides, 5)
            rows.append({"megabytes": megabytes, **{name: timed(values) for name, values in seconds.items()}})
        return rows

    def step(self) -> Row:
        """A whole step on one batch of all processes; images of the next one are there."""
        spec, group, n = self.spec, self.group, self.batch_size
        album = pictures.Album(spec.image_size)
        batches = pictures.batches(n, spec.classes, spec.image_size, spec.crop, 0)
        with Network(spec, "cpu", n, group=group) as net:
            net.set_input(mean_image(spec.crop))
            part, weights = net.share(n), net.weights()
            images = [album.images[batch.indices[part]] for batch in batches]
            calls = {"ours": 0, "DDP": 0}

            def ours() -> None:
                k = calls["ours"] = (calls["ours"] + 1) % len(batches)
                own = (values[part] for values in (batches[k].labels, batches[k].windows, batches[k].noise))
                net.train_step(images[k], *own, LR, MOMENTUM, WEIGHT_DECAY, None, n).get()

            sides = {"ours": ours}
            if self.theirs:
                there = [(b.images(album, spec.crop)[part], b.labels[part]) for b in batches]
                step = self.theirs.step(spec, weights, there)

                def ddp() -> None:
                    k = calls["DDP"] = (calls["DDP"] + 1) % len(batches)
                    step(k)

                sides["DDP"] = ddp
            before, seconds = group.sent, self.turn_about(sides, 3)
            steps = 3 * (self.turns + 1)
            sent = (group.sent - before) / steps
            gradients = 4 * sum(-(-int(np.prod(shape)) // 4) * 4 for shape in parameter_shapes(spec).values())
        return {
            "model": spec.name, "images": n, **{name: timed(values) for name, values in seconds.items()},
            "sent_bytes": sent, "by_formula": (2 * gradients / group.size + 4) * (group.size - 1),
            **({"ratio": ratio(seconds["DDP"], seconds["ours"])} if self.theirs else {}),
        }  # fmt: skip


class Sum:
    """Ours: every process sums up a part of what all have, and sends it to all, as ``network.reduction`` does."""

    def __init__(self, group: Group, count: int):
        from convnet.group.shares import Shares
        from convnet.network.layers import Parameter, Side
        from convnet.network.reduction import Bucket
        from convnet.network.spec import Pace

        device = open_device("cpu")
        self.group, self.shares = group, Shares.of(group, group.size)
        self.side, self.stream = Side(device, "fp32", 0, 1, True), device.stream()
        self.bucket = Bucket(self.side, [Parameter("all", device, (count,), Pace())], group, self.shares)

    def run(self) -> None:
        self.bucket.send(self.stream, self.group, self.shares)
        self.group.complete(self.stream)
        self.bucket.add_up([1] * self.shares.shards)
        self.bucket.spread(self.stream, self.group)
        self.group.complete(self.stream)


class Theirs:
    """PyTorch's processes: the same ones, over gloo on this machine."""

    def __init__(self, group: Group):
        import torch
        from torch import distributed

        self.torch, self.distributed, self.group = torch, distributed, group
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // group.neighbours, 1))
        meeting = group.from_first(lambda: Path(tempfile.mkdtemp()) / "gloo", "where gloo meets").as_uri()
        distributed.init_process_group("gloo", init_method=meeting, rank=group.rank, world_size=group.size)

    def sum(self, count: int) -> Callable[[], None]:
        values = self.torch.zeros(count)
        return lambda: self.distributed.all_reduce(values)

    def step(
        self, spec: NetworkSpec, weights: dict[str, np.ndarray], batches: list[tuple[np.ndarray, np.ndarray]]
    ) -> Callable[[int], Any]:
        """A step on one of ``batches``, cut-out images and labels of this process; returns its loss, a tensor."""
        from benchmarks.torch_network import TorchNetwork, Variant, on_device

        torch, mean = self.torch, mean_image(spec.crop)
        there = [(on_device(spec, x, mean, "cpu"), torch.from_numpy(y.astype(np.int64))) for x, y in batches]
        theirs = TorchNetwork(spec, weights, there, Variant(lrn="rewritten"), "cpu", "fp32", LR, MOMENTUM, WEIGHT_DECAY)

        class Module(torch.nn.Module):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                for name, values in theirs.parameters.items():
                    parameter = torch.nn.Parameter(values.detach())
                    self.register_parameter(name.replace(".", "_"), parameter)
                    theirs.parameters[name] = parameter

            def forward(self, x: Any, y: Any) -> Any:
                return theirs.loss(x, y)

        module = torch.nn.parallel.DistributedDataParallel(Module())
        named = list(module.named_parameters())
        groups = [
            {"params": [p for name, p in named if name.endswith("weight")], "weight_decay": WEIGHT_DECAY},
            {"params": [p for name, p in named if name.endswith("bias")], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, fused=True)

        def step(k: int) -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = module(*theirs.batches[k])
            loss.backward()
            optimizer.step()
            return loss

        return step


# ---- many machines


def model(spec: NetworkSpec, images: int, bandwidth: float, latency: float) -> Row:
    """Steps of ``images`` images per GPU in bfloat16: what crosses, by itself, beside what is predicted for computing.
    Where all of it goes on behind the computing a step takes the longer of both, where nothing does their sum."""
    computing = json.loads(PREDICTED.read_text())["seconds"]
    rows = []
    for n in MANY:
        row: Row = {"gpus": n}
        for name, traffic in (("data", data_parallel(spec, n)), ("hybrid", hybrid(spec, n, images, 2))):
            seconds = traffic.seconds(bandwidth, latency)
            row[name] = {
                "sent_bytes": traffic.bytes, "seconds": seconds,
                "step_seconds": [max(seconds, computing), seconds + computing],
            }  # fmt: skip
        rows.append(row)
    given = {"images": images, "bandwidth": bandwidth, "latency": latency, "computing_seconds": computing}
    return {"model": spec.name, **given, "rows": rows}


def timed(values: list[float]) -> Row:
    return {"seconds": statistics.median(values), "fastest": min(values), "slowest": max(values)}


def ratio(theirs: list[float], ours: list[float]) -> Row:
    """How much longer theirs takes, turn by turn."""
    each = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    return {"median": statistics.median(each), "least": each[0], "most": each[-1]}


def report(found: Row) -> str:
    lines = [f"{found['processes']} processes on this machine"]
    for row in found["sums"]:
        sides = ", ".join(f"{name} {1e3 * row[name]['seconds']:.2f} ms" for name in ("ours", "gloo") if name in row)
        lines.append(f"sum of {row['megabytes']} MB for everybody: {sides}")
    step = found["step"]
    for name in ("ours", "DDP"):
        if name in step:
            seconds = step[name]["seconds"]
            lines.append(f"{step['model']}, {step['images']} images, {name}: {1e3 * seconds:.1f} ms, "
                         f"{step['images'] / seconds:.0f} images/s")  # fmt: skip
    if "ratio" in step:
        lines.append("DDP / ours: {median:.2f} ({least:.2f} to {most:.2f})".format(**step["ratio"]))
    lines.append(f"each sends {step['sent_bytes']:,.0f} bytes a step, by the formula {step['by_formula']:,.0f}")
    told = found["model"]
    given = f"{told['bandwidth'] / 1e9:g} GB/s and {1e6 * told['latency']:g} us a message"
    computing = f"computing {1e3 * told['computing_seconds']:.2f} ms (predicted)"
    lines.append(f"\n{told['model']} on GPUs, {told['images']} images each in bf16, {given}; {computing}:")
    header = ["GPUs", "data parallel ms", "of it sent MB", "hybrid ms", "of it sent MB"]
    body = [
        [str(row["gpus"]), *(text for name in ("data", "hybrid") for text in
         (f"{1e3 * row[name]['seconds']:.2f}", f"{row[name]['sent_bytes'] / 1e6:.0f}"))]
        for row in told["rows"]
    ]  # fmt: skip
    return "\n".join([*lines, timing.table(header, body)])


if __name__ == "__main__":
    sys.exit(timing.command(main))
