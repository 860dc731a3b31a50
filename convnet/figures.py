"""Pictures of a run: the learning curves and the first layer's filters.

Through matplotlib's objects and the Agg canvas alone: no window system, no global state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .metrics import series

TRAIN, VALID = "tab:blue", "tab:orange"


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def _smooth(values: list[float], reach: int) -> np.ndarray[Any, Any]:
    """Mean of each value and its ``reach`` neighbours on both sides, fewer at the ends."""
    sums = np.cumsum([0.0, *values])
    place = np.arange(len(values))
    starts, ends = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def save_curves(path: Path, records: list[dict[str, Any]], title: str) -> None:
    """Loss, top-1 error and learning rate over steps, from the records of ``metrics.jsonl``."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
    figure.suptitle(title)
    for axes, key, factor in ((loss, "loss", 1), (error, "top1_error", 100)):
        steps, values = series(records, "train", key)
        scaled = [factor * value for value in values]
        axes.plot(steps, scaled, color=TRAIN, alpha=0.3, linewidth=1)
        axes.plot(steps, _smooth(scaled, 5), color=TRAIN, label="training (smoothed)")
        steps, values = series(records, "valid", key)
        checked = [factor * value for value in values]
        axes.plot(steps, checked, "o-", color=VALID, markersize=3, label="validation")
        axes.set_ylim(0, 1.05 * max([*scaled, *checked, 1e-9]))
        axes.grid(alpha=0.3)
        axes.legend()
    loss.set_ylabel("loss (nats)")
    error.set_ylabel("top-1 error (%)")
    rate.plot(*series(records, "train", "lr"), color="tab:green", drawstyle="steps-post")
    rate.set_yscale("log")
    rate.set_ylabel("learning rate")
    rate.grid(alpha=0.3)
    rate.set_xlabel("step")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def save_filters(path: Path, filters: np.ndarray[Any, Any], towers: int) -> None:
    """The filters of a layer that reads RGB images, float32 (K, 3, R, S), each tower's in rows of their own.

    Each filter is scaled to the full range of brightness on its own, zero staying mid-grey.
    """
    K, _, R, S = filters.shape
    own = K // towers
    columns = 16 if own >= 32 else 8
    rows = -(-own // columns)  # of one tower
    highest = np.maximum(np.abs(filters).max(axis=(1, 2, 3), keepdims=True), 1e-30)
    pixels = (0.5 + 0.5 * filters / highest).transpose(0, 2, 3, 1)  # (K, R, S, 3) in 0..1
    gap = R // 2
    height = rows * (R + 1) + gap  # of a tower and the gap behind it
    sheet = np.ones((height * towers - gap - 1, (S + 1) * columns - 1, 3), np.float32)
    for k in range(K):
        top = k // own * height + k % own // columns * (R + 1)
        left = k % own % columns * (S + 1)
        sheet[top : top + R, left : left + S] = pixels[k]
    width = 8.0
    figure = Figure(figsize=(width, width * sheet.shape[0] / sheet.shape[1] + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"conv1: {K} filters of {R}x{S}x3")
    for tower in range(towers if towers > 1 else 0):
        axes.text(
            -1.5, tower * height + (rows * (R + 1)) / 2, f"tower {tower + 1}", rotation=90, ha="right", va="center"
        )
    _save(figure, path)
