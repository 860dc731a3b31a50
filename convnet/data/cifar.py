"""CIFAR-10 in both published versions, as archive or unpacked folder. Source: Krizhevsky, "Learning multiple layers of
features from tiny images" (2009); the file formats are described at https://www.cs.toronto.edu/~kriz/cifar.html.

Nothing is unpacked to disk: the archive is walked member by member, and only regular files whose full name is one of
the published ones are read, up to a size limit. The Python version goes through ``convnet.data.pickles``.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..output.files import open_regular
from .dataset import ACCEPTED, I32, U8, DataError, DataSet, placed
from .pickles import read_plain

CLASSES = 10
BATCHES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
RECORD = 1 + 3072  # binary version: one label, then 32 x 32 pixels of red, of green, of blue
MAX_RECORDS = 10_000  # per file
MAX_BYTES = 64 * 2**20  # per file; the published ones have at most 31 MB
MAX_MEMBERS = 100

Part = tuple[U8, I32]  # images (n, 32, 32, 3), labels (n,)


class CifarSplit:
    """CIFAR images enlarged to ``size`` x ``size`` on demand (bilinear); kept in memory as published, 3 KB each.

    ``part`` is "train" or "test".
    """

    def __init__(self, part: str, images: U8, labels: I32, *, size: int) -> None:
        self.size, self._part, self._images, self.labels = size, part, images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"CIFAR-10 {self._part} {index}"

    def image(self, index: int, out: U8 | None = None) -> U8:
        image = Image.fromarray(self._images[index])
        return placed(np.array(image.resize((self.size, self.size), Image.Resampling.BILINEAR)), out)


def is_cifar_folder(root: Path) -> bool:
    return _find_folder(root) is not None


def open_cifar(path: Path, *, size: int) -> DataSet:
    """The CIFAR-10 archive or folder at ``path``. Raises ``DataError`` for missing, damaged or hostile files."""
    files, kind = _read_folder(path) if path.is_dir() else _read_archive(path)
    binary = "batches.meta.txt" in files
    parts = []
    digest = hashlib.sha256()
    for batch in BATCHES:
        name = f"{batch}.bin" if binary else batch
        where = f"{str(path)!r}, file {name!r}"
        images, labels = (_binary_batch if binary else _python_batch)(files.pop(name), where)
        digest.update(f"{batch} {len(labels)} ".encode() + labels.tobytes())
        digest.update(images.data)  # unlike a folder of photographs, the pixels are at hand
        parts.append((images, labels))
    classes = (_binary_classes if binary else _python_classes)(files, path)
    digest.update("\0".join(classes).encode())

    images, labels = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
    train, valid = CifarSplit("train", images, labels, size=size), CifarSplit("test", *parts[-1], size=size)
    version = "binary" if binary else "Python"
    counts = f"{len(train):,} training and {len(valid):,} validation images"
    name = f"CIFAR-10 {kind}, {version} version: {CLASSES} classes, {counts}"
    return DataSet(name, classes, train, valid, digest.hexdigest())


def _expected(binary: bool) -> set[str]:
    return {f"{batch}.bin" for batch in BATCHES} | {"batches.meta.txt"} if binary else {*BATCHES, "batches.meta"}


def _find_folder(root: Path) -> Path | None:
    for folder in (root, root / "cifar-10-batches-py", root / "cifar-10-batches-bin"):
        if (folder / "data_batch_1").is_file() or (folder / "data_batch_1.bin").is_file():
            return folder
    return None


def _read_folder(root: Path) -> tuple[dict[str, bytes], str]:
    folder = _find_folder(root)
    if folder is None:
        raise DataError(f"{str(root)!r} has neither 'data_batch_1' nor 'data_batch_1.bin'")
    files = {}
    for name in sorted(_expected((folder / "data_batch_1.bin").is_file())):
        try:
            with open_regular(folder / name) as file:
                files[name] = _limited(file.read(MAX_BYTES + 1), str(folder / name))
        except OSError as error:
            raise DataError(f"CIFAR-10 folder {str(folder)!r}: cannot read {name!r}: {error.strerror}") from error
    return files, "folder"


def _read_archive(path: Path) -> tuple[dict[str, bytes], str]:
    known = {f"cifar-10-batches-py/{name}": name for name in _expected(False)}
    known |= {f"cifar-10-batches-bin/{name}": name for name in _expected(True)}
    files: dict[str, bytes] = {}
    try:
        with open_regular(path) as file, _archive(file, path) as archive:
            for count, member in enumerate(archive):
                where = f"{str(path)!r}, member {member.name!r}"
                if count >= MAX_MEMBERS or not 0 <= member.size <= MAX_BYTES:
                    raise DataError(f"{where}: more or larger files than a CIFAR-10 archive has; this is none")
                if not member.isreg() or member.name not in known:
                    continue
                name = known[member.name]
                if name in files:
                    raise DataError(f"{where}: occurs twice")
                source = archive.extractfile(member)
                assert source is not None  # it is a regular file
                files[name] = _limited(source.read(MAX_BYTES + 1), where)
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is a file, but not a readable tar archive; {ACCEPTED}") from error
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    wanted = _expected(any(name.endswith(".bin") for name in files))
    if missing := sorted(wanted - files.keys()):
        raise DataError(f"{str(path)!r} is not a complete CIFAR-10 archive; missing are {', '.join(missing)}")
    return files, "archive"


def _archive(file: BinaryIO, path: Path) -> tarfile.TarFile:
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    bounded: Any = _Bounded(gzip.GzipFile(fileobj=file) if gzipped else file, path)
    return tarfile.open(fileobj=bounded, mode="r:")


class _Bounded:
    """What ``tarfile`` needs of a file, but no read longer than a file of CIFAR-10.

    ``tarfile`` reads long headers whole, and those of a hostile archive inflate to any size.
    """

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path, self.seek, self.tell = file, path, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_BYTES:
            raise DataError(f"{str(self._path)!r} has a header of {size:,} bytes, which no CIFAR-10 archive has")
        return bytes(self._file.read(size))


def _limited(raw: bytes, where: str) -> bytes:
    if len(raw) > MAX_BYTES:
        raise DataError(f"{where}: larger than {MAX_BYTES:,} bytes, which no CIFAR-10 file is")
    return raw


def _interleave(planes: U8) -> U8:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _binary_batch(raw: bytes, where: str) -> Part:
    count, rest = divmod(len(raw), RECORD)
    if rest or not 0 < count <= MAX_RECORDS:
        raise DataError(f"{where}: {len(raw):,} bytes, but it must be 1 to {MAX_RECORDS:,} records of {RECORD} bytes")
    records = np.frombuffer(raw, np.uint8).reshape(count, RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= CLASSES:
        raise DataError(f"{where}: labels must be 0 to 9, found {labels.max()}")
    return _interleave(records[:, 1:]), labels


def _python_batch(raw: bytes, where: str) -> Part:
    batch = read_plain(raw, where)
    data = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or not 0 < len(data) <= MAX_RECORDS:
        raise DataError(f"{where}: 'data' must be a uint8 array of 1 to {MAX_RECORDS:,} rows of 3072 bytes")
    if not isinstance(labels, list) or [v for v in labels if type(v) is not int or not 0 <= v < CLASSES]:
        raise DataError(f"{where}: 'labels' must be a list of numbers from 0 to 9")
    if len(labels) != len(data):
        raise DataError(f"{where}: {len(labels)} labels for {len(data)} rows of 'data'")
    return _interleave(data), np.array(labels, np.int32)


def _binary_classes(files: dict[str, bytes], path: Path) -> list[str]:
    names = files["batches.meta.txt"].decode("utf-8", "replace").split()
    return _checked_classes(names, f"{str(path)!r}, file 'batches.meta.txt'")


def _python_classes(files: dict[str, bytes], path: Path) -> list[str]:
    where = f"{str(path)!r}, file 'batches.meta'"
    meta = read_plain(files["batches.meta"], where)
    names = meta.get("label_names") if isinstance(meta, dict) else None
    return _checked_classes(names, where)


def _checked_classes(names: object, where: str) -> list[str]:
    if isinstance(names, list):
        names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
        if len(names) == CLASSES and all(isinstance(name, str) for name in names):
            return names
    raise DataError(f"{where}: expected the names of {CLASSES} classes")
