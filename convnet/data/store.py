"""A prepared data set: a few large files of JPEG images, an index, and their statistics. Made by ``convnet-prepare``.

    store.json                          what it is and how it was made; written last, so that it means "complete"
    train-00000.bin ... val-00000.bin   JPEG images one after another, up to 2048 in a file
    train.npy val.npy                   the index, one entry (``INDEX``) per image, in the order of training
    train-names.txt val-names.txt       what each image was made from, a line each
    mean.npy                            the mean training image, float32 (3, size, size)
    bad.csv                             what could not be used or was left out, and why

Nothing in these files is trusted: they may have been damaged, or come from somebody else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tokenize
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..output.files import open_descriptor, open_regular, read_regular
from .dataset import I32, U8, DataError, DataSet, HeldOut, Statistics
from .images import centre, scaled
from .jpeg import BadImage, decode_rgb
from .npz import check_header

FORMAT, VERSION = "convnet store", 1
SHARD = 2048  # images per file
INDEX = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("crc32", "<u4")])
MAX_LENGTH = 64 * 2**20  # of one image
MAX_SIZE = 4096  # of its shorter side
MAX_JSON = 64 * 2**20
HASHED = ("train.npy", "val.npy", "train-names.txt", "val-names.txt", "mean.npy")

Index = NDArray[np.void]


def shard_name(part: str, shard: int) -> str:
    return f"{part}-{shard:05d}.bin"


class StoreSplit:
    """The images of one part of a store, as uint8 (size, size, 3); they are resized where they are stored otherwise."""

    def __init__(self, root: Path, part: str, index: Index, names: list[str], stored: int, square: bool, size: int):
        self.size, self._part, self._index, self._names = size, part, index, names
        self._stored, self._square = stored, square
        shards = np.unique(index["shard"]).tolist()
        self._files = {shard: os.path.join(root, shard_name(part, shard)) for shard in shards}  # slow to make per image
        self.labels: I32 = index["label"].astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> bytes:
        """The JPEG bytes of an image. Raises ``DataError`` where they are not those that were stored."""
        shard, offset, length, _, crc32 = self._index[index].item()
        try:
            # Opened for each image: a large store has more files than a process may have open.
            file = open_descriptor(self._files[shard])
            try:
                raw = os.pread(file, length, offset)
            finally:
                os.close(file)
        except OSError as error:
            raise self._damaged(index, str(error.strerror)) from error
        if zlib.crc32(raw) != crc32:
            raise self._damaged(index, "its bytes are not those that were written")
        return raw

    def image(self, index: int, out: U8 | None = None) -> U8:
        """Image ``index``; with ``out``, uint8 (size, size, 3) and contiguous, it is written there."""
        raw = self.read(index)
        try:
            if self._stored == self.size and self._square:
                out = np.empty((self.size, self.size, 3), np.uint8) if out is None else out
                return decode_rgb(raw, out)
            pixels = decode_rgb(raw)
            if min(pixels.shape[:2]) != self._stored:
                raise BadImage(f"{pixels.shape[1]} x {pixels.shape[0]} pixels in a store of {self._stored}")
            if self._stored == self.size:
                pixels = centre(pixels, self.size)
            else:
                pixels = np.array(scaled(Image.fromarray(pixels), self.size))
        except BadImage as error:
            raise self._damaged(index, str(error)) from error
        if out is None:
            return np.ascontiguousarray(pixels)
        out[:] = pixels
        return out

    def _damaged(self, index: int, reason: str) -> DataError:
        path = self._files[int(self._index[index]["shard"])]
        return DataError(f"{path!r}: image {index} of {self._part!r} is damaged ({reason}); prepare it anew")


def open_store(root: Path, *, size: int | None) -> DataSet:
    """The store at ``root``, all of it checked but the images, which are checked as they are read.

    ``size`` None is the store's; ``statistics`` are the store's where ``size`` is. Raises ``DataError`` naming file and
    remedy.
    """
    try:
        return _open(root, size)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError, EOFError) as error:
        raise DataError(f"{str(root)!r} is not a readable store ({error}); prepare it anew") from error


def _open(root: Path, size: int | None) -> DataSet:
    told = read_json(root / "store.json")
    stored, classes, square = told.get("size"), told.get("classes"), not told.get("keep_aspect")
    if told.get("version") != VERSION:
        newer = isinstance(told.get("version"), int) and told["version"] > VERSION
        remedy = "update convnet" if newer else "prepare it anew"
        raise DataError(f"{str(root)!r} has format version {told.get('version')!r:.20}, expected {VERSION}; {remedy}")
    if type(stored) is not int or not 1 <= stored <= MAX_SIZE:
        raise ValueError(f"store.json: a size of {stored!r:.20}, expected 1 to {MAX_SIZE}")
    size = stored if size is None else size
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise ValueError("store.json: expected the names of at least two classes")
    depth = told.get("depth", 16)
    if type(depth) is not int or not 8 <= depth <= 16:
        raise ValueError(f"store.json: a depth of {depth!r:.20}, expected 8 to 16")
    if not isinstance(told.get("fingerprint"), str):
        raise ValueError("store.json: expected a fingerprint")
    hashes = told.get("sha256")
    contents = {name: _checked(root / name, hashes if isinstance(hashes, dict) else {}) for name in HASHED}
    splits = []
    for part in ("train", "val"):
        index = _index(root, part, contents[f"{part}.npy"], len(classes))
        names = contents[f"{part}-names.txt"].decode("utf-8", "replace").split("\n")[:-1]
        if len(names) != len(index):
            raise ValueError(f"{part}-names.txt: {len(names)} lines for {len(index)} images")
        splits.append(StoreSplit(root, part, index, names, stored, square, size))
    counts = f"{len(splits[0]):,} training and {len(splits[1]):,} validation images"
    shape = f"{stored} x {stored}" if square else f"shorter side {stored}"
    resized = "" if stored == size else f", resized to {size} whenever read (quicker: prepare with --size {size})"
    return DataSet(
        name=f"prepared store: {len(classes)} classes, {counts}, {shape}{resized}",
        classes=classes,
        train=splits[0],
        valid=splits[1],
        fingerprint=told["fingerprint"],
        statistics=_statistics(told, contents["mean.npy"], stored) if stored == size else None,
        depth=depth,
        held_out=HeldOut.read(told.get("held_out")),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of this format. Raises ``ValueError`` or ``OSError``."""
    with open_regular(path) as file:
        raw = file.read(MAX_JSON + 1)
    found = json.loads(raw) if len(raw) <= MAX_JSON else None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f'{path.name}: expected a JSON object with the format "{FORMAT}"')
    return found


def _checked(path: Path, hashes: dict[str, Any]) -> bytes:
    raw = read_regular(path)
    if hashlib.sha256(raw).hexdigest() != hashes.get(path.name):
        raise ValueError(f"{path.name}: its bytes are not those that were written")
    return raw


def _array(raw: bytes) -> NDArray[Any]:
    """An array as ``numpy.save`` writes it. Raises ``ValueError``.

    Not ``numpy.load``, which reads archives and other formats too.
    """
    try:
        check_header(raw)
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except (MemoryError, SyntaxError, tokenize.TokenError) as error:  # of a header that promises too much, or is none
        raise ValueError(f"not an array of NumPy: {error}") from error
    return array


def _index(root: Path, part: str, raw: bytes, classes: int) -> Index:
    index: Index = _array(raw)
    if index.dtype != INDEX or index.ndim != 1 or not len(index):
        raise ValueError(f"{part}.npy: expected an index of at least one image, found {index.dtype} {index.shape}")
    if not 0 <= index["label"].min() <= index["label"].max() < classes:
        raise ValueError(f"{part}.npy: expected labels from 0 to {classes - 1}, found others")
    last = int(index["shard"].max())
    if last >= len(index):
        raise ValueError(f"{part}.npy: file number {last}, but only {len(index)} images")
    sizes = np.array([(root / shard_name(part, shard)).stat().st_size for shard in range(last + 1)], np.uint64)
    room = sizes[index["shard"]]
    wrong = (index["offset"] > room) | (index["length"] > room - np.minimum(index["offset"], room))
    if wrong.any() or not 1 <= index["length"].min() <= index["length"].max() <= MAX_LENGTH:
        at = int(wrong.argmax())
        name = shard_name(part, int(index["shard"][at]))
        raise ValueError(f"{name}: {room[at]:,} bytes, too few for image {at} of {part}.npy; it was cut short")
    return index


def _statistics(told: dict[str, Any], raw: bytes, size: int) -> Statistics:
    mean = _array(raw)
    colour = {name: np.array(told.get(name), np.float32) for name in ("std", "deviations", "directions")}
    for name, values, shape in [
        ("mean.npy", mean, (3, size, size)),
        *((name, values, (3, 3) if name == "directions" else (3,)) for name, values in colour.items()),
    ]:
        if values.dtype != np.float32 or values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite float32 numbers of shape {shape}")
    return Statistics(mean, **colour)
