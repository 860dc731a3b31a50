"""Files that others made, opened for reading: nothing but regular ones.

A pipe would be waited for without end, and a device need not have one.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_descriptor(path: str | Path) -> int:
    """As ``open_regular``, for ``os.pread``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def open_regular(path: str | Path) -> BinaryIO:
    """``open(path, "rb")`` that never waits. Raises ``OSError``, "not a regular file" among others."""
    return os.fdopen(open_descriptor(path), "rb")


def read_regular(path: str | Path) -> bytes:
    """All of it."""
    with open_regular(path) as file:
        return file.read()
