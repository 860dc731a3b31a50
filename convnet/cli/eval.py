"""``convnet-eval``"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import DONE, Parser, guarded, tolerate_encoding, weights_options

if TYPE_CHECKING:
    from ..analysis.evaluate import Outcomes, Scores, Values
    from ..data import DataSet, Split
    from ..output.console import Console
    from ..training.trained import Trained

SPLITS = {"val": "validation", "train": "training", "test": "test"}
PART = 256 * 2**20  # bytes of several runs' probabilities that are in memory together


def main(arguments: Sequence[str] | None = None) -> int:
    from ..kernels.precision import PRECISIONS

    parser = Parser(
        "convnet-eval",
        "Top-1 error, top-5 error where there are more than five classes, and loss of a trained network. Several\n"
        "runs are one ensemble: their probabilities are averaged. RUN is a run folder (its best checkpoint), a\n"
        "checkpoint file, or a file of weights of torchvision's or Caffe's AlexNet (.pth, .safetensors, .npz, .onnx).",
        "convnet-eval runs/first --views 10 --confusion confusion.csv",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, checkpoint, or file of weights")
    weights_options(parser)
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DATA", help="other images, of the same classes (default: the first run's)")
    group.add_argument("--split", choices=SPLITS, default="val", help="which images of DATA (default: val)")
    group.add_argument(
        "--test-range", metavar="A-B", help="which numbered data batches are for --split val (default: the run's)"
    )
    group.add_argument(
        "--views",
        type=int,
        choices=(1, 9, 10),
        default=1,
        help="the centre of each image; nine places, not mirrored; or ten, four corners and centre, also mirrored: "
        "their probabilities averaged (default: 1)",
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
    from ..analysis.evaluate import Confusion
    from ..data.dataset import left_out_lines
    from ..output.results import output_file, write_csv
    from ..training.trained import load_trained

    weights = _weights(chosen)
    saved = output_file("--save-predictions", chosen.save_predictions, ".npy") if chosen.save_predictions else None
    table = output_file("--confusion", chosen.confusion, ".csv") if chosen.confusion else None
    if saved and table and saved.with_suffix(".csv").resolve() == table.resolve():
        raise ValueError(f"--confusion {table}: --save-predictions writes a file of this name; choose another")
    trained = [load_trained(run, console.warn, chosen.model, chosen.classes) for run in chosen.runs]
    datasets = _open_data(trained, chosen.data, chosen.split, console, chosen.test_range)
    for line in (f"data: {datasets[0].name}", *datasets[0].notes, *left_out_lines(datasets[0].left_out)):
        console.say(line)
    splits, classes = [_split(dataset, chosen.split) for dataset in datasets], trained[0].classes
    count = len(splits[0])
    if count < 2 and chosen.fit_weights:
        raise ValueError(f"--fit-weights needs at least 2 images, got {count}")
    ensemble = Ensemble(chosen, console, trained, splits)
    if chosen.fit_weights:
        weights = ensemble.fit_weights(range(0, count, 2))
    looked = range(1, count, 2) if chosen.fit_weights else range(count)
    outcomes = ensemble.outcomes(looked, weights, saved)
    confusion = Confusion.of(outcomes[-1], len(classes))
    names = [*map(str, chosen.runs), "mean", "fitted weights" if chosen.fit_weights else "weighted"]
    results = [(name, found.scores()) for name, found in zip(names, outcomes, strict=False)]

    if table:
        rows = zip(classes, confusion.rows(), strict=True)
        write_csv(table, chain([("", *classes)], ((name, *row.tolist()) for name, row in rows)))
    console.clear()
    if chosen.json:
        print(json.dumps(_as_json(chosen, results, weights, count, datasets[0].name), indent=2), flush=True)
        return DONE
    views = "1 view" if chosen.views == 1 else f"{chosen.views} views"
    print(f"{len(looked):,} {SPLITS[chosen.split]} images, {views} each\n\n{_table(results, len(classes))}")
    if weights:
        fitted = f", fitted on the other {count - len(looked):,} images" if chosen.fit_weights else ""
        print(f"\nweights {', '.join(f'{weight:.3f}' for weight in weights)}{fitted}")
    if pairs := confusion.most(classes):
        print("\nmost confused:")
        for true, taken, wrong, of in pairs:
            print(f"  {true} taken for {taken}: {wrong} of {of}")
    return DONE


class Ensemble:
    """The runs of one call, one or several, and for each the same images at its size.

    One network at a time is on the devices, and probabilities of few images at a time in memory, however many images
    and classes there are.
    """

    def __init__(
        self, chosen: argparse.Namespace, console: Console, trained: Sequence[Trained], splits: Sequence[Split]
    ) -> None:
        self.chosen, self.console, self.trained, self.splits = chosen, console, trained, splits
        self.batch_size = min(chosen.batch_size, max(len(splits[0]), 1))

    def fit_weights(self, indices: range) -> list[float]:
        """Those with the lowest loss on these images."""
        import numpy as np

        from ..analysis.ensemble import lowest_loss
        from ..analysis.evaluate import own_probabilities

        labels, members = self.splits[0].labels, []
        for member in range(len(self.trained)):
            batches = self._batches(member, indices)
            members.append(np.concatenate([own_probabilities(p, labels[which]) for which, p in batches]))
        found: list[float] = lowest_loss(np.stack(members, axis=1)).tolist()
        return found

    def outcomes(self, indices: range, weights: list[float] | None, saved: Path | None) -> list[Outcomes]:
        """Of every run; of several also their mean's, and with ``weights`` the weighted mean's. The last one's
        probabilities are those that are ``saved``."""
        from ..analysis import ensemble
        from ..analysis.evaluate import Outcomes
        from ..output.results import RowsFile

        split, classes = self.splits[0], self.trained[0].classes
        columns = ("name", "label", "predicted", "probability")
        found: list[list[Outcomes]] = []
        with RowsFile(saved, columns) if saved else nullcontext() as rows:
            for which, members in self._together(indices):
                means = [ensemble.mean(members)] if len(members) > 1 else []
                means += [ensemble.mean(members, weights)] if weights else []
                labels = split.labels[which]
                found.append([Outcomes.of(p, labels) for p in (*members, *means)])
                if rows:
                    p, taken = (*members, *means)[-1], found[-1][-1].taken
                    lines = zip(which, labels, taken, p.max(axis=1), strict=True)
                    rows.append(p, ((split.name(i), classes[k], classes[j], f"{q:.6g}") for i, k, j, q in lines))
        return [Outcomes.joined(parts) for parts in zip(*found, strict=True)]

    def _together(self, indices: range) -> Iterator[tuple[range, list[Values]]]:
        """Which images, and every run's probabilities for them, (n, classes)."""
        import numpy as np

        if len(self.trained) == 1:
            for which, p in self._batches(0, indices):
                yield which, [p]
            return
        step = self.batch_size
        row = 4 * len(self.trained[0].classes) * len(self.trained)
        part = max(PART // row // step, 1) * step
        for first in range(0, len(indices), part):
            some = indices[first : first + part]
            members = [
                np.concatenate([p for _, p in self._batches(member, some)]) for member in range(len(self.trained))
            ]
            for start in range(0, len(some), step):
                yield some[start : start + step], [member[start : start + step] for member in members]

    def _batches(self, member: int, indices: range) -> Iterator[tuple[range, Values]]:
        """Which images, and one run's probabilities for them; where memory runs out and ``--retry`` was given, half as
        many at a time from there on."""
        from ..devices.protocol import OutOfMemory

        done, batch_size = 0, self.batch_size
        while done < len(indices):
            try:
                for p in self._once(member, indices, done, batch_size):  # no name here holds on to the network
                    yield indices[done : done + len(p)], p
                    done += len(p)
            except OutOfMemory as error:
                if not self.chosen.retry or batch_size == 1:
                    raise
                batch_size //= 2
                self.console.warn(f"{error.shortage}; trying {batch_size} images at a time")

    def _once(self, member: int, indices: range, done: int, batch_size: int) -> Iterator[Values]:
        """One run's probabilities for the images from the ``done``-th on."""
        import numpy as np

        from ..analysis.evaluate import probability_batches
        from ..data import Subset

        chosen, trained = self.chosen, self.trained[member]
        rest = Subset(self.splits[member], np.asarray(indices[done:]))

        def progress(images: int, _: int) -> None:
            self.console.progress(done + images, len(indices), str(trained.path), "images")

        with trained.open_network(chosen.device, batch_size, chosen.precision) as network:
            yield from probability_batches(network, rest, chosen.views, workers=chosen.workers, progress=progress)


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


def _open_data(
    trained: Sequence[Trained], data: str | None, split: str, console: Console, test_range: str | None = None
) -> list[DataSet]:
    """The same images for every run, at the size of its network. Raises ``DataError`` where they are not the same."""
    from ..data import DataError

    first = trained[0]
    for other in trained[1:]:
        apart = (other.fingerprint, other.config.ranges) != (first.fingerprint, first.config.ranges)
        if apart and other.config.data == first.config.data != "shapes" and not data:
            console.warn(
                f"{other.path} was trained on other pictures of the data than {first.path} (seed, --val-split, ranges "
                "of batches, or the data has changed): it may know some of those that are evaluated here"
            )
        if other.classes != first.classes:
            differ = sorted(set(other.classes) ^ set(first.classes))[:3] or "another order"
            raise DataError(
                f"{first.path} and {other.path} know different classes ({differ}); an ensemble needs the same ones"
            )
    opened: dict[int, DataSet] = {}
    for run in trained:
        if run.image_size not in opened:
            with console.waiting(f"looking through {data or first.config.data}"):
                opened[run.image_size] = first.open_dataset(data, run.image_size, test_range)
    datasets = [opened[run.image_size] for run in trained]
    one = _split(datasets[0], split)
    for run, dataset in zip(trained, datasets, strict=True):
        labels = _split(dataset, split).labels
        if labels.shape != one.labels.shape or (labels != one.labels).any():
            raise DataError(f"{dataset.name}: other labels for {run.path} than for {first.path}; the data has changed")
    return datasets


def _split(dataset: DataSet, name: str) -> Split:
    """Raises ``DataError`` where there is none, or no image in it."""
    from ..data import DataError

    split = {"val": dataset.valid, "train": dataset.train, "test": dataset.test}[name]
    if split is None or not len(split):
        raise DataError(f"{dataset.name}: there is no {SPLITS[name]} image to look at; choose another --split")
    return split


def _table(results: Sequence[tuple[str, Scores]], classes: int) -> str:
    """One line per result, in columns; of five classes the label is always among the first five."""
    from ..output.console import percent

    lines: list[tuple[str, ...]] = [("", "top-1 error", *["top-5 error"] * (classes > 5), "loss")]
    for name, score in results:
        errors = [(score.top1_error, score.top1_standard_error)]
        errors += [(score.top5_error, score.top5_standard_error)] * (classes > 5)
        cells = [f"{percent(error)} (+- {percent(deviation)})" for error, deviation in errors]
        lines.append((name, *cells, f"{score.loss:.4f} (+- {score.loss_standard_error:.4f})"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
