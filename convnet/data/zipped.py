"""Zip archives of others, read member by member: how large one is is known before memory is taken, and nothing in them
is ever created as a file."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..output.files import open_regular, printable
from .dataset import U8, DataError
from .tarred import Window

PIECE = 2**20
# Of a damaged or hostile archive. RuntimeError: it is encrypted, or packed in a way that is not known.
ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, IndexError, RuntimeError, OverflowError,
          SyntaxError, tokenize.TokenError, MemoryError, AttributeError, TypeError, struct.error)  # fmt: skip


@contextmanager
def opened(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """The archive at ``path``; whatever its reading fails in, also while it is open, is a ``DataError`` that says it is
    a damaged ``what``. Raises ``OSError``.
    """
    try:
        with open_regular(path) as file:
            window: Any = Window(file, repr(str(path)), 0, os.fstat(file.fileno()).st_size, limit=16 * PIECE)
            with zipfile.ZipFile(window) as archive:
                yield archive
    except ERRORS as error:
        reason = printable(" ".join(str(error).split()))
        raise DataError(f"{str(path)!r}: a damaged {what} ({reason:.200}); get it again") from error


def content(archive: zipfile.ZipFile, member: str, start: int, size: int) -> U8:
    """The ``size`` bytes of a member behind ``start``, whose sum is looked at where they reach to its end."""
    with archive.open(member) as file:
        file.read(start)
        raw = np.empty(size, np.uint8)
        for at in range(0, size, PIECE):
            piece = raw[at : at + PIECE]
            if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
                raise EOFError(f"{member} is cut short")
    return raw
