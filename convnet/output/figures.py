"""The figures of runs and networks, drawn from plain arrays.

Through matplotlib's objects and canvases alone: no window system. Files end in .png or .svg; equal input gives equal
files, whatever the user's settings of matplotlib are. Colours are those of Okabe and Ito, told apart with every kind of
colour vision.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import write_atomically
from .plotting import own_settings

# Behind plotting, which imports matplotlib whatever the settings:
# isort: split
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

Values = np.ndarray[Any, Any]
Records = Sequence[dict[str, Any]]

SUFFIXES = (".png", ".svg")
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00"),
    *("#CC79A7", "#56B4E9", "#B8AB00"),
)
RUN_COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, YELLOW, "black")
NAME_LENGTH = 22  # letters of a class name; longer ones are shortened
LABELLED_SQUARE = 40  # classes whose confusion is drawn as a square
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar in a class's name is a dollar
    "svg.hashsalt": "convnet",
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
}


def check_path(path: str | Path) -> Path:
    """``path`` as a file that a figure can be written to. Raises ``ValueError`` before any work is done."""
    found = Path(path)
    if found.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{found}: a figure's name must end in {' or '.join(SUFFIXES)}")
    if found.is_dir() or not found.parent.is_dir():
        raise ValueError(f"{found}: {'is a folder' if found.is_dir() else 'its folder does not exist'}; name a file")
    return found


def shortened(name: str, length: int = NAME_LENGTH) -> str:
    """What can be drawn of a name: those of files need not be text, nor the locale one that has their letters."""
    try:
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # half of a letter that no file's name has
        name = name.encode("utf-8", "replace").decode("utf-8")
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def _save(figure: Figure, path: Path) -> None:
    file = io.BytesIO()
    suffix = check_path(path).suffix.lower()[1:]
    undated = {"Date": None} if suffix == "svg" else {"Software": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box stands for a letter the font does not have
        figure.savefig(file, format=suffix, dpi=120, metadata=undated)
    write_atomically(path, file.getvalue())


# ---- training ----


def _smooth(values: list[float], reach: int) -> Values:
    """Mean of each value and its ``reach`` neighbours on both sides, fewer at the ends."""
    sums = np.cumsum([0.0, *values])
    place = np.arange(len(values))
    starts, ends = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


@own_settings(STYLE)
def save_curves(path: Path, runs: Mapping[str, Records], title: str) -> None:
    """Loss, top-1 error and learning rate over steps, from each run's records of ``metrics.jsonl``.

    One run: training and validation differ in colour. Several: a colour each; a line is training, and points along a
    dashed line are validation.
    """
    alone = len(runs) == 1
    figure = Figure(figsize=(8, 8), layout="constrained")
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    figure.suptitle(shortened(title, 80))
    for axes, key, factor in ((loss, "loss", 1), (error, "top1_error", 100)):
        highest = 1e-9
        for k, records in enumerate(runs.values()):
            train = RUN_COLOURS[k % len(RUN_COLOURS)]
            valid = RED if alone else train
            steps, values = series(records, "train", key)
            scaled = [factor * value for value in values]
            axes.plot(steps, scaled, color=train, alpha=0.3 if alone else 0.15, linewidth=1)
            axes.plot(steps, _smooth(scaled, 5), color=train, linewidth=1.5)
            steps, values = series(records, "valid", key)
            checked = [factor * value for value in values]
            axes.plot(steps, checked, "o-" if alone else "o--", color=valid, markersize=4, linewidth=1.2)
            highest = max([highest, *scaled, *checked])
        axes.set_ylim(0, 1.05 * highest)
        axes.grid(alpha=0.3)
    figure.align_ylabels()
    _draw_rates(rate, [series(records, "train", "lr") for records in runs.values()])
    if alone:
        entries = [_key("training (smoothed)", BLUE, "-"), _key("validation", RED, "-", "o")]
    else:
        entries = [_key("training (smoothed)", "0.4", "-"), _key("validation", "0.4", "--", "o")]
        entries += [
            _key(shortened(name, 40), RUN_COLOURS[k % len(RUN_COLOURS)], "-", width=3) for k, name in enumerate(runs)
        ]
    if len(entries) <= 6:
        loss.legend(handles=entries, loc="best")
    else:  # below the title, where they hide no line
        figure.legend(handles=entries, loc="outside lower center", ncols=2)
    loss.set_ylabel("loss (nats)")
    error.set_ylabel("top-1 error (%)")
    _save(figure, path)


def _draw_rates(axes: Axes, runs: list[tuple[list[int], list[float]]]) -> None:
    for k, (steps, rates) in enumerate(runs):
        colour = GREEN if len(runs) == 1 else RUN_COLOURS[k % len(RUN_COLOURS)]
        axes.plot(steps, rates, color=colour, drawstyle="steps-post", alpha=0.9)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    levels = sorted({rate for _, rates in runs for rate in rates})
    if 0 < len(levels) <= 4:  # each has its tick; else those of the powers of ten
        axes.set_yticks(levels)
        axes.set_yticks([], minor=True)
        axes.set_ylim(levels[0] / 2, levels[-1] * 2)
    axes.set_ylabel("learning rate")
    axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _key(name: str, colour: str, line: Any, marker: str = "", width: float = 1.5) -> Line2D:
    return Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=4, linewidth=width, label=name)


# ---- filters ----


def filter_sheet(filters: Values, towers: int, *, jointly: bool = False) -> tuple[Values, list[int]]:
    """The filters (K, C, R, S) side by side as colours in 0..1, float32 (height, width, 3), white between them.

    Those of two or three maps are red, green and blue, one map is grey; of more, the maps of a filter are grey and lie
    in a row. Each tower's filters are in rows of their own, 16 to a row from 32 filters on, else 8, or as many as make
    16 maps; half a filter's height lies between towers. Returned too are the rows of pixels where a tower begins and,
    last, where the next would. Zero is mid-grey; the largest weight, of each filter or ``jointly`` of all, is black or
    full brightness.
    """
    K, C, R, S = filters.shape
    own = K // towers
    highest = np.abs(filters).max(axis=None if jointly else (1, 2, 3), keepdims=True)
    pixels = _filter_pixels(0.5 + 0.5 * filters / np.maximum(highest, 1e-30))
    columns = max(16 // C, 1) if C > 3 else 16 if own >= 32 else 8
    rows = -(-own // columns)  # of one tower
    width = pixels.shape[2]
    gap, beside = R // 2, 1 + (S // 2 if C > 3 else 0)
    height = rows * (R + 1) + gap  # of a tower and the gap behind it
    sheet = np.ones((height * towers - gap - 1, (width + beside) * columns - beside, 3), np.float32)
    for k in range(K):
        top = k // own * height + k % own // columns * (R + 1)
        left = k % own % columns * (width + beside)
        sheet[top : top + R, left : left + width] = pixels[k]
    return sheet, [tower * height for tower in range(towers + 1)]


def _filter_pixels(values: Values) -> Values:
    """Filters (K, C, R, S) as pictures (K, R, width, 3)."""
    K, C, R, S = values.shape
    if C > 3:
        row = np.ones((K, R, C, S + 1), values.dtype)
        row[..., :S] = values.transpose(0, 2, 1, 3)
        grey: Values = row.reshape(K, R, C * (S + 1))[..., :-1, None]
        return np.repeat(grey, 3, axis=3)
    if C == 1:
        values = np.repeat(values, 3, axis=1)
    if C == 2:
        values = np.concatenate([values, np.full((K, 1, R, S), 0.5, values.dtype)], axis=1)
    return values.transpose(0, 2, 3, 1)


@own_settings(STYLE)
def save_filters(path: Path, filters: Values, towers: int, layer: str, *, jointly: bool = False) -> None:
    """The filters of a layer that reads few maps, float32 (K, C, R, S), a block for every tower."""
    K, C, R, S = filters.shape
    sheet, tops = filter_sheet(filters, towers, jointly=jointly)
    figure = Figure(figsize=(8, 8 * sheet.shape[0] / sheet.shape[1] + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="none")
    axes.set_axis_off()
    scale = "one scale for all" if jointly else "each scaled on its own"
    axes.set_title(f"{layer}: {K} filters of {R} x {S} x {C}, {scale}", fontsize=11)
    for tower in range(towers if towers > 1 else 0):
        middle = (tops[tower] + tops[tower + 1] - R // 2) / 2
        axes.text(-0.25 * S, middle, f"tower {tower + 1}", rotation=90, ha="right", va="center")
    _save(figure, path)


# ---- images ----


def _picture(axes: Axes, image: Values) -> None:
    axes.imshow(image, interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])


@own_settings(STYLE)
def save_predictions(
    path: Path, images: Sequence[Values], truths: Sequence[str], guesses: Sequence[Sequence[tuple[str, float]]]
) -> None:
    """Up to eight images, four to a row, each above its true class and bars of its most probable classes.

    ``images`` are uint8 (size, size, 3); ``guesses`` are names and probabilities, most probable first, for each. After
    the paper's figure 4, left: the bar of the true class has another colour, and its name is bold.
    """
    columns, rows = 4, -(-len(images) // 4)
    figure = Figure(figsize=(9, 4.1 * rows + 0.35), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.03, hspace=0.02))
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.1, 1.5] * rows)
    for axes in grid.flat[:]:
        axes.set_axis_off()
    for k, (image, truth, guess) in enumerate(zip(images, truths, guesses, strict=True)):
        above, below = grid[k // columns * 2 : k // columns * 2 + 2, k % columns]
        above.set_axis_on()
        _picture(above, image)
        above.set_xlabel(shortened(truth), fontweight="bold", fontsize=11)
        for place, (name, share) in enumerate(guess):
            own = name == truth
            below.barh(place, share, height=0.86, color=ORANGE if own else "#9CCBEA", gid=f"bar-{k}-{place}")
            below.text(
                0.02, place, shortened(name, 17), va="center", fontsize=10, fontweight="bold" if own else "normal"
            )
            below.text(0.99, place, _share(share), va="center", ha="right", fontsize=9)
        below.add_patch(_frame(len(guess)))
        below.set_xlim(0, 1)
        below.set_ylim(4.5, -0.5)
    figure.supxlabel("bold: the true class; its bar is orange", fontsize=9)
    _save(figure, path)


def _share(value: float) -> str:
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 1 else "<1 %"


def _frame(bars: int) -> Rectangle:
    return Rectangle((0, -0.47), 1, bars - 0.06, fill=False, edgecolor="0.75", linewidth=0.8, clip_on=False)


@own_settings(STYLE)
def save_neighbours(
    path: Path,
    queries: Sequence[Values],
    truths: Sequence[str],
    neighbours: Sequence[Sequence[Values]],
    names: Sequence[Sequence[str]],
    layer: str,
) -> None:
    """Query images in the first column, each followed by its nearest training images, nearest first.

    Images are uint8 (size, size, 3), their classes lie beneath. After the paper's figure 4, right. What is of
    another class than its query is framed, and its name has a cross.
    """
    columns = 1 + max(map(len, neighbours))
    figure = Figure(figsize=(1.42 * columns + 0.3, 1.62 * len(queries) + 0.45))
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, columns - 1), wspace=0.02)
    left, right = parts
    _column_of_queries(left, queries, truths)
    grid = right.subplots(len(queries), columns - 1, squeeze=False)
    _margins(right, columns - 1)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (images, classes) in enumerate(zip(neighbours, names, strict=True)):
        for axes, image, name in zip(grid[row], images, classes, strict=False):
            same = name == truths[row]
            axes.set_axis_on()
            _picture(axes, image)
            label = shortened(name, 16) if same else "✗ " + shortened(name, 15)
            axes.set_xlabel(label, fontsize=9, labelpad=2, color="black" if same else RED)
            for spine in axes.spines.values():
                spine.set(color="black" if same else RED, linewidth=0.5 if same else 3)
    right.suptitle(f"nearest training images by Euclidean distance in {layer}, nearest first", fontsize=10, y=0.995)
    _save(figure, path)


def _column_of_queries(figure: SubFigure, queries: Sequence[Values], truths: Sequence[str]) -> None:
    figure.set_facecolor("0.9")
    figure.suptitle("query", fontsize=10, y=0.995)
    grid = figure.subplots(len(queries), 1, squeeze=False)
    _margins(figure, 1)
    for axes, image, truth in zip(grid[:, 0], queries, truths, strict=True):
        _picture(axes, image)
        axes.set_xlabel(shortened(truth, 16), fontsize=9, labelpad=2, fontweight="bold")


def _margins(figure: SubFigure, columns: int) -> None:
    side = 0.05 / columns
    figure.subplots_adjust(left=side, right=1 - side, top=0.955, bottom=0.035, wspace=0.08, hspace=0.2)


# ---- confusion ----


@own_settings(STYLE)
def save_confusion(
    path: Path, counts: Values | None, classes: Sequence[str], pairs: Sequence[tuple[str, str, int, int]]
) -> None:
    """Of ``counts`` (true class, class it was taken for) a square up to 40 classes; beyond, bars of ``pairs``, and
    ``counts`` may be None.

    A pair is a true class, what it was taken for, how many images, and of how many of the true class.
    """
    if counts is not None and len(classes) <= LABELLED_SQUARE:
        figure = _confusion_square(counts, classes)
    else:
        figure = _confused_pairs(pairs, len(classes))
    _save(figure, path)


def _confusion_square(counts: Values, classes: Sequence[str]) -> Figure:
    n = len(classes)
    side = min(11.0, 3.6 + 0.32 * n)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawn = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # the root makes few errors visible
    size = 9 if n <= 25 else 7
    for row, column in np.argwhere(counts):
        dark = shares[row, column] > 35
        axes.text(
            *(column, row, str(counts[row, column])), ha="center", va="center",
            fontsize=size, color="white" if dark else "black",
        )  # fmt: skip
    names = [shortened(name) for name in classes]
    axes.set_xticks(range(n), names, rotation=90, fontsize=size + 1)
    axes.set_yticks(range(n), names, fontsize=size + 1)
    axes.set_xticks(np.arange(n - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(n - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_ylabel("true class", fontsize=11)
    axes.set_xlabel("taken for", fontsize=11)
    wrong = int(counts.sum() - np.trace(counts))
    axes.set_title(f"{wrong:,} of {int(counts.sum()):,} images taken for another class", fontsize=11)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.set_label("% of the true class")
    return figure


def _confused_pairs(pairs: Sequence[tuple[str, str, int, int]], classes: int) -> Figure:
    figure = Figure(figsize=(8.5, 0.9 + 0.29 * max(len(pairs), 3)), layout="constrained")
    axes = figure.subplots()
    for place, (_, _, count, total) in enumerate(pairs):
        axes.barh(place, 100 * count / max(total, 1), color=BLUE, height=0.7)
        axes.text(100 * count / max(total, 1), place, f" {count} of {total}", va="center", fontsize=9)
    labels = [f"{shortened(truth)} → {shortened(guess)}" for truth, guess, *_ in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=9)
    axes.set_ylim(max(len(pairs), 1) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.set_xlabel("% of the true class taken for the other")
    axes.set_title(f"the {len(pairs)} most confused pairs of {classes} classes", fontsize=11)
    return figure


# ---- records ----


def series(records: Sequence[dict[str, Any]], event: str, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key of all records of one event."""
    chosen = [r for r in records if r.get("event") == event and _finite(r.get("step")) and _finite(r.get(key))]
    return [int(r["step"]) for r in chosen], [float(r[key]) for r in chosen]


def _finite(value: Any) -> bool:
    """Whether a record has a number there: its file may have been written by anybody."""
    return isinstance(value, (int, float)) and abs(value) < 1e300
