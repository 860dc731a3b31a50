"""What all processes of a run must have in common, compared at its start: else they would train different networks, or
wait for each other for ever."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DataError, DataSet
from ..group.group import Group
from .config import Config, spelled

if TYPE_CHECKING:
    from ..network.model import Network

OWN = ("device", "workers", "cache")  # options that every process may have to itself


def check_alike(group: Group, config: Config, dataset: DataSet, network: Network) -> None:
    """Raises ``ValueError`` or ``DataError``, on all processes, where one differs from the first."""
    if group.size == 1:
        return
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in OWN}
    own = _program(), options, dataset.fingerprint, _digest_of(network.weights())
    first, *others = group.everyone(own, "the start", patient=True)
    program, options, data, weights = first
    for rank, other in enumerate(others, 1):
        who = f"rank {rank} ({group.host(rank)})"
        if other[0] != program:
            raise ValueError(f"{who} runs another version of convnet than rank 0; install the same one on all machines")
        for name, value in options.items():
            if other[1][name] != value:
                raise ValueError(
                    f"{who} was told {spelled(name)} {other[1][name]}, and rank 0 {value}; start all alike"
                )
        if other[2] != data:
            raise DataError(f"{who} finds other data in {config.data} than rank 0; give all processes the same data")
        if other[3] != weights:
            raise ValueError(f"{who} begins with other weights than rank 0; give all processes the same files")


def _program() -> str:
    """A digest of this package's files."""
    home = Path(__file__).parent.parent
    sha = hashlib.sha256()
    for path in sorted(path for suffix in ("*.py", "*.so") for path in home.rglob(suffix)):
        sha.update(path.relative_to(home).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()


def _digest_of(weights: dict[str, Any]) -> str:
    sha = hashlib.sha256()
    for name, values in sorted(weights.items()):
        sha.update(name.encode() + values.tobytes())
    return sha.hexdigest()
