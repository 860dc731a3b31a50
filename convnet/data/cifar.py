"""CIFAR-10 and CIFAR-100 in both published versions, as archive or unpacked folder, and own batches in their layout.

Source: Krizhevsky, "Learning multiple layers of features from tiny images" (2009); the file formats are described at
https://www.cs.toronto.edu/~kriz/cifar.html. Own batches are folders of files ``data_batch_1``, ... and ``test_batch``
(or ``train_data_batch_1``, ... and ``val_data``, as the small versions of ImageNet have them), with square pictures of
any size and any number of classes.

"py-colmajor" is what cuda-convnet (2011) trained on: files ``data_batch_1``, ... whose 'data' is (C S S, cases), a
column for each picture, and a ``batches.meta`` with the mean image as 'data_mean', by which such a folder is known.

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
from numpy.typing import NDArray

from ..output.files import open_regular
from .dataset import F32, I32, U8, DataError
from .pickles import read_plain
from .published import check_room, numbered
from .source import Found, Part, spans
from .tarred import Window, is_tar

MAX_BYTES = 256 * 2**20  # of a file in an archive; the largest published one has 155 MB
MAX_MEMBERS = 100
PIECE = 2**20
SIDE = 32  # pixels of a published picture
OWN = "CIFAR batches"
LABELS = ("labels", "fine_labels")
NAMES = ("label_names", "fine_label_names")
TESTS = "num_test_batches"  # of convnet-prepare's: how many of the last data batches are for validation
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
# In an archive; as a folder it is one of own batches, of which there may be any number.
COLMAJOR = Version(OWN, False, "cifar-10-py-colmajor", {f"data_batch_{k}": "all" for k in range(1, 7)}, "batches.meta")
ARCHIVED = (*PUBLISHED, COLMAJOR)
OWN_BATCH = re.compile(r"(?:train_)?data_batch(?:_(\d{1,6}))?(\.bin)?")
OWN_VALID = ("test_batch", "val_batch", "val_data")


def recognises(path: Path, names: Sequence[str]) -> bool:
    try:
        if path.is_dir():
            return _folder(path) is not None
        with open_regular(path) as file:
            head = _inflated(file).read(HEAD)
        return is_tar(head) and any(version.folder.encode() in head for version in ARCHIVED)
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
    known = {f"{version.folder}/{name}": version for version in ARCHIVED for name in version.all_files()}
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
    meta = Meta([], None, 0)
    if version.names:
        read_meta = _binary_meta if version.binary else _python_meta
        meta = read_meta(load(version.names), f"{where!r}, file {version.names!r}")
    columns = meta.mean is not None
    if version.classes and len(meta.names) != version.classes:
        if strict:
            raise DataError(f"{where!r}, file {version.names!r}: expected the names of {version.classes} classes")
        version = replace(version, title=OWN, classes=0)
    numbers = _numbers(version)
    if columns:
        version = replace(version, files=_colmajor_parts(numbers, meta.tests))
    digest = hashlib.sha256()
    batches: dict[str, list[tuple[U8, I32]]] = {}
    sizes: dict[str, list[tuple[int, int]]] = {}
    shape: tuple[int, ...] = ()
    for name, part in version.files.items():
        place = f"{where!r}, file {name!r}"
        raw = load(name)
        if version.binary:
            images, labels = _binary_batch(raw, place, version.coarse)
        else:
            images, labels = _python_batch(raw, place, columns)
        shape = shape or images.shape[1:]
        if images.shape[1] != shape[0]:
            raise DataError(f"{place}: pictures {images.shape[1]} pixels wide, and {shape[0]} in the files before")
        if images.shape[1:] != shape:
            raise DataError(
                f"{place}: pictures {_colours(images.shape[1:])}, and {_colours(shape)} in the files before"
            )
        if version.classes and (strange := labels[(labels < 0) | (labels >= version.classes)]).size:
            raise DataError(
                f"{place}: labels must be 0 to {version.classes - 1}, found {strange[0]}; for own classes write all "
                f"names into {version.names!r}, or remove it"
            )
        batches.setdefault(part, []).append((images, labels))
        sizes.setdefault(part, []).append((numbers[name], len(labels)))
        digest.update(f"{name.removesuffix('.bin')} {len(labels)} ".encode() + labels.tobytes())
        digest.update(images.data)  # unlike a folder of photographs, the pixels are at hand
    if version.classes and shape[0] != SIDE:
        version = replace(version, title=OWN, classes=0)
    joined = {part: [np.concatenate(arrays) for arrays in zip(*of, strict=True)] for part, of in batches.items()}
    classes, labelled, notes = numbered(
        {p: labels for p, (_, labels) in joined.items()}, dict(enumerate(meta.names)), where
    )
    digest.update("\0".join(classes).encode())
    if version.classes == 100:
        notes.append("the 100 fine labels are the classes; the coarse ones are not used")
    called = {"val": "test"}
    parts = {
        part: Part(
            labels,
            [f"{version.title} {called.get(part, 'train')} {k}" for k in range(len(labels))],
            images,
            tuple(sizes[part]),
        )
        for part, labels in labelled.items()
        for images in joined[part][:1]
    }
    written = "py-colmajor" if columns else "binary" if version.binary else "Python"
    kind = f"{version.title}{f' {form}' if version.classes else ''}, {written} version"
    mean = _mean_image(meta.mean, shape, f"{where!r}, file {version.names!r}") if meta.mean is not None else None
    missing = _missing(set(numbers.values()), where) if columns else ""
    return Found(kind, classes, parts, notes, known=digest.hexdigest(), mean=mean, missing=missing)


def _colours(shape: Sequence[int]) -> str:
    return "in colour" if len(shape) == 3 else "in grey"


def _numbers(version: Version) -> dict[str, int]:
    """The number of each file of pictures: that in its name, else the next one that is free, as of CIFAR-10's
    ``test_batch``, which is 6."""
    found = {name: int(match[1]) for name in version.files if (match := re.search(r"_(\d{1,6})(?:\.bin)?$", name))}
    for name in version.files:
        found.setdefault(name, max(found.values(), default=0) + 1)
    return found


def _colmajor_parts(numbers: dict[str, int], tests: int) -> dict[str, str]:
    """Validation pictures are the last ``tests`` batches, one where that is 0 and there are several."""
    ordered = sorted(numbers, key=numbers.__getitem__)
    held = min(tests or 1, len(ordered) - 1)
    parts = ["train"] * (len(ordered) - held) + ["val"] * held if held else ["all"]
    return dict(zip(ordered, parts, strict=True))


def _missing(numbers: set[int], where: str) -> str:
    if not (gaps := set(range(1, max(numbers))) - numbers):
        return ""
    absent = spans(gaps)
    return (
        f"{where!r} has the data batches {spans(numbers)}, and {absent} {'are' if len(gaps) > 1 else 'is'} missing; "
        "add what is missing, or say with --train-range and --test-range which to use"
    )


def _interleave(planes: U8, side: int) -> U8:
    return np.ascontiguousarray(planes.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))


def _binary_batch(raw: bytes, where: str, coarse: int) -> tuple[U8, I32]:
    """Records of ``coarse`` bytes, a label, and 32 x 32 pixels of red, of green, of blue."""
    record = coarse + 1 + 3 * SIDE**2
    if not raw or len(raw) % record:
        raise DataError(f"{where}: {len(raw):,} bytes, but it must be 1 or more records of {record} bytes")
    records = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return _interleave(records[:, coarse + 1 :], SIDE), records[:, coarse].astype(np.int32)


def _python_batch(raw: bytes, where: str, columns: bool) -> tuple[U8, I32]:
    """Pictures (n, S, S, 3), or (n, S, S) of grey ones in ``columns``, and their labels."""
    batch = read_plain(raw, where)
    data: NDArray[Any] | None = batch.get("data") if isinstance(batch, dict) else None
    data = data if isinstance(data, np.ndarray) else np.empty((0, 0))
    count, pixels = (data.shape[::-1] if columns else data.shape) if data.ndim == 2 else (0, 0)
    colours = 1 if columns and math.isqrt(pixels) ** 2 == pixels else 3
    side = math.isqrt(pixels // colours)
    if data.dtype != np.uint8 or not side or pixels != colours * side**2:
        found = f"{data.dtype} {data.shape}" if data.size else "none"
        wanted = "columns of 3 S S or S S bytes" if columns else "rows of 3 S S bytes"
        raise DataError(f"{where}: 'data' must be a uint8 array of {wanted} (3072 for 32 x 32), found {found}")
    if not count:
        raise DataError(f"{where}: 'data' has no picture")
    key = next((key for key in LABELS if key in batch), LABELS[0])
    labels = _integers(batch.get(key))
    if labels is None:
        raise DataError(f"{where}: {key!r} must be a list or an array of numbers from 0 on")
    if len(labels) != count:
        raise DataError(f"{where}: {len(labels)} labels for {count} {'columns' if columns else 'rows'} of 'data'")
    rows: U8 = np.ascontiguousarray(data.T if columns else data)
    return rows.reshape(count, side, side) if colours == 1 else _interleave(rows, side), labels


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


@dataclass(frozen=True)
class Meta:
    """What is said beside the batches: the names of the classes; the mean image of those in columns, float32 (n,); and
    how many batches at the end are for validation, 0 where that is not said."""

    names: list[str]
    mean: F32 | None
    tests: int


def _binary_meta(raw: bytes, where: str) -> Meta:
    return Meta([line.strip() for line in raw.decode("utf-8", "replace").splitlines() if line.strip()], None, 0)


def _python_meta(raw: bytes, where: str) -> Meta:
    meta = read_plain(raw, where)
    meta = meta if isinstance(meta, dict) else {}
    names = next((meta[key] for key in NAMES if key in meta), None)
    names = names if isinstance(names, (list, tuple)) else []
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    mean, tests = meta.get("data_mean"), meta.get(TESTS, 0)
    if mean is not None and not (
        isinstance(mean, np.ndarray) and mean.dtype.kind == "f" and mean.size and np.abs(mean).max() <= 255
    ):
        raise DataError(f"{where}: 'data_mean' must be an array of numbers from 0 to 255, a mean image")
    if type(tests) is not int or not 0 <= tests < 10**6:
        raise DataError(f"{where}: {TESTS!r} must be a number of batches")
    return Meta(
        texts if all(isinstance(text, str) for text in texts) else [],
        None if mean is None else mean.astype(np.float32).ravel(),
        tests,
    )


def _mean_image(mean: F32, shape: Sequence[int], where: str) -> F32:
    """(3, side, side); the mean of grey pictures three times."""
    if mean.size != math.prod(shape):
        raise DataError(f"{where}: 'data_mean' has {mean.size:,} numbers, and a picture {math.prod(shape):,}")
    return np.ascontiguousarray(np.broadcast_to(mean.reshape(-1, *shape[:2]), (3, *shape[:2])))
