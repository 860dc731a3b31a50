"""Plain tar archives, walked by their headers: where every member lies, so that any of them can be read without
unpacking. Members are data to be checked, and nothing in them is ever created as a file."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..output.files import open_regular
from .dataset import DataError

MAX_READ = 2**20  # bytes of a long name or of pax records; tarfile would read any number


class Member(NamedTuple):
    """``offset`` counts from the start of the file. ``plain``: it is a regular file, all in one piece."""

    name: str
    offset: int
    length: int
    plain: bool


class Window:
    """What ``tarfile`` and ``zipfile`` need of a file: a part of it, in which offsets begin at 0 (or all of it, where
    ``size`` is None). Reads are limited, since headers are read whole, whatever size they claim."""

    def __init__(self, file: Any, where: str, start: int = 0, size: int | None = None, limit: int = MAX_READ) -> None:
        self._file, self._start, self._size, self._limit, self._where, self._at = file, start, size, limit, where, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END and self._size is not None:
            offset += self._size
        elif whence == os.SEEK_CUR:
            offset += self._at
        if offset < 0:
            raise DataError(f"{self._where}: a header points in front of the archive; it is damaged, get it again")
        self._at = offset
        return offset

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = None) -> bytes:
        if size is None:
            size = self._limit if self._size is None else max(0, self._size - self._at)
        if not 0 <= size <= self._limit:
            raise DataError(f"{self._where}: a header of {size:,} bytes; no such archive has one of {self._limit:,}")
        self._file.seek(self._start + self._at)
        raw: bytes = self._file.read(size if self._size is None else max(0, min(size, self._size - self._at)))
        self._at += len(raw)
        return raw


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so, with 512 bytes at least, is a tar archive with a member."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def walk(path: Path, start: int = 0, size: int | None = None, inside: str = "") -> Iterator[Member]:
    """The members of an uncompressed tar archive, folders left out, in their order.

    The archive takes up ``size`` bytes of the file from ``start`` on (default: all), and is called ``path`` and
    ``inside``. Raises ``DataError`` for an archive that is damaged, cut short, or has a name twice.
    """
    where = f"{str(path)!r}{inside}"
    seen: set[str] = set()
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size if size is None else size
            window: Any = Window(file, where, start, size)
            if window.read(512) == bytes(512):  # no member: the tarfile of Python 3.10 would step in front of the first
                return
            window.seek(0)
            with tarfile.open(fileobj=window, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                        raise DataError(f"{where}: {member.name!r:.80} reaches beyond the archive's end; get it again")
                    archive.members.clear()  # type: ignore[attr-defined]  # which would be kept until the end
                    name = member.name.removeprefix("./")
                    if member.isdir():
                        continue
                    if member.isreg():
                        if name in seen:
                            raise DataError(f"{where}: {name!r:.80} occurs twice")
                        seen.add(name)
                    yield Member(
                        name, start + member.offset_data, member.size, member.isreg() and not member.issparse()
                    )
                # tarfile takes a damaged header for the end; the true end is a block of zeros
                window.seek(archive.offset)
                if window.read(512) != bytes(512):
                    raise DataError(f"{where}: damaged or cut short behind byte {archive.offset:,}; get it again")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: not a readable, uncompressed tar archive ({error}); get it again") from error
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror or error}") from error
