"""``convnet-predict``"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import DATA, DONE, Parser, guarded, tolerate_encoding, weights_options

if TYPE_CHECKING:
    from ..analysis.evaluate import Progress
    from ..data import DataSet, Split
    from ..network.model import Network
    from ..output.console import Console
    from ..training.trained import Trained

    Found = Iterator[tuple[str, list[tuple[Any, ...]]]]  # a file's name, and its lines


def main(arguments: Sequence[str] | None = None) -> int:
    from ..kernels.precision import PRECISIONS

    parser = Parser(
        "convnet-predict",
        "What a trained network sees in image files: the most probable classes, a layer's activations, or the\n"
        "training images most like them. RUN is a run folder (its best checkpoint), a checkpoint file, or a file of\n"
        "weights of torchvision's or Caffe's AlexNet (.pth, .safetensors, .npz, .onnx).",
        "convnet-predict runs/first photos/ --top 3",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, checkpoint, or file of weights")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="file of a picture; folder: all in it and below it, sorted; -: names from standard input, one a line. One "
        "that cannot be read is a warning, and exit code 3 when the others are done",
    )
    weights_options(parser)
    group = parser.add_argument_group("labels")
    group.add_argument("--top", type=int, default=5, metavar="K", help="classes shown per image (default: 5)")
    group.add_argument(
        "--views",
        type=int,
        choices=(1, 9, 10),
        default=1,
        help="the centre of each image; nine places, not mirrored; or ten, four corners and centre, also mirrored: "
        "their probabilities averaged (default: 1)",
    )
    group = parser.add_argument_group("activations, instead of labels")
    group.add_argument("--features", metavar="LAYER", help="of this layer, behind its ReLU, of each image's centre")
    group.add_argument(
        "-o", "--output", metavar="FILE.npy", help="float32 (images, ...); beside it FILE.csv with row, name, label"
    )
    group = parser.add_argument_group("similar images, instead of labels")
    group.add_argument(
        "--neighbours",
        type=int,
        metavar="K",
        help="the K nearest images by Euclidean distance between activations of --features (default: fc7, or what else "
        "the last layer reads)",
    )
    group.add_argument(
        "--among", metavar="FILE.npy", help="search what --features LAYER -o FILE.npy wrote, not a data set"
    )
    group = parser.add_argument_group("data set")
    group.add_argument(
        "--data",
        metavar="DATA",
        help="take activations of its images, or search them for neighbours (default: the run's, for neighbours)",
    )
    group.add_argument("--split", choices=("train", "val"), default="train", help="which of them (default: train)")
    group = parser.add_argument_group("output")
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object instead of text")
    form.add_argument("--csv", action="store_true", help="a table instead of text, UTF-8, one line per image and class")
    group = parser.add_argument_group("device")
    group.add_argument("--device", default="auto", help="auto, cpu, emu[:i] or cuda:i[,cuda:j] (default: auto)")
    group.add_argument("--precision", choices=PRECISIONS, help="(default: the run's; fp32 works everywhere)")
    group.add_argument("-b", "--batch-size", type=int, default=128, metavar="N", help="images at a time (default: 128)")
    group.add_argument("-j", "--workers", type=int, default=2, metavar="N", help="threads that decode (default: 2)")
    parser.add_argument("-q", "--quiet", action="store_true", help="results, warnings and errors only")
    chosen = parser.parse_args(arguments)
    tolerate_encoding()

    def work() -> int:
        from ..output.console import Console

        console = Console(chosen.quiet, chosen.verbose, aside=True)
        try:
            return Prediction(chosen, console).run()
        finally:
            console.clear()

    return guarded(parser.prog, chosen.verbose, work)


class Prediction:
    """One call of the command: its options, where it reports to, and which files could not be used."""

    def __init__(self, chosen: argparse.Namespace, console: Console) -> None:
        self.chosen, self.console = chosen, console
        self.unusable: list[dict[str, str]] = []
        self.classes: list[str] = []  # of the data set, where there is one

    def run(self) -> int:
        from ..analysis.evaluate import check_layer
        from ..analysis.predict import ImageFiles, image_files
        from ..data import DataError
        from ..output.results import output_file
        from ..training.trained import load_trained

        chosen = self.chosen
        _check(chosen)
        output = output_file("-o", chosen.output, ".npy") if chosen.output else None
        trained = load_trained(chosen.run, self.console.warn, chosen.model, chosen.classes)
        layer = chosen.features or trained.spec.features_layer
        if output or chosen.neighbours:
            check_layer(trained.spec, layer)
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # names of files need not be text
        split: Split = ImageFiles(
            list(image_files(chosen.images, sys.stdin or (), self._skip)), trained.image_size, trained.depth
        )
        known: Split | None = None
        if chosen.data or (chosen.neighbours and not chosen.among):  # of whatever classes: they are only shown
            dataset = self._data_set(trained)
            known, self.classes = dataset.train if chosen.split == "train" else dataset.valid, dataset.classes
        if output and known is not None:
            split = known
        if not len(split):
            raise DataError("no images to look at; name files of pictures, or folders that have some")
        most = max(len(split), len(known) if known else 0)
        batch_size, fused = min(chosen.batch_size, most), not (output or chosen.neighbours)
        with trained.open_network(chosen.device, batch_size, chosen.precision, fused=fused) as network:
            if output:
                self._extract(network, split, layer, output)
            elif chosen.neighbours:
                found = self._neighbours(network, split, layer, known)
                self._show({"layer": layer}, "neighbours", ("name", "label", "distance"), found)
            else:
                found = self._labels(network, split, trained.classes)
                self._show({"views": chosen.views}, "labels", ("label", "probability"), found)
        return DATA if self.unusable else DONE

    def _data_set(self, trained: Trained) -> DataSet:
        from ..data import open_dataset

        if not self.chosen.data:
            return trained.open_dataset()
        config = trained.config
        return open_dataset(self.chosen.data, size=trained.image_size, seed=config.seed, val_split=config.val_split)

    # ---- what is found: for each usable file its name and lines

    def _labels(self, network: Network, split: Split, classes: list[str]) -> Found:
        from ..analysis.evaluate import probability_batches, top

        chosen, position = self.chosen, 0
        progress = None if sys.stdout.isatty() and not chosen.json else self._progress("labels", network, split)
        for batch in probability_batches(network, split, chosen.views, workers=chosen.workers, progress=progress):
            best = top(batch, chosen.top)
            for row in self._usable(split, position, len(batch)):
                p = batch[row]
                yield split.name(position + row), [(classes[k], _short(p[k])) for k in best[row]]
            position += len(batch)

    def _neighbours(self, network: Network, split: Split, layer: str, known: Split | None) -> Found:
        from ..analysis.evaluate import feature_batches, features
        from ..analysis.retrieval import nearest, read_rows

        chosen = self.chosen
        saved, lines = read_rows(Path(chosen.among)) if chosen.among else (None, [])
        queries = features(network, split, layer, workers=chosen.workers)
        usable = self._usable(split, 0, len(queries))
        if not usable:
            return
        if known is not None:
            progress = self._progress(layer, network, known)
            batches = feature_batches(network, known, layer, workers=chosen.workers, progress=progress)
            rows, distances = nearest(queries[usable], batches, chosen.neighbours)
        elif saved is not None:
            rows, distances = nearest(queries[usable], saved, chosen.neighbours)
        for index, row, distance in zip(usable, rows.tolist(), distances.tolist(), strict=True):
            if known is not None:
                who = [(known.name(k), self.classes[known.labels[k]]) for k in row]
            else:
                who = [(lines[k]["name"], lines[k].get("label", "")) for k in row]
            yield split.name(index), [(*one, _short(d)) for one, d in zip(who, distance, strict=True)]

    def _extract(self, network: Network, split: Split, layer: str, output: Path) -> None:
        from ..analysis.evaluate import feature_batches
        from ..output.results import RowsFile

        chosen, position = self.chosen, 0
        progress = self._progress(layer, network, split)
        with RowsFile(output, ("name", "label")) as file:
            for batch in feature_batches(network, split, layer, workers=chosen.workers, progress=progress):
                usable = self._usable(split, position, len(batch))
                numbers = [position + row for row in usable]
                labels = [self.classes[split.labels[k]] if self.classes else "" for k in numbers]
                file.append(batch[usable], zip(map(split.name, numbers), labels, strict=True))
                position += len(batch)
        self.console.clear()
        shape = file.shape
        if chosen.json:
            written = str(output) if shape[0] else None
            found = {"run": chosen.run, "layer": layer, "file": written, "shape": shape, "unusable": self.unusable}
            print(json.dumps(found, indent=2), flush=True)
        elif shape[0]:
            print(f"{output}: {layer} of {shape[0]:,} images, float32 {shape}; names in {output.with_suffix('.csv')}")

    # ---- how it is shown

    def _show(self, head: dict[str, Any], kind: str, columns: tuple[str, ...], found: Found) -> None:
        """Text and tables image by image, as they are found; a JSON object at the end."""
        from ..output.results import csv_text

        if self.chosen.json:
            images = [
                {"file": name, kind: [dict(zip(columns, line, strict=True)) for line in lines]} for name, lines in found
            ]
            self.console.clear()
            whole = {"run": self.chosen.run, **head, "images": images, "unusable": self.unusable}
            print(json.dumps(whole, indent=2), flush=True)
            return
        if self.chosen.csv:
            if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
                # A table in a file is the same whatever the locale is; names need not be text.
                sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
            print(csv_text([("file", "rank", *columns)]), end="", flush=True)
        for name, lines in found:
            self.console.clear()
            if self.chosen.csv:
                print(csv_text([(name, rank, *line) for rank, line in enumerate(lines, 1)]), end="", flush=True)
            elif kind == "labels":
                print("\n".join([name, *(f"  {100 * p:6.2f} %  {label}" for label, p in lines)]), flush=True)
            else:
                width = max((len(label) for _, label, _ in lines), default=0)
                print(
                    "\n".join([name, *(f"  {d:9.4f}  {label:{width}}  {other}" for other, label, d in lines)]),
                    flush=True,
                )

    def _progress(self, what: str, network: Network, split: Split) -> Progress | None:
        """None where all is one batch."""
        if len(split) <= network.batch_size:
            return None
        return lambda done, total: self.console.progress(done, total, what, "images")

    # ---- what cannot be used

    def _skip(self, name: str, reason: str) -> None:
        self.console.warn(f"{name}: {reason}")
        self.unusable.append({"file": name, "reason": reason})

    def _usable(self, split: Split, start: int, count: int) -> list[int]:
        """Which of ``count`` images from ``start`` on could be read, counted from ``start``; warns of the others."""
        from ..analysis.predict import ImageFiles

        bad = split.bad if isinstance(split, ImageFiles) else {}
        for index in range(start, start + count):
            if index in bad:
                self._skip(split.name(index), bad[index])
        return [row for row in range(count) if start + row not in bad]


def _short(value: float) -> float:
    """As many digits as mean something in float32."""
    return float(f"{value:.6g}")


def _check(chosen: argparse.Namespace) -> None:
    """Raises ``ValueError`` for options that do not fit together."""
    rules = [
        (chosen.top < 1, f"--top must be at least 1, got {chosen.top}"),
        (
            chosen.neighbours is not None and chosen.neighbours < 1,
            f"--neighbours must be at least 1, got {chosen.neighbours}",
        ),
        (bool(chosen.neighbours and chosen.output), "-o is for --features; --neighbours shows its result"),
        (bool(chosen.features and not chosen.neighbours and not chosen.output), "--features needs -o FILE.npy"),
        (bool(chosen.output and not chosen.features), "-o is for activations; name a layer with --features"),
        (bool(chosen.output and chosen.csv), "--csv is for labels and neighbours; activations go to -o FILE.npy"),
        (
            chosen.views != 1 and bool(chosen.features or chosen.neighbours),
            "activations are those of an image's centre; leave --views out",
        ),
        (bool(chosen.among and not chosen.neighbours), "--among is for --neighbours"),
        (bool(chosen.among and chosen.data), "--among and --data exclude each other; leave one out"),
        (
            bool(chosen.data and not chosen.features and not chosen.neighbours),
            "--data is for --features and --neighbours; convnet-eval labels a data set",
        ),
        (
            bool(chosen.data and chosen.output and chosen.images),
            "activations are either of image files or of --data; leave one out",
        ),
        (
            not chosen.images and not (chosen.data and chosen.output),
            "name image files, folders with some, or - for names from standard input",
        ),
    ]
    for broken, rule in rules:
        if broken:
            raise ValueError(rule)


if __name__ == "__main__":
    raise SystemExit(main())
