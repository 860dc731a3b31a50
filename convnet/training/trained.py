"""A trained network as other commands take it up: from a run folder or from one checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DataError, DataSet, Statistics, normalisation, open_dataset
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

    def open_dataset(self, data: str | None = None, seed: int | None = None) -> DataSet:
        """The data the run was trained on, or ``data``, which must have the same classes; drawn images are those of
        the run's seed unless another is given. Raises ``DataError``."""
        seed = self.config.seed if seed is None else seed
        dataset = open_dataset(data or self.config.data, size=self.spec.image_size, seed=seed)
        if dataset.classes != self.classes:
            differ = sorted(set(dataset.classes) ^ set(self.classes))[:3] or "another order"
            raise DataError(
                f"{self.path} knows {len(self.classes)} classes and the data has {len(dataset.classes)} (different: "
                f"{differ}); give data with the classes of the run"
            )
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
