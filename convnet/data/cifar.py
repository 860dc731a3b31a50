"""CIFAR-10 and CIFAR-100 in both published versions, as archive or unpacked folder, and own batches in their layout.

Source: Krizhevsky, "Learning multiple layers of features from tiny images" (2009); the file formats are described at
https://www.cs.toronto.edu/~kriz/cifar.html. Own batches are folders of files ``data_batch_1``, ... and ``test_batch``
(or ``train_data_batch_1``, ... and ``val_data``, as the small versions of ImageNet have them), with square pictures of
any size and any number of classes.

Nothing is unpacked to disk: an archive is walked member by member, and only regular files whose full name is one of
the published ones are read, up to a size limit. The Python version goes through ``convnet.data.pickles``.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..output.files import open_regular
from .dataset import I32, U8, DataError
from .pickles import read_plain
from .published import check_room, numbered
from .source import Found, Part
from .tarred import Window, is_tar

MAX_BYTES = 256 * 2**20  # of a file in an archive; the largest published one has 155 MB
MAX_MEMBERS = 100
PIECE = 2**20
SIDE = 32  # pixels of a published picture
OWN = "CIFAR batches"
LABELS = ("labels", "fine_labels")
NAMES = ("label_names", "fine_label_names")
HEAD = 4096  # bytes of an archive that are looked at to recognise it


@dataclass(frozen=True)
class Version:
    """What a folder of batches has: files of pictures with the part that each is of, and one of names, "" where there
    is none. ``classes`` is 0 where any number will do. ``coarse``: bytes in front of a label in the binary version."""

    title: str
    binary: bool
    folder: str
    files: dict[str, str]
    names: str
    classes: int = 0
    coarse: int = 0

    def all_files(self) -> list[str]:
        return [*self.files, *filter(None, [self.names])]


def _published() -> tuple[Version, ...]:
    ten = {**{f"data_batch_{k}": "train" for k in range(1, 6)}, "test_batch": "val"}
    hundred = {"train": "train", "test": "val"}
    ten_binary, hundred_binary = ({f"{name}.bin": part for name, part in files.items()} for files in (ten, hundred))
    return (
        Version("CIFAR-10", False, "cifar-10-batches-py", ten, "batches.meta", 10),
        Version("CIFAR-10", True, "cifar-10-batches-bin", ten_binary, "batches.meta.txt", 10),
        Version("CIFAR-100", False, "cifar-100-python", hundred, "meta", 100),
        Version("CIFAR-100", True, "cifar-100-binary", hundred_binary, "fine_label_names.txt", 100, 1),
    )


PUBLISHED = _published()
OWN_BATCH = re.compile(r"(?:train_)?data_batch(?:_(\d{1,6}))?(\.bin)?")
OWN_VALID = ("test_batch", "val_batch", "val_data")


def recognises(path: Path, names: Sequence[str]) -> bool:
    try:
        if path.is_dir():
            return _folder(path) is not None
        with open_regular(path) as file:
            head = _inflated(file).read(HEAD)
        return is_tar(head) and any(version.folder.encode() in head for version in PUBLISHED)
    except (OSError, EOFError, zlib.error, ValueError):
        return False


def read(path: Path) -> Found:
    """Raises ``DataError`` for missing, damaged or hostile files."""
    try:
        if not path.is_dir():
            return _read_archive(path)
        found = _folder(path)
        if found is None:
            raise DataError(f"{str(path)!r} has neither 'data_batch_1' nor 'data_batch_1.bin', nor CIFAR-100's 'train'")
        if found[0] != path:
            titles = sorted({version.title for version in PUBLISHED if (path / version.folder).is_dir()})
            if len(titles) > 1:
                raise DataError(f"{str(path)!r} has folders of {' and '.join(titles)}; name one of them")
        return _read_folder(*found)
    except OSError as error:
        where = error.filename or str(path)
        raise DataError(f"CIFAR batches: cannot read {where!r}: {error.strerror or error}") from error


# ---- which files there are ----


def _folder(root: Path) -> tuple[Path, Version] | None:
    """The folder with the files, ``root`` or one of a published name in it, and what it holds."""
    for version in PUBLISHED:
        for folder in (root, root / version.folder):
            if folder.name == version.folder and any((folder / name).exists() for name in version.files):
                return folder, version
            if all((folder / name).is_file() for name in version.all_files()):
                return folder, version
    for binary, names in ((False, "batches.meta"), (True, "batches.meta.txt")):
        if batches := _own(root, binary):
            own = Version(OWN, binary, root.name, batches, names if (root / names).exists() else "")
            return root, own
    return None


def _own(folder: Path, binary: bool) -> dict[str, str]:
    """The batches in a folder, in the order of their numbers, and the part of each."""
    suffix = ".bin" if binary else ""
    present = sorted(name for name in os.listdir(folder) if not (folder / name).is_dir())
    found = [(name, match) for name in present if (match := OWN_BATCH.fullmatch(name)) and (match[2] or "") == suffix]
    batches = [name for name, match in sorted(found, key=lambda entry: int(entry[1][1] or 0))]
    valid = [name + suffix for name in OWN_VALID if name + suffix in present]
    parts = {name: "train" if valid else "all" for name in batches}
    return parts | {name: "val" for name in valid} if batches else {}


def _read_folder(folder: Path, version: Version) -> Found:
    sizes = {}
    for name in version.all_files():
        try:
            with open_regular(folder / name) as file:
                sizes[name] = os.fstat(file.fileno()).st_size
        except FileNotFoundError as error:
            raise DataError(f"{str(folder)!r} is not a complete {version.title}; missing is {name!r}") from error
    check_room(3 * sum(sizes.values()), repr(str(folder)))  # as they are, taken apart, and all in one

    def load(name: str) -> bytes:
        with open_regular(folder / name) as file:
            return file.read(sizes[name])

    return _found(str(folder), "folder", version, load, folder.name == version.folder and bool(version.classes))


def _inflated(file: BinaryIO) -> Any:
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if gzipped else file


def _read_archive(path: Path) -> Found:
    known = {f"{version.folder}/{name}": version for version in PUBLISHED for name in version.all_files()}
    files: dict[str, bytes] = {}
    try:
        with open_regular(path) as file:
            bounded: Any = Window(_inflated(file), repr(str(path)))
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                for count, member in enumerate(archive):
                    where = f"{str(path)!r}, member {member.name!r:.80}"
                    if count >= MAX_MEMBERS or not 0 <= member.size <= MAX_BYTES:
                        raise DataError(f"{where}: more or larger files than a CIFAR archive has; this is none")
                    name = member.name.removeprefix("./")
                    if not member.isreg() or name not in known:
                        continue
                    if name in files:
                        raise DataError(f"{where}: occurs twice")
                    files[name] = _member(archive, member, where)
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is a file, but not a readable tar archive of CIFAR; fetch it again") from error
    version = next((version for name, version in known.items() if name in files), PUBLISHED[0])
    if missing := [name for name in version.all_files() if f"{version.folder}/{name}" not in files]:
        raise DataError(
            f"{str(path)!r} is not a complete {version.title} archive; missing are {', '.join(sorted(missing))}"
        )
    return _found(str(path), "archive", version, lambda name: files.pop(f"{version.folder}/{name}"), True)


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    check_room(4 * member.size, where)
    source = archive.extractfile(member)
    assert source is not None  # it is a regular file
    raw = bytearray()
    while piece := source.read(PIECE):  # an archive that is cut short raises
        raw += piece
    return bytes(raw)


# ---- what is in them ----


def _found(where: str, form: str, version: Version, load: Callable[[str], bytes], strict: bool) -> Found:
    """``strict``: it is called by a published name, and must be as published."""
    read_names = _binary_names if version.binary else _python_names
    names = read_names(load(version.names), f"{where!r}, file {version.names!r}") if version.names else []
    if version.classes and len(names) != version.classes:
        if strict:
            raise DataError(f"{where!r}, file {version.names!r}: expected the names of {version.classes} classes")
        version = replace(version, title=OWN, classes=0)
    digest = hashlib.sha256()
    batches: dict[str, list[tuple[U8, I32]]] = {}
    side = 0
    for name, part in version.files.items():
        place = f"{where!r}, file {name!r}"
        raw = load(name)
        images, labels = _binary_batch(raw, place, version.coarse) if version.binary else _python_batch(raw, place)
        side = side or images.shape[1]
        if images.shape[1] != side:
            raise DataError(f"{place}: pictures {images.shape[1]} pixels wide, and {side} in the files before")
        if version.classes and (strange := labels[(labels < 0) | (labels >= version.classes)]).size:
            raise DataError(
                f"{place}: labels must be 0 to {version.classes - 1}, found {strange[0]}; for own classes write all "
                f"names into {version.names!r}, or remove it"
            )
        batches.setdefault(part, []).append((images, labels))
        digest.update(f"{name.removesuffix('.bin')} {len(labels)} ".encode() + labels.tobytes())
        digest.update(images.data)  # unlike a folder of photographs, the pixels are at hand
    if version.classes and side != SIDE:
        version = replace(version, title=OWN, classes=0)
    joined = {part: [np.concatenate(arrays) for arrays in zip(*of, strict=True)] for part, of in batches.items()}
    classes, numbers, notes = numbered({p: labels for p, (_, labels) in joined.items()}, dict(enumerate(names)), where)
    digest.update("\0".join(classes).encode())
    if version.classes == 100:
        notes.append("the 100 fine labels are the classes; the coarse ones are not used")
    called = {"val": "test"}
    parts = {
        part: Part(labels, [f"{version.title} {called.get(part, 'train')} {k}" for k in range(len(labels))], images)
        for part, labels in numbers.items()
        for images in joined[part][:1]
    }
    kind = f"{version.title}{f' {form}' if version.classes else ''}, {'binary' if version.binary else 'Python'} version"
    return Found(kind, classes, parts, notes, known=digest.hexdigest())


def _interleave(planes: U8, side: int) -> U8:
    return np.ascontiguousarray(planes.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))


def _binary_batch(raw: bytes, where: str, coarse: int) -> tuple[U8, I32]:
    """Records of ``coarse`` bytes, a label, and 32 x 32 pixels of red, of green, of blue."""
    record = coarse + 1 + 3 * SIDE**2
    if not raw or len(raw) % record:
        raise DataError(f"{where}: {len(raw):,} bytes, but it must be 1 or more records of {record} bytes")
    records = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return _interleave(records[:, coarse + 1 :], SIDE), records[:, coarse].astype(np.int32)


def _python_batch(raw: bytes, where: str) -> tuple[U8, I32]:
    batch = read_plain(raw, where)
    data = batch.get("data") if isinstance(batch, dict) else None
    side = math.isqrt(data.shape[1] // 3) if isinstance(data, np.ndarray) and data.ndim == 2 else 0
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or not side or data.shape[1] != 3 * side**2:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else "none"
        raise DataError(
            f"{where}: 'data' must be a uint8 array of rows of 3 S S bytes (3072 for 32 x 32), found {found}"
        )
    if not len(data):
        raise DataError(f"{where}: 'data' has no picture")
    key = next((key for key in LABELS if key in batch), LABELS[0])
    labels = _integers(batch.get(key))
    if labels is None:
        raise DataError(f"{where}: {key!r} must be a list or an array of numbers from 0 on")
    if len(labels) != len(data):
        raise DataError(f"{where}: {len(labels)} labels for {len(data)} rows of 'data'")
    return _interleave(data, side), labels


def _integers(labels: object) -> I32 | None:
    """Labels as lists or arrays of integers have them, -1 (not known) included; None for anything else."""
    if isinstance(labels, (list, tuple)) and all(type(label) is int for label in labels):
        if not all(-1 <= label < 2**31 for label in labels):
            return None
        return np.array(labels, np.int32)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (labels.size,):
        return None
    if labels.size and not -1 <= int(labels.min()) <= int(labels.max()) < 2**31:
        return None
    return labels.astype(np.int32)


def _binary_names(raw: bytes, where: str) -> list[str]:
    return [line.strip() for line in raw.decode("utf-8", "replace").splitlines() if line.strip()]


def _python_names(raw: bytes, where: str) -> list[str]:
    meta = read_plain(raw, where)
    names = next((meta[key] for key in NAMES if key in meta), None) if isinstance(meta, dict) else None
    if not isinstance(names, (list, tuple)):
        return []
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    return texts if all(isinstance(text, str) for text in texts) else []
