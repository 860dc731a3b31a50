"""Checkpoints of cuda-convnet (2011), the 2012 program and cuda-convnet2 (2014), read without running anything.

One is a pickle of ``model_state`` and ``op``, or a zip archive with that as its one member ``data``; a run's folder has
one or some, called EPOCH.BATCH. ``model_state`` has the layers, each a dict of what the definition said of it, in which
``inputLayers`` are references to others; these are never followed. Layouts there and here:

    conv weights    (C R S, K) in C order, C of a group, K counts all groups in order     (K, C, R, S)
    local weights   (P Q C R S, K)                                                        (P, Q, K, C, R, S)
    fc weights      (inputs, outputs), mostly in Fortran order                            (outputs, inputs)
    biases          (K, 1), (K P Q, 1) where each place has its own, (1, outputs)         (K,), (K, P, Q), (outputs,)

Velocities, "inc" there, are laid out as what they change, and have the sign that ours have.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ..data import DataError
from ..data.pickles import Array, read_2012
from ..data.published import check_room
from ..data.zipped import content, opened
from ..output.files import open_regular, printable, read_regular
from .files import WeightsError

Values = np.ndarray[Any, Any]

ZIP, MEMBER = b"PK\x03\x04", "data"
DEFLATION = 1100  # zip cannot make more of a byte
NUMBERS = ("<f4", "<f8")  # of weights; other arrays are passed over
LAYERS = ("conv", "local", "fc")  # types with weights
NAME = re.compile(r"[\w+-][\w.+-]*", re.ASCII)
FILE = re.compile(r"(\d{1,9})\.(\d{1,9})")
SHARED = 4  # times that the file's bytes may occur, where layers share weights
MOST = 2**31  # of any number of a layer's geometry


class Layer(TypedDict):
    """A layer with weights, in our layouts, float32, by the names that it has there: a matrix of ``weights`` and its
    velocity, ``weightsInc``, for each input, one bias for all of them, and, where the channels that a group reads were
    drawn, ``filterConns``: for each input those of one group after another, or None."""

    type: str
    weights: list[Values]
    biases: Values
    weightsInc: list[Values]
    biasesInc: Values
    filterConns: list[list[int] | None]


@dataclass(frozen=True)
class Checkpoint2012:
    """``epoch`` and ``batchnum``: the data batch that came last, both counted from 1."""

    layers: dict[str, Layer]
    epoch: int
    batchnum: int

    def arrays(self) -> dict[str, Values]:
        """Weights and biases by the names that networks here give them: ``conv1.weight``, with several inputs
        ``conv1.weight0``, ``conv1.weight1``, ..., and ``conv1.bias``."""
        found: dict[str, Values] = {}
        for name, layer in self.layers.items():
            several = len(layer["weights"]) > 1
            found |= {f"{name}.weight{k if several else ''}": values for k, values in enumerate(layer["weights"])}
            found[f"{name}.bias"] = layer["biases"]
        return found


def recognises(path: Path) -> bool:
    """Whether ``path`` is a checkpoint of that time, by its first bytes, or a folder of such."""
    try:
        if path.is_dir():
            newest = _newest(path)
            return newest is not None and recognises(newest)
        with open_regular(path) as file:
            head = file.read(512)
        if head[:4] == ZIP:
            with zipfile.ZipFile(path) as archive:
                return archive.namelist() == [MEMBER]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
    # a dict in protocol 2 whose first key comes at once
    return head[:3] == b"\x80\x02}" and (b"model_state" in head or b"U\x02op" in head)


def read_checkpoint(path: str | Path) -> Checkpoint2012:
    """The checkpoint at ``path``, a file, or a run's folder, of which it is the newest.

    Raises ``WeightsError`` for what is none, is damaged, or has weights whose shapes are not those of their layer, or
    which are not finite.
    """
    path = Path(path)
    try:
        if path.is_dir():
            newest = _newest(path)
            if newest is None:
                raise DataError(f"{str(path)!r} has no checkpoint called EPOCH.BATCH, as 100.5")
            path = newest
        where = repr(str(path))
        raw = _program(path, where)
        return _checkpoint(read_2012(raw, where), where, len(raw))
    except DataError as error:
        raise WeightsError(str(error)) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error


def _newest(folder: Path) -> Path | None:
    found = [(int(match[1]), int(match[2]), name) for name in os.listdir(folder) if (match := FILE.fullmatch(name))]
    return folder / max(found)[2] if found else None


def _program(path: Path, where: str) -> bytes:
    with open_regular(path) as file:
        zipped = file.read(4) == ZIP
    if not zipped:
        check_room(4 * os.stat(path).st_size, where, instead="")
        return read_regular(path)
    with opened(path, "checkpoint") as archive:
        if archive.namelist() != [MEMBER]:
            raise ValueError(f"its members are not one, called {MEMBER!r}")
        info = archive.getinfo(MEMBER)
        if info.file_size > info.compress_size * DEFLATION:
            raise ValueError(f"{info.compress_size:,} bytes cannot become {info.file_size:,}")
        check_room(4 * info.file_size, where, instead="")
        return content(archive, MEMBER, 0, info.file_size).tobytes()


# ---- what is in it ----


def _checkpoint(found: Any, where: str, size: int) -> Checkpoint2012:
    state = _named(_named(found).get("model_state"))
    layers = state.get("layers")
    if isinstance(layers, dict):
        layers = list(layers.values())
    epoch, batch = _count(state.get("epoch")), _count(state.get("batchnum"))
    if not isinstance(layers, list) or epoch is None or batch is None:
        raise DataError(
            f"{where}: a pickle without a 'model_state' of 'layers', 'epoch' and 'batchnum'; this is no checkpoint of "
            "the 2012 program"
        )
    read: dict[str, Layer] = {}
    room = SHARED * size
    for k, entry in enumerate(layers):
        layer = _named(entry)
        if "weights" not in layer:
            continue
        name = _text(layer.get("name"))
        if not NAME.fullmatch(name) or len(name) > 100 or name in read:
            told = f"the name {printable(name)!r:.80}, which is another's" if name in read else "no name"
            raise DataError(f"{where}: layer {k} has weights and {told}")
        reader = _Reader(f"{where}, layer {name}", layer, room)
        read[name] = reader.read()
        room = reader.room
    if not read:
        raise DataError(f"{where}: none of its {len(layers)} layers has weights")
    return Checkpoint2012(read, epoch, batch)


def _named(value: Any) -> dict[str, Any]:
    """A dict with keys as text; empty for what is none."""
    return {_text(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and 0 <= value < MOST else None


class _Reader:
    """Of one layer, whose keys are ``layer``. ``room``: bytes that its arrays and those of others may still have."""

    def __init__(self, where: str, layer: Mapping[str, Any], room: int) -> None:
        self.where, self.layer, self.room = where, layer, room
        self.type = _text(layer.get("type"))
        if self.type not in LAYERS:
            raise DataError(
                f"{where}: weights of a layer of the type {printable(self.type)!r:.40}, which is not read; those of "
                f"{', '.join(LAYERS)} are"
            )

    def read(self) -> Layer:
        weights, increments = self._list("weights"), self._list("weightsInc")
        if not weights or len(weights) != len(increments):
            raise DataError(f"{self.where}: {len(weights)} matrices of weights and {len(increments)} of velocities")
        place = self._fc if self.type == "fc" else self._windows
        found: list[Values] = []
        velocities: list[Values] = []
        for k, pair in enumerate(zip(weights, increments, strict=True)):
            for what, value, of in zip(("weights", "weightsInc"), pair, (found, velocities), strict=True):
                of.append(place(k, f"{what}[{k}]", value))
        biases, steps = (self._bias(what) for what in ("biases", "biasesInc"))
        return Layer(
            type=self.type,
            weights=found,
            biases=biases,
            weightsInc=velocities,
            biasesInc=steps,
            filterConns=self._connections(len(weights)),
        )

    # ---- numbers of the geometry

    def _list(self, key: str) -> list[Any]:
        value = self.layer.get(key)
        return list(value) if isinstance(value, (list, tuple)) else []

    def _number(self, key: str, k: int | None = None, default: int | None = None) -> int:
        """``key`` of the layer, or of its input ``k``; at least 1."""
        value = self.layer.get(key, default)
        if k is not None and isinstance(value, (list, tuple)):
            value = value[k] if k < len(value) else None
        number = _count(value)
        if not number:
            raise DataError(f"{self.where}: {key!r} must be {'a number' if k is None else 'numbers'} from 1 on")
        return number

    def _windows(self, k: int, what: str, value: Any) -> Values:
        """Weights of a convolution or of a local layer."""
        K, side = self._number("filters", 0), self._number("filterSize", k)
        channels, groups = self._number("filterChannels", k), self._number("groups", k, 1)
        if K % groups:
            raise DataError(f"{self.where}: {K} filters in {groups} groups")
        inner = (channels, side, side)
        if self.type == "conv":
            found = self._array(what, value, (channels * side**2, K))
            return np.ascontiguousarray(found.reshape(*inner, K).transpose(3, 0, 1, 2))
        P = self._number("modulesX")
        found = self._array(what, value, (P * P * channels * side**2, K))
        return np.ascontiguousarray(found.reshape(P, P, *inner, K).transpose(0, 1, 5, 2, 3, 4))

    def _fc(self, k: int, what: str, value: Any) -> Values:
        inputs = self._number("numInputs", k) if "numInputs" in self.layer else None
        return np.ascontiguousarray(self._array(what, value, (inputs, self._number("outputs"))).T)

    def _bias(self, what: str) -> Values:
        value = self.layer.get(what)
        if self.type == "fc":
            return self._array(what, value, (1, self._number("outputs"))).reshape(-1).copy()
        K = self._number("filters", 0)
        if self.type == "local" or not self.layer.get("sharedBiases", 1):
            P = self._number("modulesX")
            return self._array(what, value, (K * P * P, 1)).reshape(K, P, P).copy()
        return self._array(what, value, (K, 1)).reshape(-1).copy()

    def _array(self, what: str, value: Any, shape: tuple[int | None, int]) -> Values:
        """float32 of this shape, None standing for any extent."""
        values = getattr(value, "value", None) if isinstance(value, Array) else None
        wanted = " x ".join("any" if extent is None else str(extent) for extent in shape)
        if values is None or values.dtype.str not in NUMBERS or values.ndim != 2 or not values.size:
            told = f"{values.dtype} {values.shape}" if values is not None else type(value).__name__
            raise DataError(f"{self.where}: {what} must be an array of {wanted} numbers in float32, found {told:.60}")
        if any(extent not in (None, found) for extent, found in zip(shape, values.shape, strict=True)):
            raise DataError(
                f"{self.where}: {what} must be {wanted} numbers, as the layer's other keys say, found "
                f"{' x '.join(map(str, values.shape))}"
            )
        self.room -= values.nbytes
        if self.room < 0:
            raise DataError(f"{self.where}: more weights than the file has bytes for")
        with np.errstate(over="ignore"):
            found: Values = np.asarray(values, np.float32)
        if not np.isfinite(found).all():
            raise DataError(f"{self.where}: {what} has values that are not finite in float32")
        return found

    def _connections(self, inputs: int) -> list[list[int] | None]:
        """The channels that the groups of every input read, one group after another, where they were drawn."""
        sparse, drawn = self._list("randSparse"), self._list("filterConns")
        if not any(bool(each) for each in sparse if isinstance(each, int)):
            return [None] * inputs
        if len(sparse) != inputs or len(drawn) != inputs:
            raise DataError(f"{self.where}: randSparse and filterConns must be lists for {inputs} inputs")
        found: list[list[int] | None] = []
        for k, (is_sparse, of) in enumerate(zip(sparse, drawn, strict=True)):
            plain: Any = getattr(of, "value", None) if isinstance(of, Array) else of
            plain = plain.tolist() if isinstance(plain, np.ndarray) else plain
            wanted, channels = (
                self._number("groups", k) * self._number("filterChannels", k),
                self._number("channels", k),
            )
            fits = isinstance(plain, (list, tuple)) and len(plain) == wanted
            if is_sparse and not (fits and all(type(c) is int and 0 <= c < channels for c in plain)):
                raise DataError(
                    f"{self.where}: filterConns[{k}] must be {wanted} numbers of channels, from 0 to {channels - 1}"
                )
            found.append(list(plain) if is_sparse else None)
        return found
