"""``convnet-eval``"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import DONE, Parser, guarded, tolerate_encoding

if TYPE_CHECKING:
    from ..analysis.evaluate import Scores, Values
    from ..data import DataSet
    from ..output.console import Console
    from ..training.trained import Trained

SPLITS = {"val": "validation", "train": "training"}


def main(arguments: Sequence[str] | None = None) -> int:
    from ..kernels.precision import PRECISIONS

    parser = Parser(
        "convnet-eval",
        "Top-1 and top-5 error and loss of a trained network. Several runs are one ensemble: their probabilities are\n"
        "averaged. RUN is a run folder (its best checkpoint) or a checkpoint file.",
        "convnet-eval runs/first --views 10 --confusion confusion.csv",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder or checkpoint")
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DATA", help="other images, of the same classes (default: the first run's)")
    group.add_argument("--split", choices=SPLITS, default="val", help="which images of DATA (default: val)")
    group.add_argument(
        "--views",
        type=int,
        choices=(1, 10),
        default=1,
        help="the centre of each image, or four corners and centre, also mirrored, their probabilities averaged "
        "(default: 1)",
    )
    group = parser.add_argument_group("ensemble")
    group.add_argument("--weights", metavar="W,W,...", help="one per run; divided by their sum (default: all equal)")
    group.add_argument(
        "--fit-weights",
        action="store_true",
        help="find the weights with the lowest loss on every second image; everything shown and saved is then of the "
        "images between them",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object instead of text")
    group.add_argument(
        "--save-predictions",
        metavar="FILE.npy",
        help="probabilities, float32 (images, classes); beside it FILE.csv with name, label, prediction, probability",
    )
    group.add_argument("--confusion", metavar="FILE.csv", help="images per true class (row) and predicted class")
    group = parser.add_argument_group("device")
    group.add_argument("--device", default="auto", help="auto, cpu, emu[:i] or cuda:i[,cuda:j] (default: auto)")
    group.add_argument("--precision", choices=PRECISIONS, help="(default: the run's; fp32 works everywhere)")
    group.add_argument("-b", "--batch-size", type=int, default=128, metavar="N", help="images at a time (default: 128)")
    group.add_argument("--retry", action="store_true", help="where memory runs out, half as many images at a time")
    group.add_argument("-j", "--workers", type=int, default=2, metavar="N", help="threads that decode (default: 2)")
    parser.add_argument("-q", "--quiet", action="store_true", help="results, warnings and errors only")
    chosen = parser.parse_args(arguments)
    tolerate_encoding()

    def work() -> int:
        from ..output.console import Console

        console = Console(chosen.quiet, chosen.verbose, aside=chosen.json)
        try:
            return _run(chosen, console)
        finally:
            console.clear()

    return guarded(parser.prog, chosen.verbose, work)


def _run(chosen: argparse.Namespace, console: Console) -> int:
    from ..analysis import ensemble
    from ..analysis.evaluate import confusion, most_confused, scores
    from ..output.results import output_file, write_csv
    from ..training.trained import load_trained

    weights = _weights(chosen)
    saved = output_file("--save-predictions", chosen.save_predictions, ".npy") if chosen.save_predictions else None
    table = output_file("--confusion", chosen.confusion, ".csv") if chosen.confusion else None
    if saved and table and saved.with_suffix(".csv").resolve() == table.resolve():
        raise ValueError(f"--confusion {table}: --save-predictions writes a file of this name; choose another")
    trained = [load_trained(run, console.warn) for run in chosen.runs]
    datasets = _open_data(trained, chosen.data, chosen.split)
    console.say(f"data: {datasets[0].name}")
    split, classes = _split(datasets[0], chosen.split), trained[0].classes
    if len(split) < 2 and chosen.fit_weights:
        raise ValueError(f"--fit-weights needs at least 2 images, got {len(split)}")
    members = [_probabilities(*pair, chosen, console) for pair in zip(trained, datasets, strict=True)]

    numbers = range(len(split))
    if chosen.fit_weights:
        weights = ensemble.fit_weights([member[0::2] for member in members], split.labels[0::2]).tolist()
        numbers, members = numbers[1::2], [member[1::2] for member in members]
    labels, found = split.labels[numbers], ensemble.mean(members, weights)
    counts = confusion(found, labels)
    results = [(str(run), scores(member, labels)) for run, member in zip(chosen.runs, members, strict=True)]
    if len(members) > 1:
        results.append(("mean", scores(ensemble.mean(members), labels)))
    if weights:
        results.append(("fitted weights" if chosen.fit_weights else "weighted", scores(found, labels)))

    if saved:
        _save(saved, found, [split.name(i) for i in numbers], labels, classes)
    if table:
        write_csv(table, [("", *classes), *((name, *row) for name, row in zip(classes, counts.tolist(), strict=True))])
    console.clear()
    if chosen.json:
        print(json.dumps(_as_json(chosen, results, weights, len(split), datasets[0].name), indent=2), flush=True)
        return DONE
    views = "1 view" if chosen.views == 1 else f"{chosen.views} views"
    print(f"{len(labels):,} {SPLITS[chosen.split]} images, {views} each\n\n{_table(results)}")
    if weights:
        fitted = f", fitted on the other {len(split) - len(labels):,} images" if chosen.fit_weights else ""
        print(f"\nweights {', '.join(f'{weight:.3f}' for weight in weights)}{fitted}")
    if pairs := most_confused(counts, classes):
        print("\nmost confused:")
        for true, taken, wrong, of in pairs:
            print(f"  {true} taken for {taken}: {wrong} of {of}")
    return DONE


def _as_json(
    chosen: argparse.Namespace, results: Sequence[tuple[str, Scores]], weights: list[float] | None, n: int, data: str
) -> dict[str, Any]:
    """The result, and for an ensemble also its members', and the plain mean's where there are weights."""
    total: dict[str, Any] = {**results[-1][1].as_json(), "views": chosen.views, "runs": chosen.runs}
    total |= {"split": chosen.split, "data": data}
    if (count := len(chosen.runs)) > 1:
        total["weights"] = weights or [1 / count] * count
        total["members"] = [{"run": run, **score.as_json()} for run, score in results[:count]]
    if weights:
        total["mean"] = results[count][1].as_json()
    if chosen.fit_weights:
        total["fitted_on"] = n - results[-1][1].n
    return total


def _save(path: Path, found: Values, names: Sequence[str], labels: Values, classes: Sequence[str]) -> None:
    from ..output.results import RowsFile

    best = found.argmax(axis=1)
    with RowsFile(path, ("name", "label", "predicted", "probability")) as rows:
        lines = zip(names, labels, best, found, strict=True)
        rows.append(found, ((name, classes[label], classes[k], f"{p[k]:.6g}") for name, label, k, p in lines))


def _weights(chosen: argparse.Namespace) -> list[float] | None:
    """Those given, of sum one; None where none were. Raises ``ValueError``."""
    import math

    if chosen.weights is None and not chosen.fit_weights:
        return None
    if chosen.weights is not None and chosen.fit_weights:
        raise ValueError("--weights and --fit-weights exclude each other; leave one out")
    if len(chosen.runs) < 2:
        raise ValueError("--weights and --fit-weights are for an ensemble; name two runs or more")
    if chosen.weights is None:
        return None
    try:
        weights = [float(text) for text in chosen.weights.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(chosen.runs) or not all(0 <= w < math.inf for w in weights) or not sum(weights) > 0:
        raise ValueError(
            f"--weights must be {len(chosen.runs)} numbers, one per run, none negative and not all 0, such as "
            f"{','.join(['0.5'] * len(chosen.runs))}; got {chosen.weights!r}"
        )
    return [weight / sum(weights) for weight in weights]


def _open_data(trained: Sequence[Trained], data: str | None, split: str) -> list[DataSet]:
    """The same images for every run, at the size of its network. Raises ``DataError`` where they are not the same."""
    from ..data import DataError

    first = trained[0]
    for other in trained[1:]:
        if other.classes != first.classes:
            differ = sorted(set(other.classes) ^ set(first.classes))[:3] or "another order"
            raise DataError(
                f"{first.path} and {other.path} know different classes ({differ}); an ensemble needs the same ones"
            )
    opened: dict[int, DataSet] = {}
    for run in trained:
        if run.spec.image_size not in opened:
            opened[run.spec.image_size] = run.open_dataset(data or first.config.data, first.config.seed)
    datasets = [opened[run.spec.image_size] for run in trained]
    one = _split(datasets[0], split)
    for run, dataset in zip(trained, datasets, strict=True):
        labels = _split(dataset, split).labels
        if labels.shape != one.labels.shape or (labels != one.labels).any():
            raise DataError(f"{dataset.name}: other labels for {run.path} than for {first.path}; the data has changed")
    return datasets


def _split(dataset: DataSet, name: str) -> Any:
    return dataset.valid if name == "val" else dataset.train


def _probabilities(trained: Trained, dataset: DataSet, chosen: argparse.Namespace, console: Console) -> Values:
    from ..devices.protocol import OutOfMemory

    split = _split(dataset, chosen.split)
    batch_size = min(chosen.batch_size, max(len(split), 1))
    while True:
        try:
            return _once(trained, split, batch_size, chosen, console)  # leaves no name that holds on to the network
        except OutOfMemory as error:
            if not chosen.retry or batch_size == 1:
                raise
            batch_size //= 2
            console.warn(f"{error.shortage}; trying {batch_size} images at a time")


def _once(trained: Trained, split: Any, batch_size: int, chosen: argparse.Namespace, console: Console) -> Values:
    from ..analysis.evaluate import probabilities

    with trained.open_network(chosen.device, batch_size, chosen.precision) as network:
        return probabilities(
            network,
            split,
            chosen.views,
            workers=chosen.workers,
            progress=lambda done, total: console.progress(done, total, str(trained.path), "images"),
        )


def _table(results: Sequence[tuple[str, Scores]]) -> str:
    """One line per result, in columns."""
    from ..output.console import percent

    lines: list[tuple[str, ...]] = [("", "top-1 error", "top-5 error", "loss")]
    for name, score in results:
        errors = [
            (score.top1_error, score.top1_standard_error),
            (score.top5_error, score.top5_standard_error),
        ]
        cells = [f"{percent(error)} (+- {percent(deviation)})" for error, deviation in errors]
        lines.append((name, *cells, f"{score.loss:.4f} (+- {score.loss_standard_error:.4f})"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
