"""What ``convnet-show`` draws: collects it from runs and data, and hands it to ``figures`` as plain arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Subset
from ..network.spec import placed_layers
from ..output import figures
from ..output.console import Console
from ..training.metrics import MetricsFile
from ..training.run import holds_run
from ..training.trained import Trained, load_trained
from . import evaluate, retrieval

PREDICTIONS = 8  # images, four to a row
GUESSES = 5
QUERIES, NEIGHBOURS = 5, 6
MAPS = 16  # that a filter which is drawn reads at most
PAIRS = 30  # that are listed where there are too many classes for a square

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Options:
    """How to look: ``data`` None is the run's own, ``limit`` bounds the training images that are searched."""

    data: str | None = None
    device: str = "auto"
    batch_size: int = 128
    views: int = 1
    seed: int = 0
    only_errors: bool = False
    queries: int = QUERIES
    limit: int | None = None
    jointly: bool = False
    layer: str | None = None


def show(runs: list[str], what: str, output: str, options: Options, console: Console) -> None:
    """Draws ``what`` (curves, filters, predictions, neighbours or confusion) into the file ``output``.

    Raises ``ValueError`` for options that cannot be, before anything is read; ``CheckpointError``, ``DataError`` and
    ``DeviceError``.
    """
    path = figures.check_path(output)
    if options.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {options.seed}")
    for option, value in (("-b", options.batch_size), ("--queries", options.queries), ("--limit", options.limit)):
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if what != "curves" and len(runs) > 1:
        raise ValueError(f"{what} are drawn of one run, got {len(runs)} ({', '.join(runs)}); only curves take several")
    if what == "curves":
        show_curves(runs, path)
        return
    trained = load_trained(runs[0], console.warn)
    if what == "filters":
        name, weights = filters(trained, options.layer)
        figures.save_filters(path, weights, trained.spec.towers, name, jointly=options.jointly)
        return
    draw = {"predictions": show_predictions, "neighbours": show_neighbours, "confusion": show_confusion}[what]
    draw(path, trained, options, console)


def filters(trained: Trained, layer: str | None) -> tuple[str, Values]:
    """The layer's filters (K, C, R, S) for a figure, and its name; by default those that read the images. Of a layer
    with several inputs those for the first with few maps; where every pixel has filters of its own, the middle one's.

    Raises ``ValueError`` where there are none with ``MAPS`` maps or fewer.
    """
    few: dict[str, Values] = {}
    for placed in placed_layers(trained.spec):
        for name in placed.weight_names if placed.terms else ():
            weights = trained.weights[f"{placed.layer.name}.{name}"]
            weights = weights[placed.P // 2, placed.Q // 2] if weights.ndim == 6 else weights
            if weights.ndim == 4 and weights.shape[1] <= MAPS:
                few.setdefault(placed.layer.name, weights)
    first = trained.spec.first_filters
    chosen = layer or (first.partition(".")[0] if first else next(iter(few), None))
    if chosen in few:
        return chosen, few[chosen]
    known = ", ".join(few) or "none of this network"
    if chosen is not None:
        evaluate.check_layer(trained.spec, chosen)
    what = f"{chosen} has no filters" if chosen else "there are no filters"
    raise ValueError(f"{what} of {MAPS} maps or fewer to draw; those with such: {known}")


def show_curves(runs: list[str], path: Path) -> None:
    """Overlays the runs; each is called by its folder, or by its whole path where two folders are called alike."""
    folders = [Path(os.path.normpath(run)) for run in dict.fromkeys(runs)]
    plain = len({folder.name for folder in folders}) == len(folders)
    found = {}
    for folder in folders:
        if not (folder.is_dir() and holds_run(folder)):
            raise ValueError(f"{folder}: curves need a run folder, and this is none")
        records = MetricsFile(folder / "metrics.jsonl").records()
        if not any(record.get("event") == "train" for record in records):
            raise ValueError(f"{folder}: there is nothing in metrics.jsonl yet; train longer first")
        found[folder.resolve().name if plain else str(folder)] = records
    figures.save_curves(path, found, next(iter(found)) if len(found) == 1 else f"{len(found)} runs")


def show_predictions(path: Path, trained: Trained, options: Options, console: Console) -> None:
    dataset = trained.open_dataset(options.data)
    order = np.random.default_rng(options.seed).permutation(len(dataset.valid))
    looked = Subset(dataset.valid, order if options.only_errors else order[:PREDICTIONS])
    batch_size = min(options.batch_size, len(looked))
    images: list[np.ndarray[Any, Any]] = []
    truths: list[str] = []
    guesses: list[list[tuple[str, float]]] = []
    with trained.open_network(options.device, batch_size) as network:
        seen = 0
        for shares in evaluate.probability_batches(network, looked, options.views):
            for place, best in enumerate(evaluate.top(shares, GUESSES), seen):
                if len(images) == PREDICTIONS or (options.only_errors and best[0] == looked.labels[place]):
                    continue
                images.append(looked.image(place))
                truths.append(dataset.classes[looked.labels[place]])
                guesses.append([(dataset.classes[c], float(shares[place - seen, c])) for c in best])
            seen += len(shares)
            console.progress(seen, len(looked), "images")
            if len(images) == PREDICTIONS:
                break
    console.clear()
    if not images:
        raise ValueError(f"--only-errors: none of the {len(looked):,} validation images is taken for another class")
    figures.save_predictions(path, images, truths, guesses)


def show_neighbours(path: Path, trained: Trained, options: Options, console: Console) -> None:
    dataset, layer = trained.open_dataset(options.data), trained.spec.features_layer
    rng = np.random.default_rng(options.seed)
    asked = Subset(dataset.valid, rng.permutation(len(dataset.valid))[: options.queries])
    searched = Subset(dataset.train, np.sort(rng.permutation(len(dataset.train))[: options.limit]))

    def progress(done: int, total: int) -> None:
        console.progress(done, total, "training images")

    with trained.open_network(options.device, options.batch_size, fused=False) as network:
        queries = evaluate.features(network, asked, layer)
        found, _ = retrieval.nearest(
            queries, evaluate.feature_batches(network, searched, layer, progress=progress), NEIGHBOURS
        )
    console.clear()

    def classes(split: Subset, indices: Any) -> list[str]:
        return [dataset.classes[split.labels[i]] for i in indices]

    figures.save_neighbours(
        path,
        [asked.image(i) for i in range(len(asked))],
        classes(asked, range(len(asked))),
        [[searched.image(i) for i in row] for row in found],
        [classes(searched, row) for row in found],
        layer,
    )


def show_confusion(path: Path, trained: Trained, options: Options, console: Console) -> None:
    dataset = trained.open_dataset(options.data)

    def progress(done: int, total: int) -> None:
        console.progress(done, total, "validation images")

    with trained.open_network(options.device, options.batch_size) as network:
        found = evaluate.outcomes(network, dataset.valid, options.views, progress=progress)
    console.clear()
    counted = evaluate.Confusion.of(found, len(dataset.classes))
    few = len(dataset.classes) <= figures.LABELLED_SQUARE
    counts = np.stack(list(counted.rows())) if few else None
    figures.save_confusion(path, counts, dataset.classes, counted.most(dataset.classes, PAIRS))
