"""Parquet files as Hugging Face has them: a column of pictures, which are JPEG, PNG or the like, and one of labels.

Needs pyarrow (``pip install "convnet[parquet]"``). Labels are read at once, pictures when they are asked for, a row
group at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..output.files import open_regular, printable
from .dataset import DataError
from .images import MAX_BYTES
from .jpeg import BadImage
from .published import check_room, numbered, settled, shards
from .source import Found, Part

MAGIC = b"PAR1"
FOOTER = 8  # bytes at the end: the length of the metadata in front of them, and the magic
MAX_FOOTER = 2**28
MAX_LABEL = 1000  # characters
LARGE_GROUP = 8 * 10**6  # bytes of a row group that are read for a single picture: more is worth a word
IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "png", "bytes", "image_bytes")
LABELS = ("label", "labels", "fine_label", "class", "cls", "class_name", "label_name", "category", "target", "y")

_last = threading.local()  # of every thread, the pictures of the row group that was read last


class Row(NamedTuple):
    """A picture in a Parquet file. ``length`` is what one of its row group takes on average: it is not known before."""

    file: str
    group: int
    row: int  # of the group
    column: str
    length: int

    def read(self) -> bytes:
        key = (self.file, self.group, self.column)
        if getattr(_last, "key", None) != key:
            try:
                with _opened(Path(self.file), self.column) as opened:
                    table = opened.read_row_group(self.group, columns=[self.column], use_threads=False)
                _last.pictures, _last.key = _flat(table.column(0)), key
            except (DataError, OSError) as error:
                raise BadImage(getattr(error, "strerror", None) or str(error)) from error
        picture = _last.pictures[self.row]
        raw = None if picture is None else picture.as_py()
        if not raw:
            raise BadImage("no bytes in the file: the picture lies elsewhere, or there is none")
        if len(raw) > MAX_BYTES:
            raise BadImage(f"{len(raw):,} bytes; the limit is {MAX_BYTES:,}")
        return bytes(raw)


def recognises(path: Path, names: Sequence[str]) -> bool:
    try:
        if not names:
            return _begins_well(path)
        return any(_begins_well(path / name) for _, name in shards(path, ".parquet")[:1])
    except (OSError, ValueError):
        return False


def _begins_well(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path) -> Found:
    """The files in the folder ``path``, or that one. Raises ``DataError`` where pyarrow is missing, a file is damaged,
    or no column is of pictures, or of labels."""
    try:
        files = [(None, "")] if path.is_file() else shards(path, ".parquet")
        read = [(part or "all", _file(path / below, below or path.name)) for part, below in files]
    except OSError as error:
        raise DataError(f"cannot read {error.filename or str(path)!r}: {error.strerror or error}") from error
    where = repr(str(path))
    if not read:
        raise DataError(f"{where} has no .parquet file")
    of: dict[str, list[_File]] = {}
    for part, file in read:
        of.setdefault(part, []).append(file)
    of = settled(of, where)
    first = read[0][1]
    for _, file in read:
        if (file.names, file.label) != (first.names, first.label):
            raise DataError(
                f"{where}: the labels of {first.shard!r} and {file.shard!r} do not mean the same; name one set"
            )
    labels = {part: _together([file.labels for file in listed]) for part, listed in of.items()}
    classes, numbers, notes = numbered(labels, dict(enumerate(first.names)), where)
    parts = {
        part: Part(
            label,
            [f"{file.shard} {k}" for file in of[part] for k in range(len(file.rows))],
            [row for file in of[part] for row in file.rows],
        )
        for part, label in numbers.items()
    }
    if (largest := max((file.largest for _, file in read), default=0)) > LARGE_GROUP:
        notes.append(
            f"a picture is read with its whole row group, up to {largest / 1e6:,.0f} MB: a store made of them by "
            "convnet-prepare is quicker to train on"
        )
    if first.others:
        notes.append(f"column {first.label!r} has the labels; not used: {', '.join(first.others)[:200]}")
    known = hashlib.sha256()
    for part, listed in of.items():
        for file in listed:
            known.update(f"{part} {file.shard}\0{file.digest}\n".encode(errors="surrogateescape"))
    return Found("Parquet files", classes, parts, notes, known=known.hexdigest())


class _File(NamedTuple):
    """``labels``: whole numbers, or texts. ``digest``: of the labels and of all that the file says about its contents.
    ``largest``: bytes of its largest row group's pictures."""

    shard: str
    rows: list[Row]
    labels: NDArray[Any] | list[str]
    label: str
    names: list[str]
    others: list[str]
    digest: str
    largest: int


@contextmanager
def _opened(path: Path, *columns: str) -> Iterator[Any]:
    """The file at ``path`` as pyarrow reads it; its errors become ``DataError``. What repeats in ``columns`` is kept
    once, as in the file: a hostile one would otherwise fill any memory with a single picture."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f'{str(path)!r}: to read Parquet files pyarrow is needed: pip install "convnet[parquet]"'
        ) from error
    try:
        with open_regular(path) as file:
            yield pyarrow.parquet.ParquetFile(file, read_dictionary=list(columns), pre_buffer=False)
    except (pyarrow.ArrowException, ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        reason = printable(" ".join(str(error).split()))
        raise DataError(f"{str(path)!r}: a damaged Parquet file ({reason:.200}); get it again") from error


def _file(path: Path, shard: str) -> _File:
    where = repr(str(path))
    footer = _footer(path)
    with _opened(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        features = _features(schema.metadata)
        image = _image_column(schema, features, where)
        label, others = _label_column(schema, features, where)
        check_room(200 * metadata.num_rows, where)
        rows, largest = [], 0
        for group in range(metadata.num_row_groups):
            told = metadata.row_group(group)
            column = next(
                column for column in (told.column(k) for k in range(told.num_columns)) if column.path_in_schema == image
            )
            check_room(column.total_uncompressed_size, f"{where}, row group {group}")
            largest = max(largest, column.total_uncompressed_size)
            length = column.total_uncompressed_size // max(1, told.num_rows)
            rows += [Row(str(path), group, row, image, length) for row in range(told.num_rows)]
    with _opened(path, label) as file:
        labels = _labels(file.read(columns=[label], use_threads=False).column(0), where, label)
    if len(labels) != len(rows):
        raise DataError(f"{where}: {len(labels):,} labels for {len(rows):,} rows; it is damaged, get it again")
    digest = hashlib.sha256(footer)
    digest.update("\0".join(labels).encode(errors="surrogatepass") if isinstance(labels, list) else labels.tobytes())
    names = features.get(label, {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = []
    return _File(shard, rows, labels, label, names, others, digest.hexdigest(), largest)


def _together(labels: list[NDArray[Any] | list[str]]) -> NDArray[Any] | list[str]:
    """Those of several files."""
    if (arrays := [of for of in labels if not isinstance(of, list)]) and len(arrays) == len(labels):
        return np.concatenate(arrays)
    return [str(label) for of in labels for label in (of if isinstance(of, list) else of.tolist())]


def _footer(path: Path) -> bytes:
    """The bytes of the metadata."""
    where = repr(str(path))
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - FOOTER))
        end = file.read(FOOTER)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != MAGIC:
            raise DataError(f"{where} does not end as Parquet files do: it was cut short, get it again")
        if length > min(size - FOOTER, MAX_FOOTER):
            raise DataError(f"{where}: {length:,} bytes of metadata in a file of {size:,}; it is damaged, get it again")
        file.seek(size - FOOTER - length)
        return file.read(length)


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What Hugging Face says about the columns, where it does."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b""))["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _image_column(schema: Any, features: dict[str, dict[str, Any]], where: str) -> str:
    """The path of the column with the bytes of the pictures."""
    from pyarrow import types

    def binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found: dict[str, str] = {column.name: column.name for column in schema if binary(column.type)}
    for column in schema:
        if types.is_struct(column.type) and any(part.name == "bytes" and binary(part.type) for part in column.type):
            found[column.name] = f"{column.name}.bytes"
    chosen = _chosen(list(found), [name for name in found if features.get(name, {}).get("_type") == "Image"], IMAGES)
    if chosen is None:
        raise DataError(
            f"{where} has the columns {_listed(schema)}; one of pictures is needed, 'image', as bytes or as a struct "
            "with 'bytes'"
        )
    return found[chosen]


def _label_column(schema: Any, features: dict[str, dict[str, Any]], where: str) -> tuple[str, list[str]]:
    """Its name, and those of others that could be meant."""
    from pyarrow import types

    def fits(kind: Any) -> bool:
        if types.is_dictionary(kind):
            kind = kind.value_type
        return bool(
            types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind)
        )

    found = [column.name for column in schema if fits(column.type)]
    told = [name for name in found if features.get(name, {}).get("_type") == "ClassLabel"]
    named = [name for name in found if name.lower() in LABELS]
    chosen = _chosen(named, told, LABELS)
    if chosen is None:
        raise DataError(
            f"{where} has the columns {_listed(schema)}; one of labels is needed, 'label', of whole numbers or texts"
        )
    return chosen, [name for name in dict.fromkeys(told + named) if name != chosen]


def _chosen(found: list[str], told: list[str], usual: tuple[str, ...]) -> str | None:
    """The one that is told, or else the only one, or the one with the most usual name."""
    candidates = told or found
    if len(candidates) == 1:
        return candidates[0]
    return next((name for want in usual for name in candidates if name.lower() == want), None)


def _listed(schema: Any) -> str:
    return printable(", ".join(f"{column.name} ({column.type})" for column in schema))[:300]


def _flat(column: Any) -> Any:
    """An array of bytes, from a column of them, or of structs of them alone."""
    from pyarrow import types

    array = column.combine_chunks()
    return array.flatten()[0] if types.is_struct(array.type) else array


def _labels(column: Any, where: str, name: str) -> NDArray[Any] | list[str]:
    """-1 where none has one."""
    from pyarrow import types

    if column.null_count == len(column):
        return np.full(len(column), -1)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{where}: row {row:,} has no {name!r}; leave out the rows without one")
    if not types.is_dictionary(column.type):
        values: NDArray[Any] = column.to_numpy()
        return values.astype(np.uint8) if values.dtype == np.bool_ else values
    labels: list[str] = []
    for chunk in column.chunks:
        texts = [str(text) for text in chunk.dictionary.to_pylist()]
        if longest := next((text for text in texts if len(text) > MAX_LABEL), None):
            raise DataError(
                f"{where}: {name!r} has texts of {len(longest):,} characters, which are no names of classes"
            )
        labels += [texts[k] for k in chunk.indices.to_numpy(zero_copy_only=False).tolist()]
    return labels
