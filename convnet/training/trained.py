"""A trained network as other commands take it up: from a run folder, one checkpoint, or a file of weights of others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import DataError, DataSet, HeldOut, NotThere, Statistics, normalisation, open_dataset, open_labelled
from ..interop.files import WeightsError, holds_weights
from ..interop.weights import Said, recognised
from ..network.networks import network
from ..network.spec import NetworkSpec
from ..output.files import read_regular
from . import checkpoint
from .checkpoint import Checkpoint, CheckpointError, Tensors
from .config import Config
from .run import holds_run, saved_run

if TYPE_CHECKING:
    from ..network.model import Network

KNOWS = "knows its network and its classes; --model and --classes are for files of weights of others"


@dataclass(frozen=True)
class Trained:
    """What a run, or somebody else, has learnt so far, and all that is needed to use it. ``path`` is what the user
    named; ``checkpoint`` is None where it is a file of weights.
    """

    path: Path
    config: Config
    statistics: Statistics
    weights: Tensors
    classes: list[str]
    checkpoint: Checkpoint | None = None

    @property
    def step(self) -> int | None:
        """The steps it was trained for."""
        return self.checkpoint.state["step"] if self.checkpoint else None

    @property
    def data(self) -> dict[str, Any] | None:
        """What the checkpoint says of the data."""
        return self.checkpoint.state["dataset"] if self.checkpoint else None

    @property
    def spec(self) -> NetworkSpec:
        return network(self.config.model, num_classes=len(self.classes), **self.config.network_options())

    @property
    def image_size(self) -> int:
        """The side of the images that its crops are taken from."""
        return self.config.size or self.spec.image_size

    def settings(self) -> dict[str, Any]:
        """The options that a network which starts from this one takes over unless told otherwise."""
        names = ("model", "normalisation")
        return {**{name: getattr(self.config, name) for name in names}, **self.config.network_options()}

    @contextmanager
    def open_network(
        self, device: str = "auto", batch_size: int = 128, precision: str | None = None, fused: bool = True
    ) -> Iterator[Network]:
        """The network with its weights, ready for stored images; in the run's precision unless another is given.
        ``fused`` False where activations of any layer are wanted. Where memory runs out, before or while it is used,
        the error says what takes how much and how many images would fit."""
        from ..network.footprint import Use
        from ..network.model import Network

        precision = precision or self.config.precision
        use = Use(self.spec, device, precision, self.image_size, fused)
        with (
            use.explained(batch_size),
            Network(self.spec, device, batch_size, precision, seed=self.config.seed, fused=fused) as opened,
        ):
            opened.load_weights(self.weights)
            opened.set_input(*normalisation(self.statistics, self.config.normalisation))
            yield opened

    @property
    def depth(self) -> int:
        """The bits that the grey values of 16-bit pictures took in the data it was trained on."""
        return int(self.data.get("depth", 16)) if self.data else 16

    @property
    def fingerprint(self) -> str | None:
        """Of the data it was trained on, held out pictures and all."""
        return self.data["fingerprint"] if self.data else None

    @property
    def held_out(self) -> HeldOut | None:
        """The share of the data it was trained on that it was evaluated with."""
        return HeldOut.read(self.data.get("held_out")) if self.data else None

    def open_dataset(self, data: str | None = None, size: int | None = None, test_range: str | None = None) -> DataSet:
        """The data the run was trained on, or labelled images at ``data``, of which it knows at least one class; at its
        network's size, or another. ``test_range`` names other data batches to validate with. Raises ``DataError``."""
        size, seed = size or self.image_size, self.config.seed
        own = data is None or os.path.realpath(data) == os.path.realpath(self.config.data)
        train, test = self.config.ranges if own else (None, None)
        ranges = train, test_range or test
        changed = f"the data has changed since {self.path} was trained on it; it may know some of these images"
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for k, name in enumerate(self.classes) if name in self.classes[:k])
            raise DataError(f"two classes of {self.path} are called {twice!r}; labels need names that differ")
        if data is not None:
            cut = self.held_out
            dataset = open_labelled(
                data, self.classes, size=size, seed=seed, held_out=cut, depth=self.depth, ranges=ranges
            )
            if cut and dataset.held_out != cut and own:
                return replace(dataset, notes=(*dataset.notes, changed))
            return dataset
        if self.data is None:
            raise DataError(f"{self.path} holds weights, and says nothing of data; name some with --data")
        try:
            dataset = open_dataset(
                self.config.data, size=size, seed=seed, val_split=self.config.val_split, ranges=ranges
            )
        except NotThere as error:
            raise DataError(f"{error.what}; where the data of {self.path} has moved, name it with --data") from error
        if dataset.classes != self.classes:
            differ = sorted(set(dataset.classes) ^ set(self.classes))[:3] or "another order"
            raise DataError(
                f"{self.path} knows {len(self.classes)} classes and the data has {len(dataset.classes)} (different: "
                f"{differ}); give data with the classes of the run"
            )
        if dataset.fingerprint != self.fingerprint and self.config.data != "shapes":
            dataset = replace(dataset, notes=(*dataset.notes, changed))
        return dataset


def load_trained(
    run: str | Path, warn: Callable[[str], None], model: str | None = None, classes: str | None = None
) -> Trained:
    """The best checkpoint of a run folder (the newest where none is marked best), a checkpoint file, or a file of
    weights of others, for which ``model`` names the network where the file does not tell, and ``classes`` a file with
    the name of a class in every line, without which they are called by their numbers.

    Raises ``CheckpointError`` or ``WeightsError`` naming what is wrong, and ``ValueError`` where ``model`` and
    ``classes`` are given for what knows its own.
    """
    path = Path(run)
    if holds_weights(path):
        return _of_others(path, model, classes)
    if model or classes:
        raise ValueError(f"{path} {KNOWS}")
    found: Checkpoint | None = None
    if path.is_dir():
        if not holds_run(path):
            raise CheckpointError(f"{path}: expected a run folder or a checkpoint, found a folder without a run")
        if (path / "best").exists():
            try:
                found = checkpoint.load(path / "best")
            except CheckpointError as error:
                warn(f"{error}; taking the newest one instead of the best")
        found = found or checkpoint.newest(path / "checkpoints", warn)
        if found is None:
            raise CheckpointError(f"{path}: expected a checkpoint in checkpoints/, found none; train longer first")
    else:
        found = checkpoint.load(path)
    config, statistics = saved_run(found)
    return Trained(path, config, statistics, found.part("weights"), list(found.state["classes"]), found)


def _of_others(path: Path, model: str | None, classes: str | None) -> Trained:
    """What others trained expects pixels as they had them: one mean for all places, and no noise is known."""
    found = recognised(path)
    if found.said:
        if model or classes:
            raise ValueError(f"{path} {KNOWS}")
        return of_ours(path, found.said, found.weights)
    if found.colours is None:
        raise WeightsError(
            f"{path}: weights of a network of ours, which do not say what it subtracts from pixels; name the run that "
            "they are of, or start a new one from them: convnet-train DATA --init-from FILE"
        )
    name = found.network(model)
    spec = network(name, num_classes=found.classes)
    mean = np.empty((3, spec.crop, spec.crop), np.float32)
    mean[:] = np.array(found.colours.mean)[:, None, None]
    std = np.array(found.colours.std or (1, 1, 1), np.float32)
    statistics = Statistics(mean, std, np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    config = Config(model=name, normalisation=found.colours.normalisation).resolved(spec.defaults, spec.crop)
    return Trained(path, config, statistics, found.weights, _names(classes, found.classes, path))


def of_ours(path: Path, said: Said, weights: Tensors) -> Trained:
    """What ``convnet-export`` has written knows its network, its classes, and what pixels go through."""
    own = network(said.model, num_classes=len(said.classes), **said.options).input_scale
    kind = "mean-image" if said.scale == [own] * 3 else "mean-std"
    std = 1 / np.array(said.scale)  # in float64, so that its inverse is what it was
    statistics = Statistics(said.mean, std, np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    try:
        config = Config(model=said.model, normalisation=kind, **said.options)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{str(path)!r}: tells of a network that none of our runs has: {error}") from error
    spec = network(said.model, num_classes=len(said.classes), **said.options)
    return Trained(path, config.resolved(spec.defaults, spec.crop), statistics, weights, said.classes)


def _names(file: str | None, count: int, path: Path) -> list[str]:
    """The names of the classes in ``file``, or their numbers. Raises ``ValueError``."""
    if file is None:
        return [str(k) for k in range(count)]
    try:
        names = read_regular(file).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"--classes {file}: {getattr(error, 'strerror', None) or 'not text in UTF-8'}") from error
    names = [name.strip() for name in names if name.strip()]
    if len(names) != count:
        raise ValueError(
            f"--classes {file}: {len(names):,} names, and {path} tells {count:,} classes apart; a line for each is "
            "needed, in the order of the network's outputs"
        )
    return names
