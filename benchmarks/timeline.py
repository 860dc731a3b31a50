"""Where the time of one training step goes: every kernel in order, by layer, beside the least time it could take.

Example: python -m benchmarks.timeline --device cuda:0 --precision bf16 -b 128 --figure timeline.png

Kernels are launched one by one, not as a captured graph, between two marks of the device's clock each; a GPU is kept
busy meanwhile, so that it finds all launches queued and gaps are its own. A kernel's floor is the least time for its
own operands, each read or written once (``benchmarks/floors.py``; on a CPU by the peaks of a copy and a matrix product
measured in the same run), so that what fusing would save does not show there, but in the plan's floor at the end.

Nothing in the network knows of this. All streams are watched by putting a function in front of their ``launch``, and a
kernel belongs to the layer whose method launched it, however many steps of how many layers it does at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks import floors, ops, pictures, timing
from benchmarks.our_network import OurNetwork
from convnet import Network
from convnet.devices.opening import open_device
from convnet.devices.protocol import Array, Device, Event, Stream
from convnet.kernels.precision import PRECISIONS
from convnet.network.layers import LayerOnDevice
from convnet.output.figures import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, YELLOW, check_path

# the first of these that a kernel's name contains is its kind
KINDS = {
    "ingest": ("images in", YELLOW), "update": ("update in the gradient", PURPLE), "sgd": ("update", RED),
    "weight": ("copies of weights", RED), "conv": ("convolution", BLUE), "linear": ("fully connected", GREEN),
    "lrn": ("LRN, pooling", ORANGE), "pool": ("LRN, pooling", ORANGE), "": ("element by element", SKY),
}  # fmt: skip
REPEATS = 5
LARGEST = 3  # gaps that are named


@dataclass
class Launch:
    """A kernel at work; times in seconds from the start of the step."""

    kernel: str
    layer: str  # "" where no layer launched it
    flops: float
    bytes: float
    start: float = 0.0
    seconds: float = 0.0
    floor: float | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """Name and colour."""
        return next(kind for part, kind in KINDS.items() if part in self.kernel)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.timeline", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, emu[:i] or cuda:i (default: cpu)")
    parser.add_argument("--model", default="alexnet", help="network (default: alexnet)")
    parser.add_argument("-b", "--batch-size", type=int, default=32, help="images (default: 32)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the kernels (default: fp32)")
    parser.add_argument("--figure", metavar="FILE.png", help="draw it, too (.png or .svg)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)
    figure = check_path(options.figure) if options.figure else None
    with Network(options.model, options.device, options.batch_size, options.precision) as net:
        results = measure(net)
        device = ",".join(net.devices)
    path = timing.write("timeline", device, results, options.output)
    print(report(results))
    if figure:
        draw(results, device).savefig(figure, dpi=120, metadata={"Software": None} if figure.suffix == ".png" else None)
    print(f"written to {path}")
    return 0


def measure(net: Network) -> dict[str, Any]:
    """The launches of one step, of several the one that took the median time."""
    n, device = net.batch_size, net._sides[0].device
    size = net.spec.image_size
    ours = OurNetwork(net, pictures.Album(size), pictures.batches(n, net.spec.classes, size, net.spec.crop, seed=n))
    net._graphs.capturing = False  # what is launched as a whole cannot be watched
    ours.step(0)
    ours.synchronize()
    clock, stream = timing.Clock(device), net._sides[0].stream
    runs: list[tuple[float, int, list[Launch]]] = []
    while len(runs) < (1 if device.name.startswith("emu") else REPEATS):
        ours.synchronize()
        clock.keep_busy(stream)
        with recording(net, stream.record()) as recorded:
            ours.step(len(runs))
        if not recorded.waits or not clock.longer():
            runs.append((sum(launch.seconds for launch in recorded.launches), recorded.waits, recorded.launches))
    total, waits, launches = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
    rates = _rates(device, net.precision)
    for launch in launches:
        if rates and launch.bytes:
            launch.floor = max(launch.flops / rates[0], launch.bytes / rates[1])
    plan = floors.total(floors.plan(net.spec, n, net.precision), net.precision)
    return {
        "model": net.spec.name, "batch_size": n, "precision": net.precision,
        "waits_for_launches": waits, "seconds": max(x.start + x.seconds for x in launches),
        "kernel_seconds": total, "kernel_floor_seconds": sum(x.floor or 0.0 for x in launches) if rates else None,
        "plan_floor_seconds": plan if device.name.startswith("cuda") else None,
        "launches": [asdict(launch) for launch in launches],
    }  # fmt: skip


def _rates(device: Device, precision: str) -> tuple[float, float] | None:
    """FLOP/s and bytes per second that floors are made of; None for the emulator, whose speed says nothing."""
    if device.name.startswith("cuda"):
        return floors.FLOPS[precision], floors.BYTES
    return None if device.name.startswith("emu") else ops.peaks(timing.Clock(device), 0.5)[::-1]


# ---- watching ----


# names of the arguments of every kernel, the same on all devices
SIGNATURES = {op: [name for name, *_ in rows] for op, rows in open_device("cpu").kernels.signatures().items()}


def work(kernel: str, arguments: tuple[Any, ...]) -> tuple[float, float]:
    """FLOPs, and bytes of all operands; weights that are updated count twice, scratch memory does not count."""
    if kernel == "sgd_many":
        return 0.0, sum(work("sgd", tensor)[1] for tensor in arguments[0])
    given = dict(zip(SIGNATURES.get(kernel, []), arguments, strict=False))
    arrays = {name: value for name, value in given.items() if isinstance(value, Array) and name != "workspace"}
    sizes = {name: float(array.nbytes) for name, array in arrays.items()}
    if "index" in arrays:  # reads these images of all that are kept
        for name in ("luma", "cb", "cr"):
            sizes[name] *= arrays["index"].size / arrays[name].shape[0]
    if "sgd" in kernel or "update" in kernel:
        for name in ("weight", "velocity", "bias"):
            sizes[name] = 2 * sizes.get(name, 0.0)
    return 2.0 * getattr(given.get("shape"), "macs", 0), sum(sizes.values())


def current_layer() -> str:
    """The name of the layer in one of whose methods we are, "" in none."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, LayerOnDevice):
            return owner.name
        frame = frame.f_back
    return ""


class Recorded:
    """``launches`` in their order, and how many of them a GPU had to wait for because they came late."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.waits = 0


@contextmanager
def recording(net: Network, start: Event) -> Iterator[Recorded]:
    """Notes what is launched on any stream of the network's devices, on each of them behind ``start``; times are there
    when the block is left.
    """
    kind: Any = type(net._sides[0].stream)
    launch, recorded = kind.launch, Recorded()
    marks: list[tuple[Any, Any]] = []
    started: set[Stream] = set()

    def watched(stream: Stream, kernel: Callable[..., None], *arguments: Any) -> None:
        found = Launch(kernel.__name__, current_layer(), *work(kernel.__name__, arguments))
        recorded.launches.append(found)
        if stream not in started:  # on this one a GPU may have nothing to do yet
            started.add(stream)
            stream.wait(start)
        before: Any = stream.record()
        if hasattr(before, "elapsed_since"):
            launch(stream, kernel, *arguments)
            recorded.waits += before.event.query()
            marks.append((before, stream.record()))
            return

        def timed(*handles: Any) -> None:
            found.start = time.perf_counter()
            kernel(*handles)
            found.seconds = time.perf_counter() - found.start

        launch(stream, timed, *arguments)

    kind.launch = watched
    try:
        yield recorded
    finally:
        kind.launch = launch
    for side in net._sides:
        side.device.synchronize()
    for found, (before, after) in zip(recorded.launches, marks, strict=False):
        found.start = before.elapsed_since(marks[0][0]) / 1e3
        found.seconds = after.elapsed_since(before) / 1e3
    first = min((found.start for found in recorded.launches), default=0.0)
    for found in recorded.launches:
        found.start -= first


# ---- showing ----


def report(results: dict[str, Any]) -> str:
    """One line per launch, the sums, and the largest gaps to the floor."""
    launches = [Launch(**launch) for launch in results["launches"]]
    lines = [
        (
            f"{x.layer} {x.kernel}".strip(), f"{1e3 * x.start:.3f}", f"{1e3 * x.seconds:.3f}",
            f"{100 * x.seconds / results['kernel_seconds']:.1f} %",
            "" if x.floor is None else f"{1e3 * x.floor:.3f}", "" if x.floor is None else f"{share(x):.0f} %",
        )
        for x in launches
    ]  # fmt: skip
    text = timing.table(("layer and kernel", "start ms", "ms", "of step", "floor ms", "reached"), lines)
    text += "\n" + "; ".join(f"{name} {100 * part:.1f} %" for name, (part, _) in kinds(launches).items())
    text += f"\nall kernels {1e3 * results['kernel_seconds']:.3f} ms"
    if results["kernel_floor_seconds"]:
        text += f", their floors {1e3 * results['kernel_floor_seconds']:.3f} ms"
    if results["plan_floor_seconds"]:
        text += f", the floor of a step with everything fused {1e3 * results['plan_floor_seconds']:.3f} ms"
    gaps = sorted((x for x in launches if x.floor is not None), key=lambda x: x.floor - x.seconds)[:LARGEST]
    if gaps:
        named = (f"{x.layer} {x.kernel} {1e3 * (x.seconds - x.floor):.3f} ms" for x in gaps)
        text += f"\nlargest gaps to the floor: {', '.join(named)}"
    if results["waits_for_launches"]:
        text += f"\nthe device waited for {results['waits_for_launches']} launches: gaps are not all its own"
    return text


def share(launch: Launch) -> float:
    """Of the floor that is reached, in per cent."""
    return 100 * launch.floor / launch.seconds if launch.floor and launch.seconds else 0.0


def kinds(launches: list[Launch]) -> dict[str, tuple[float, str]]:
    """Share of all kernels' time and colour of every kind, largest first."""
    total = sum(x.seconds for x in launches) or 1.0
    found: dict[str, tuple[float, str]] = {}
    for x in launches:
        name, colour = x.kind
        found[name] = (found.get(name, (0.0, ""))[0] + x.seconds / total, colour)
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def draw(results: dict[str, Any], device: str) -> Figure:
    """A strip of the whole step in time, and under it a bar per kernel, in order, with its floor as a black mark."""
    launches = [Launch(**launch) for launch in results["launches"]]
    figure = Figure(figsize=(10, 1.8 + 0.17 * len(launches)), layout="constrained")
    strip, bars = figure.subplots(2, 1, height_ratios=[0.5, 0.17 * len(launches)])
    for x in launches:
        strip.barh(0, 1e3 * x.seconds, left=1e3 * x.start, color=x.kind[1], edgecolor="white", linewidth=0.3)
    strip.set_yticks([])
    strip.set_xlim(0, 1e3 * results["seconds"])
    strip.set_xlabel("milliseconds from the start of the step", fontsize=8)
    strip.tick_params(labelsize=8)
    title = f"{results['model']}, {results['batch_size']} images, {results['precision']} on {device}"
    strip.set_title(f"one training step of {title}: {1e3 * results['kernel_seconds']:.3f} ms in kernels", fontsize=10)
    longest = 1e3 * max(x.seconds for x in launches)
    for row, x in enumerate(launches):
        bars.barh(row, 1e3 * x.seconds, color=x.kind[1], height=0.75)
        note = f"{1e3 * x.seconds:.3g} ms"
        end = 1e3 * x.seconds
        if x.floor is not None:
            bars.plot([1e3 * x.floor] * 2, [row - 0.45, row + 0.45], color="black", linewidth=1.5)
            note += f", {share(x):.0f} %"
            end = max(end, min(1e3 * x.floor, longest))
        bars.text(end + longest / 100, row, note, va="center", fontsize=7)
    bars.set_yticks(range(len(launches)), [f"{x.layer}  {x.kernel}".strip() for x in launches], fontsize=7)
    bars.set_ylim(len(launches) - 0.4, -0.6)
    bars.set_xlim(0, 1.15 * longest)
    known = any(x.floor is not None for x in launches)
    bars.set_xlabel(
        f"milliseconds{', and how much of its floor (black) a kernel reaches' if known else ''}", fontsize=8
    )
    bars.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        bars.spines[side].set_visible(False)
    legend = [
        Patch(color=colour, label=f"{name} {100 * part:.0f} %") for name, (part, colour) in kinds(launches).items()
    ]
    figure.legend(handles=legend, fontsize=8, loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    sys.exit(timing.command(main))
