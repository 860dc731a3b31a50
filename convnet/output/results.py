"""Results in files: arrays with an index beside them that says what each row is, and tables.

A file is whole or not there, and whether it can be written is asked before the work is done that it is to hold.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import replaced

Values = np.ndarray[Any, Any]


def output_file(option: str, name: str, suffix: str) -> Path:
    """The path that the user gave with ``option``. Raises ``ValueError`` unless it ends in ``suffix`` and a file can
    be made there."""
    path = Path(name)
    if path.suffix != suffix:
        raise ValueError(f"{option} {name}: the name of this file must end in {suffix}")
    if path.is_dir():
        raise ValueError(f"{option} {name}: this is a folder; give the name of a file")
    trial = path.with_name(path.name + ".tmp")
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ValueError(f"{option} {name}: cannot be written: {error.strerror}") from error
    return path


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Lines of comma-separated values, quoted where they must be, also around either half of "\\r\\n"."""
    lines = []
    for row in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(row)  # it quotes what occurs in its terminator
        lines.append(_letters(text.getvalue().removesuffix("\r\n")) + "\n")
    return "".join(lines)


def _letters(text: str) -> str:
    """With the letters of file names also where the locale has none, in which names are bytes in disguise."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a letter, which no file's name has
        return text


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Row by row, so that they need not be in memory together. Raises ``OSError``, with nothing left behind."""
    with replaced(path) as file:
        for row in rows:
            file.write(csv_text([row]).encode("utf-8", "backslashreplace"))  # file names may be no text


class RowsFile:
    """``path`` (FILE.npy, float32, as many rows as are appended) and FILE.csv beside it, which has a line per row.

    Rows go to the disk as they come, so that there may be more than fit into memory. Both files get their names when
    the ``with`` block is left; after an error, and without any rows, there are none.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self._lines: list[Sequence[Any]] = [("row", *columns)]
        self._row: tuple[int, ...] = ()  # its shape
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> RowsFile:
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array so far."""
        return (len(self._lines) - 1, *self._row)

    def append(self, values: Values, lines: Iterable[Sequence[Any]]) -> None:
        """Rows (n, ...), all of one shape, and what FILE.csv says of each."""
        if self._file.tell() == 0:
            self._row = values.shape[1:]
            self._write_header()
        self._lines += [(number, *line) for number, line in enumerate(lines, len(self._lines) - 1)]
        self._file.write(np.ascontiguousarray(values, "<f4").tobytes())

    def _write_header(self) -> None:
        """NumPy leaves room for any number of rows: written again at the end, the header has the same length."""
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and len(self._lines) > 1:
                self._file.seek(0)
                self._write_header()
                self._file.flush()
                os.fsync(self._file.fileno())
                write_csv(self.path.with_suffix(".csv"), self._lines)
                os.replace(self._temporary, self.path)
        finally:
            try:
                self._file.close()  # which writes what is left, and fails where there is no room
            finally:
                self._temporary.unlink(missing_ok=True)
