"""The tables of measurements in README.md and the figures beside them, from the JSON in ``benchmarks/results``.

    python -m benchmarks.report           writes both
    python -m benchmarks.report --check   says whether README.md is up to date (exit code 1 where it is not)

Of several measurements of one thing the newest counts. What nobody measured says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import floors, learning, quality, small_nets, timing
from convnet.network.networks import network
from convnet.output.figures import BLUE, ORANGE
from convnet.training.verdict import standard_error

ROOT = Path(__file__).parent.parent
README, FIGURE, CURVES = ROOT / "README.md", ROOT / "docs" / "steps.png", ROOT / "docs" / "quality.png"
BEGIN, END = "<!-- measurements: made by python -m benchmarks.report -->", "<!-- end of measurements -->"
PRECISIONS, BATCHES, INFERENCE = ("bf16", "tf32", "fp32"), (128, 256, 512, 1024), (1, 8, 64, 128, 512)
MODEL = "alexnet"
ON_CPU = (MODEL, "alexnet-tiny")
PLACES = {"device": "on the device", "memory": "in host memory", "files": "in JPEG files, 256 pixels"}
MISSING = "not measured"
Row = dict[str, Any]
Rows = dict[tuple[str, int, str], Row]  # by precision, images and part
Predicted = dict[tuple[str, int, str], float]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    text = README.read_text()
    found = load(timing.RESULTS)
    wanted = replaced(text, section(found))
    if options.check:
        print("up to date" if text == wanted else f"{README} is not what benchmarks/results says")
        return int(text != wanted)
    README.write_text(wanted)
    draw(found).savefig(FIGURE, dpi=120, metadata={"Software": None})
    learning = [results for results in found if results["benchmark"] == "quality" and results["precision"] == "fp32"]
    if learning:
        quality.draw(learning[-1]).savefig(CURVES, dpi=120, metadata={"Software": None})
    print(f"{README} and its figures are up to date")
    return 0


def load(folder: Path) -> list[Row]:
    """All results, the oldest first, but for those that were taken with parts turned off."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted((results for results in found if not results.get("off")), key=lambda results: results["date"])


def replaced(text: str, middle: str) -> str:
    """``text`` with ``middle`` between the two marks. Raises ``ValueError`` where these are not there once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md must contain the lines {BEGIN!r} and {END!r} once each")
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n{middle}\n{END}{text.partition(END)[2]}"


def steps(found: list[Row], kind: str, model: str = MODEL) -> Rows:
    """The newest rows of ``benchmarks.step`` on a device of this kind."""
    rows = {}
    for results in found:
        if results["benchmark"] == "step" and results["device"].startswith(kind) and results["model"] == model:
            for row in results["best"]:
                if "seconds" in row:
                    rows[row["precision"], row["batch_size"], row["part"]] = row
    return rows


def predictions(found: list[Row]) -> Predicted:
    """The newest images/s of ``benchmarks.predict``."""
    return {
        (results["precision"], results["batch_size"], results["part"]): results["batch_size"] / results["seconds"]
        for results in found
        if results["benchmark"] == "predict" and results["model"] == MODEL
    }


def machine(found: list[Row], kind: str) -> str:
    """What the newest step on a device of this kind was measured on."""
    for results in reversed(found):
        if results["benchmark"] == "step" and results["device"].startswith(kind):
            gpus = results.get("cuda", {}).get("gpus", [])
            torch = results.get("versions", {}).get("torch")
            beside = f", PyTorch {torch.partition('+')[0]}" if torch else ""
            name = gpus[0]["name"] if gpus else f"{results['cores']} cores of an {results['processor']}"
            return f"{name}, {results['date'][:10]}{beside}"
    return MISSING


def section(found: list[Row]) -> str:
    """What stands between the marks."""
    gpu, predicted = steps(found, "cuda"), predictions(found)
    lines = [
        f'Training steps of `{MODEL}` on one GPU ({machine(found, "cuda")}); "floor" is what an H200 needs at least, '
        "everything fused; predicted is what these kernels should do there (`benchmarks/predict.py`):",
        "",
        "| precision | images | images/s (share of the floor) | predicted | at the floor | best PyTorch | ratio | "
        "memory, theirs |",
        "|---|---|---|---|---|---|---|---|",
        *(_step(precision, n, gpu, predicted) for precision in PRECISIONS for n in BATCHES),
        "",
        "Inference, images/s (and the ratio to the best PyTorch; or what is predicted):",
        "",
        f"| precision | {' | '.join(f'N = {n}' for n in INFERENCE)} |",
        f"|{'---|' * (len(INFERENCE) + 1)}",
        *(f"| {p} | {' | '.join(_inference(p, n, gpu, predicted) for n in INFERENCE)} |" for p in PRECISIONS),
        "",
        f"On a CPU ({machine(found, 'cpu')}), float32:",
        "",
        "| network | work | images | images/s | best PyTorch | ratio |",
        "|---|---|---|---|---|---|",
        *(line for model in ON_CPU for line in _cpu(model, steps(found, "cpu", model))),
        "",
        "`convnet-train` itself, images/s by where the images are (and the share of time that it waits for them):",
        "",
        f"| device, network | {' | '.join(PLACES.values())} |",
        f"|{'---|' * (len(PLACES) + 1)}",
        *_loops(found),
        "",
        "Learning beside PyTorch, the same weights and data through both (`benchmarks/quality.py` says what the last "
        "column means):",
        "",
        "| precision | steps | loss at the end, PyTorch's | ours | the curves |",
        "|---|---|---|---|---|",
        *(_learning(found, precision) for precision in reversed(PRECISIONS)),
        "",
        f"![losses of both, and how far they are apart](docs/{CURVES.name})",
        "",
        *_defaults(found),
        "",
        *_small_nets(found),
        "",
        *_scale(found),
        "",
        f"![images/s of training steps of {MODEL}](docs/{FIGURE.name})",
    ]
    return "\n".join(lines)


def _step(precision: str, n: int, rows: Rows, predicted: Predicted) -> str:
    key = precision, n, "step"
    floor = n / floors.total(floors.plan(network(MODEL), n, precision), precision)
    should = f"{predicted[key]:,.0f}" if key in predicted else ""
    cells = [precision, str(n), MISSING, should, f"{floor:,.0f}", MISSING, "", ""]
    if row := rows.get(key):
        theirs = row.get("torch")
        share = f" ({100 * row['floor_share']:.0f} %)" if "floor_share" in row else ""
        cells[2] = f"{row['images_per_second']:,.0f}{share}"
        cells[5:7] = [_peer(theirs), _ratio(theirs)] if theirs else [MISSING, ""]
        sizes = (r["memory_bytes"] for r in (row, theirs) if r and r.get("memory_bytes"))
        cells[7] = " / ".join(f"{size / 1e9:.2f} GB" for size in sizes)
    return f"| {' | '.join(cells)} |"


def _peer(row: Row) -> str:
    return f"{row['images_per_second']:,.0f} ({row['mode']}, {row['variant']})"


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f} (+- {100 * row['ratio_noise']:.0f} %)"


def _inference(precision: str, n: int, rows: Rows, predicted: Predicted) -> str:
    key = precision, n, "forward"
    if not (row := rows.get(key)):
        return MISSING + (f" ({predicted[key]:,.0f} predicted)" if key in predicted else "")
    return f"{row['images_per_second']:,.0f}" + (f" ({row['torch']['ratio']:.2f})" if "torch" in row else "")


def _cpu(model: str, rows: Rows) -> Iterator[str]:
    for part, work in (("step", "training step"), ("forward", "inference")):
        measured = {n: row for (_, n, own), row in rows.items() if own == part}
        for n, row in sorted(measured.items(), key=lambda item: item[0]):
            theirs = row.get("torch")
            beside = f"{_peer(theirs)} | {_ratio(theirs)}" if theirs else f"{MISSING} |"
            yield f"| {model} | {work} | {n} | {row['images_per_second']:,.1f} | {beside} |"
        if not measured:
            yield f"| {model} | {work} | | {MISSING} | {MISSING} | |"


def _loops(found: list[Row]) -> Iterator[str]:
    """The newest of every device, network and precision; a GPU's line is there in any case."""
    newest = {
        (results["device"], results["model"], results["precision"], results["batch_size"]): results["rows"]
        for results in found
        if results["benchmark"] == "train"
    }
    if not any(device.startswith("cuda") for device, *_ in newest):
        yield f"| GPU, {MODEL} | {' | '.join(MISSING for _ in PLACES)} |"
    for (device, model, precision, n), rows in newest.items():
        cells = {row["place"]: f"{row['images_per_second']:,.0f} ({100 * row['waiting']:.0f} %)" for row in rows}
        shown = " | ".join(cells.get(place, MISSING) for place in PLACES)
        yield f"| {device}, {model}, {precision}, {n} images | {shown} |"


def _learning(found: list[Row], precision: str) -> str:
    for results in reversed(found):
        if results["benchmark"] == "quality" and results["precision"] == precision and "overlap" in results:
            curves = results["pytorch"], results["convnet"]
            ends = (f"{statistics.mean(curve[-max(1, len(curve) // 10) :]):.3f}" for curve in curves)
            place = f"{precision} on {results['device']} ({results['model']})"
            verdict = "overlap" if results["overlap"] else "do not overlap"
            number = f"{len(curves[0])}{f' behind {warm}' if (warm := results.get('warm_up')) else ''}"
            return f"| {place} | {number} | {' | '.join(ends)} | {verdict} |"
    return f"| {precision} | {MISSING} | | | |"


def _defaults(found: list[Row]) -> Iterator[str]:
    """The newest ``benchmarks.learning``: the mean error of the seeds at the end, and how far they are apart."""
    results: dict[str, Any] = next((r for r in reversed(found) if r["benchmark"] == "learning"), {"rows": []})
    rows, where = results["rows"], MISSING
    if rows:
        dates = sorted({row["date"] for row in rows})
        days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        where = f"{results['model']}, {results['cores']} cores of an {results['processor']}, {days}"
    yield (
        f"What `convnet-train` learns where nothing is said, beside other schedules and PyTorch ({where}): top-1 error "
        "at the end in %, the mean of the seeds (the least to the largest), and the standard error of one:"
    )
    yield ""
    yield f"| pictures, epochs | +- | {' | '.join(learning.WAYS)} |".replace("default", "default (flat-cosine)")
    yield f"|{'---|' * (len(learning.WAYS) + 2)}"
    for name, kind in learning.SETS.items():
        own = [row for row in rows if row["set"] == name]
        cells = (_errors([100 * row["error"] for row in own if row["way"] == way]) for way in learning.WAYS)
        default = [row for row in own if row["way"] == "default"]
        noise = (100 * standard_error(row["error"], row["images"]) for row in default)
        deviation = f"{statistics.mean(noise):.1f}" if default else ""
        yield f"| {kind.what}, {kind.epochs} | {deviation} | {' | '.join(cells)} |"


def _small_nets(found: list[Row]) -> Iterator[str]:
    """The newest ``benchmarks.small_nets``: error and minutes."""
    results: dict[str, Any] = next((r for r in reversed(found) if r["benchmark"] == "small-nets"), {"rows": []})
    rows, where = results["rows"], MISSING
    if rows:
        where = f"{results['cores']} cores of an {results['processor']}, {max(row['date'] for row in rows)}"
    yield (
        f"The nets of 2012 for CIFAR-10, and LeNet-5, after {small_nets.EPOCHS} epochs ({where}): top-1 error in %, "
        "and minutes:"
    )
    yield ""
    yield "| network | the drawn shapes, 12,000 | Fashion-MNIST, 12,000 |"
    yield "|---|---|---|"
    for model in small_nets.MODELS:
        for way in ("ours", "PyTorch") if model == "lenet5" else ("ours",):
            own = {row["set"]: row for row in rows if (row["model"], row["way"]) == (model, way)}
            cells = (
                f"{100 * own[name]['error']:.1f}, {own[name]['seconds'] / 60:.1f} min" if name in own else MISSING
                for name in small_nets.SETS
            )
            yield f"| {model}{', PyTorch' if way != 'ours' else ''} | {' | '.join(cells)} |"


def _scale(found: list[Row]) -> Iterator[str]:
    """The newest ``benchmarks.scale`` of every number of processes."""
    newest = {row["processes"]: row for row in found if row["benchmark"] == "scale"}
    where = MISSING
    if newest:
        last = list(newest.values())[-1]
        where = f"{last['cores']} cores of an {last['processor']}, {last['date'][:10]}"
    yield (
        f"Processes of one machine that share a batch ({where}), beside PyTorch's DistributedDataParallel over gloo, "
        "taking turns:"
    )
    yield ""
    yield "| processes | network, images of all | images/s | DDP's | DDP's time to ours | sum of 32 MB, gloo's |"
    yield "|---|---|---|---|---|---|"
    if not newest:
        yield f"| 2 | alexnet-tiny | {MISSING} | | | |"
    for processes, row in sorted(newest.items()):
        step, sums = row["step"], row["sums"][-1]
        cells = [
            str(processes),
            f"{step['model']}, {step['images']}",
            f"{step['images'] / step['ours']['seconds']:,.0f}",
        ]
        theirs = "DDP" in step
        cells.append(f"{step['images'] / step['DDP']['seconds']:,.0f}" if theirs else MISSING)
        cells.append("{median:.2f} ({least:.2f} to {most:.2f})".format(**step["ratio"]) if theirs else "")
        times = [f"{1e3 * sums[name]['seconds']:.1f} ms" for name in ("ours", "gloo") if name in sums]
        yield f"| {' | '.join(cells)} | {', '.join(times)} |"


def _errors(found: list[float]) -> str:
    if not found:
        return MISSING
    mean = f"{statistics.mean(found):.1f}"
    return f"{mean} ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else f"{mean} (one seed)"


def draw(found: list[Row]) -> Figure:
    """A panel for every precision: images/s by batch size, with the floors."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    rows = steps(found, "cuda")
    for axes, precision in zip(figure.subplots(1, len(PRECISIONS)), PRECISIONS, strict=True):
        top = 0.0
        for place, n in enumerate(BATCHES):
            row = rows.get((precision, n, "step"))
            rate = n / floors.total(floors.plan(network(MODEL), n, precision), precision) / 1e3
            top = max(top, rate)
            label = "floor of an H200" if not place else None
            axes.plot([place - 0.45, place + 0.45], [rate] * 2, color="black", linewidth=2, label=label)
            if not row:
                axes.text(place, rate / 40, MISSING, rotation=90, ha="center", va="bottom", color="0.5", fontsize=9)
                continue
            axes.bar(place - 0.2, row["images_per_second"] / 1e3, 0.4, color=BLUE)
            if "torch" in row:
                axes.bar(place + 0.2, row["torch"]["images_per_second"] / 1e3, 0.4, color=ORANGE)
        if any(key[0] == precision for key in rows):
            axes.bar(0, 0, color=BLUE, label="convnet")
            axes.bar(0, 0, color=ORANGE, label="best PyTorch")
        axes.set_title(precision, fontsize=10)
        axes.set_xticks(range(len(BATCHES)), [str(n) for n in BATCHES])
        axes.set_xlabel("images per step")
        axes.set_ylim(0, 1.25 * top)
        axes.legend(fontsize=8, loc="upper left")
    figure.axes[0].set_ylabel("thousand images per second")
    figure.suptitle(f"training steps of {MODEL} on one GPU: {machine(found, 'cuda')}", fontsize=10)
    return figure


if __name__ == "__main__":
    sys.exit(timing.command(main))
