"""A trained network as other commands take it up: from a run folder or from one checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DataError, DataSet, HeldOut, NotThere, Statistics, normalisation, open_dataset, open_labelled
from ..network.spec import NetworkSpec, network
from . import checkpoint
from .checkpoint import Checkpoint, CheckpointError
from .config import Config
from .run import holds_run, saved_run

if TYPE_CHECKING:
    from ..network.model import Network


@dataclass(frozen=True)
class Trained:
    """What a run has learnt so far, and all that is needed to use it. ``path`` is what the user named."""

    path: Path
    checkpoint: Checkpoint
    config: Config
    statistics: Statistics

    @property
    def classes(self) -> list[str]:
        return list(self.checkpoint.state["classes"])

    @property
    def spec(self) -> NetworkSpec:
        return network(self.config.model, num_classes=len(self.classes), **self.config.network_options())

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
        use = Use(self.spec, device, precision, self.spec.image_size, fused)
        with (
            use.explained(batch_size),
            Network(self.spec, device, batch_size, precision, seed=self.config.seed, fused=fused) as opened,
        ):
            opened.load_weights(self.checkpoint.part("weights"))
            opened.set_input(*normalisation(self.statistics, self.config.normalisation))
            yield opened

    @property
    def depth(self) -> int:
        """The bits that the grey values of 16-bit pictures took in the data it was trained on."""
        return int(self.checkpoint.state["dataset"].get("depth", 16))

    @property
    def fingerprint(self) -> str:
        """Of the data it was trained on, held out pictures and all."""
        return str(self.checkpoint.state["dataset"]["fingerprint"])

    @property
    def held_out(self) -> HeldOut | None:
        """The share of the data it was trained on that it was evaluated with."""
        return HeldOut.read(self.checkpoint.state["dataset"].get("held_out"))

    def open_dataset(self, data: str | None = None, size: int | None = None) -> DataSet:
        """The data the run was trained on, or labelled images at ``data``, of which it knows at least one class; at its
        network's size, or another. Raises ``DataError``."""
        size, seed = size or self.spec.image_size, self.config.seed
        changed = f"the data has changed since {self.path} was trained on it; it may know some of these images"
        if data is not None:
            cut = self.held_out
            dataset = open_labelled(data, self.classes, size=size, seed=seed, held_out=cut, depth=self.depth)
            if cut and dataset.held_out != cut and os.path.realpath(data) == os.path.realpath(self.config.data):
                return replace(dataset, notes=(*dataset.notes, changed))
            return dataset
        try:
            dataset = open_dataset(self.config.data, size=size, seed=seed, val_split=self.config.val_split)
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


def load_trained(run: str | Path, warn: Callable[[str], None]) -> Trained:
    """The best checkpoint of a run folder (the newest where none is marked best), or a checkpoint file.

    Raises ``CheckpointError`` naming what is wrong.
    """
    path = Path(run)
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
    return Trained(path, found, *saved_run(found))
