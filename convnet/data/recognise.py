"""What a path holds is looked at, not asked for: which reader takes it, and what it is where none does."""

from __future__ import annotations

import difflib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..output.files import open_regular
from . import cifar, folder, idx, ilsvrc, labels, npz, parquet, webdataset
from .dataset import ACCEPTED, VAL_SPLIT, DataError, NotThere
from .formats import SUFFIXES, looks_like_picture
from .source import Found, Source, divided, ranged


class Reader(Protocol):
    def recognises(self, path: Path, names: Sequence[str]) -> bool:
        """Whether ``path`` is a file for it, ``names`` being empty, or a folder with entries of these names."""
        ...

    def read(self, path: Path) -> Found: ...


# Before pictures are looked for, and where there are none.
FIRST: tuple[Reader, ...] = (cifar, ilsvrc)
LAST: tuple[Reader, ...] = (idx, npz, parquet, webdataset)

SAFETENSORS = "a safetensors file"
# The first bytes of what people have instead: bytes, where they are, what it is, what helps.
UNPACK = "unpack it and name the folder"
WEIGHTS = "weights to start from are named with --init-from"
KINDS: tuple[tuple[bytes, int, str, str], ...] = (
    (b"PK\x03\x04", 0, "a zip archive", UNPACK),
    (b"PK\x05\x06", 0, "an empty zip archive", "fetch it again"),
    (b"\x1f\x8b", 0, "a gzip archive", UNPACK),
    (b"BZh", 0, "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ\x00", 0, "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", 0, "a zstd archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive", UNPACK),
    (b"Rar!", 0, "a rar archive", UNPACK),
    (b"ustar", 257, "a tar archive", UNPACK),
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file", "write its pictures and labels into an .npz file"),
    (b"MATLAB 5.0 MAT-file", 0, "a MATLAB file", "write its pictures and labels into an .npz file"),
    (b"SQLite format 3", 0, "an SQLite database", "write its pictures into class folders"),
    (b"\x93NUMPY", 0, "a single array of NumPy", "put pictures and labels into one .npz file"),
    (b"PAR1", 0, "a Parquet file", "it must have a column of pictures and one of labels"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", 0, "a PyTorch pickle", WEIGHTS),
    (b"%PDF", 0, "a PDF document", "pictures must be JPEG, PNG or the like"),
)


def open_source(
    path: Path, *, seed: int = 0, val_split: float = VAL_SPLIT, ranges: tuple[str | None, str | None] = (None, None)
) -> Source:
    """The labelled pictures at ``path``, cut into training and validation (``divided``), after the numbers of their
    data batches where ``ranges`` say so (``ranged``). Raises ``DataError``."""
    where = os.fspath(path)
    return divided(ranged(find(path), where, *ranges), where, seed=seed, val_split=val_split)


def find(path: Path) -> Found:
    """The labelled pictures at ``path``. Raises ``DataError``, ``NotThere`` where nothing is there."""
    try:
        if path.is_file():
            for reader in (*FIRST, *LAST):
                if reader.recognises(path, ()):
                    return reader.read(path)
            if path.suffix.lower() in labels.SUFFIXES and kind(path) is None:
                return folder.read_table(path)
            raise DataError(f"{str(path)!r} is {described(path)}; {ACCEPTED}")
        if not path.is_dir():
            raise NotThere(f"there is no {os.fspath(path)!r}{_alike(path)}")
        if (path / "store.json").exists():
            raise DataError(f"{str(path)!r} is prepared already; train on it with: convnet-train {path}")
        found = _find_in(path)
    except (OSError, ValueError) as error:  # no permission, a name too long, a null character
        raise DataError(f"cannot read {os.fspath(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    if found is None:
        told = folder.reasons(folder.scan(str(path)))
        raise DataError(f"{str(path)!r} is a folder without pictures{_instead(path) or told}; {ACCEPTED}")
    return found


def _find_in(path: Path) -> Found | None:
    names = sorted(os.listdir(path))
    for reader in FIRST:
        if reader.recognises(path, names):
            return reader.read(path)
    if (found := folder.read(path)) is not None:
        return found
    for reader in LAST:
        if reader.recognises(path, names):
            return reader.read(path)
    below = [name for name in names if not name.startswith(".") and (path / name).is_dir()]
    return _find_in(path / below[0]) if len(below) == 1 else None


def described(path: Path) -> str:
    """What a file is that is of no use here, and what helps: "a zip archive: unpack it and name the folder"."""
    found = kind(path)
    if found is None:
        return "a file of an unknown kind"
    return ": ".join(found)


def kind(path: Path) -> tuple[str, str] | None:
    """What a file is, by its first bytes, and what helps; None for text and the unknown. Raises ``OSError``."""
    with open_regular(path) as file:
        head = file.read(512)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a page of HTML, not data", "fetch it again, from the address that it names"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself", "fetch it with: git lfs pull"
    if head[:4] == b"PK\x03\x04" and (inside := _in_zip(path)):
        return inside
    for mark, offset, what, helps in KINDS:
        if head[offset : offset + len(mark)] == mark:
            return what, helps
    if looks_like_picture(head):
        return "one picture", "name a folder of them; convnet-predict RUN FILE labels one"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a pickle of Python, which could run anything", "write its pictures and labels into an .npz file"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 10**8:
        return SAFETENSORS, "weights to start from are named with --init-from, a checkpoint to go on from with --resume"
    return None


def _in_zip(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a zip archive that is damaged or cut short", "fetch it again"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch pickle", WEIGHTS
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz file", "its arrays must be pictures and labels, such as 'images' and 'labels'"
    pictures = sum(name.lower().endswith(SUFFIXES) for name in names)
    return (f"a zip archive of {pictures:,} pictures", UNPACK) if pictures else None


def _instead(path: Path) -> str:
    """What lies in a folder without pictures."""
    told = []
    for name in sorted(os.listdir(path))[:100]:
        try:
            found = kind(path / name) if not name.startswith(".") and (path / name).is_file() else None
        except OSError:
            continue
        if found:
            told.append(f"{name!r} in it is {': '.join(found)}")
    return "".join(f"; {text}" for text in told[:3])


def _alike(path: Path) -> str:
    try:
        close = difflib.get_close_matches(path.name, os.listdir(path.parent), 1)
    except OSError:
        return ""
    return f", but {close[0]!r} is beside it" if close else ""
