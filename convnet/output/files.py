"""Files: those that others made are opened when they are regular ones, and ours are whole or not there.

A pipe would be waited for without end, and a device need not have one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
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


def write_atomically(path: Path, content: bytes) -> None:
    """The file has its old content or the new one, also after a crash or a loss of power."""
    with replaced(path) as file:
        file.write(content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """As ``write_atomically``, with what is written into the file that is yielded."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        pass  # some network file systems cannot sync a folder; the file itself is safe
    finally:
        os.close(folder)


def lock(descriptor: int) -> bool:
    """Whether this process has the file or folder for itself now, until it is closed; also where the file system knows
    no locks."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError("convnet runs on Linux, and this system has no locks for files; on Windows use WSL 2") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def printable(name: str) -> str:
    """A name that takes exactly one line, whatever the file system allowed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
