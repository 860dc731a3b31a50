"""NumPy archives: pictures and labels as arrays, under the names that people use for them.

The arrays of a file are told by the words of their names: ``images`` and ``labels``, ``x`` and ``y``, ``data`` and
``labels``, with ``train``, ``val`` or ``test`` where there are several. In a folder with several archives the names of
the files say what those of the arrays do not ("train.npz" with ``x`` and ``y``).
"""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..output.files import open_regular, printable
from .dataset import U8, DataError
from .published import LOOKED_AT, check_room, digest, numbered, part_of, settled, words
from .source import Found, Part
from .zipped import PIECE, content, opened

ROLES = {
    "images": ("images", "image", "imgs", "img", "x", "data", "pixels", "pictures"),
    "labels": ("labels", "label", "y", "targets", "target"),
}
NAMES = ("classes", "class_names", "label_names", "classnames", "target_names", "names")
TEXTS = (".txt", ".md", ".csv", ".json", ".html", ".pdf", ".py", ".ipynb", "readme", "license")
WHAT = ".npz archive"
DEFLATION = 1100  # zip cannot make more of a byte
BLOCK = 2**24  # bytes of pixels that are converted at a time
WANTED = "needed are 'images' and 'labels', or 'x_train', 'y_train', 'x_test' and 'y_test', or the like"


def recognises(path: Path, names: Sequence[str]) -> bool:
    if not names:
        return path.name.lower().endswith(".npz") and _is_zip(path)
    archives = [name for name in names if name.lower().endswith(".npz") and not name.startswith(".")]
    others = [name for name in names if name not in archives and not name.startswith(".")]
    if not archives or len(names) > LOOKED_AT:
        return False
    texts = all(name.lower().endswith(TEXTS) and not (path / name).is_dir() for name in others)
    return texts and all(_is_zip(path / name) for name in archives)


def read(path: Path) -> Found:
    """The archive at ``path``, or those in that folder.

    Raises ``DataError`` for archives that are damaged, and for arrays that are no pictures or no labels of them.
    """
    try:
        files = [path]
        if path.is_dir():
            listed = sorted(name for name in os.listdir(path) if name.lower().endswith(".npz"))
            files = [path / name for name in listed if not name.startswith(".")]
        return _found(path, files)
    except OSError as error:
        where = error.filename or str(path)
        raise DataError(f"cannot read {where!r}: {error.strerror or error}") from error


def _is_zip(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except (OSError, ValueError):
        return False


# ---- arrays of an archive ----


class Array(NamedTuple):
    """What the header of an array in an archive says. ``start``: where its numbers begin in the member."""

    file: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def name(self) -> str:
        return printable(self.member.removesuffix(".npy"))

    @property
    def where(self) -> str:
        return f"{str(self.file)!r}, array {self.name!r:.60}"

    @property
    def found(self) -> str:
        return f"{self.dtype} {self.shape}"


def _header(archive: zipfile.ZipFile, path: Path, member: str) -> Array:
    info = archive.getinfo(member)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member} is packed in a way that NumPy does not use")
    with archive.open(info) as file:
        head = io.BytesIO(file.read(PIECE))  # where a header is longer, it is none
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{member} is an array of version {version}")
    check_header(head.getvalue())
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():  # of what is no Python, or Python 2
        warnings.simplefilter("ignore")
        shape, fortran, dtype = header(head)
    array = Array(path, member, shape, dtype, fortran, head.tell())
    if dtype.hasobject:
        raise DataError(
            f"{array.where}: holds objects of Python, which are not read, since reading them may run anything; save it "
            "as numbers or as text (.astype(str))"
        )
    if any(extent < 0 for extent in shape) or info.file_size != array.start + array.nbytes:
        raise ValueError(f"{member}: {info.file_size:,} bytes for {array.found}")
    if info.file_size > info.compress_size * DEFLATION:
        raise ValueError(f"{member}: {info.compress_size:,} bytes cannot become {info.file_size:,}")
    return array


def check_header(raw: bytes) -> None:
    """Raises ``ValueError`` for the header of an array (version 1 or 2) that has zero bytes in its text: NumPy would
    compute for seconds over those."""
    begin = 10 if raw[6:7] == b"\1" else 12
    if b"\0" in raw[begin : begin + int.from_bytes(raw[8:begin], "little")]:
        raise ValueError("an array's header is no text")


def _load(array: Array) -> NDArray[Any]:
    with opened(array.file, WHAT) as archive:
        raw = content(archive, array.member, array.start, array.nbytes)
    return raw.view(array.dtype).reshape(array.shape, order="F" if array.fortran else "C")


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an archive as they are, by name.

    Raises ``DataError`` for archives that are damaged, hold objects of Python, or do not fit into memory, and
    ``OSError``.
    """
    with opened(path, WHAT) as archive:
        found = [_header(archive, path, name) for name in archive.namelist() if name.endswith(".npy")]
    check_room(sum(array.nbytes for array in found), repr(str(path)), instead="")
    return {array.name: _load(array) for array in found}


# ---- which arrays are what ----


def _role(name: list[str]) -> str | None:
    return next((role for word in name for role, meant in ROLES.items() if word in meant), None)


def _found(path: Path, files: list[Path]) -> Found:
    where, several = repr(str(path)), len(files) > 1
    roles: dict[tuple[str, str], list[Array]] = {}
    names: dict[int, str] = {}
    notes, others = [], []
    for file in files:
        with opened(file, WHAT) as archive:
            for member in archive.namelist():
                if not member.endswith(".npy"):
                    continue
                name = member.removesuffix(".npy")
                if name.lower() in NAMES:
                    names = _class_names(_header(archive, file, member))
                    continue
                said, beside = words(name), words(file.stem) if several else []
                if (role := _role(said) or _role(beside)) is None:
                    others.append(printable(name))
                    continue
                part = part_of(said) or part_of(beside) or "all"
                roles.setdefault((part, role), []).append(_header(archive, file, member))
    pairs: dict[str, tuple[Array, Array]] = {}
    for part in dict.fromkeys(part for part, _ in roles):
        images, labels = (_one(roles.get((part, role), []), role) for role in ROLES)
        if images is not None and labels is not None:
            pairs[part] = images, labels
        elif (alone := images or labels) is not None:
            notes.append(f"{alone.where} is left out: nothing says what its {'labels' if images else 'pictures'} are")
    if not pairs:
        listed = [array.name for arrays in roles.values() for array in arrays] + others
        raise DataError(f"{where} has the arrays {', '.join(listed)[:300] or '(none)'}; {WANTED}")
    if others:
        notes.append(f"arrays that are not used: {', '.join(others)[:300]}")
    pairs = settled(pairs, where)
    # the pixels of all as they come, and as bytes
    check_room(sum(a.nbytes + math.prod(a.shape) for pair in pairs.values() for a in pair), where)
    labels_of = {part: _labels(labels, _count(images)) for part, (images, labels) in pairs.items()}
    pixels, said_of = _pixels({part: images for part, (images, _) in pairs.items()})
    classes, numbers, more = numbered(labels_of, names, where)
    parts = {}
    for part, of in numbers.items():
        called = pairs[part][0].name if not several else f"{pairs[part][0].file.name} {pairs[part][0].name}"
        parts[part] = Part(of, [f"{called} {k}" for k in range(len(of))], pixels[part])
    return Found("NumPy archive", classes, parts, [*said_of, *more, *notes], known=digest(classes, parts))


def _count(array: Array) -> int:
    return array.shape[0] if array.shape else 0


def _one(arrays: list[Array], role: str) -> Array | None:
    """The array of a role; of several arrays of pictures the one that has the shape of pictures."""
    if len(arrays) > 1 and role == "images":
        arrays = [array for array in arrays if len(array.shape) > 2] or arrays
    if len(arrays) > 1:
        listed = ", ".join(repr(array.name) for array in arrays)
        raise DataError(f"{str(arrays[0].file)!r}: {listed} may all be the {role}; leave one of them in")
    return arrays[0] if arrays else None


def _class_names(array: Array) -> dict[int, str]:
    if array.dtype.kind not in "US" or len(array.shape) != 1:
        raise DataError(f"{array.where}: {array.found}; names of classes are text, one each")
    check_room(2 * array.nbytes, array.where)
    return dict(enumerate(_texts(array)))


def _texts(array: Array) -> list[str]:
    values = _load(array).reshape(-1)
    if array.dtype.kind == "U" and values.nbytes:
        codes = np.ascontiguousarray(values).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if codes.max() > sys.maxunicode:  # Python would make a string of it that it cannot handle
            raise DataError(f"{array.where}: {codes.max():#x} is no character; the archive is damaged, get it again")
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in values.tolist()]


# ---- labels and pixels ----


def _labels(array: Array, count: int) -> NDArray[Any] | list[str]:
    """As ``numbered`` takes them: from (n,) or (n, 1), whole numbers or text; or from (n, classes), a single 1 each."""
    one = array.shape == (count,) or array.shape == (count, 1)
    if not one and not (len(array.shape) == 2 and _count(array) == count):
        raise DataError(f"{array.where}: {array.found}, for {count:,} pictures; one label each is needed")
    if array.dtype.kind not in ("biufUS" if one else "biuf"):
        raise DataError(f"{array.where}: {array.found}; labels are whole numbers or text")
    if array.dtype.kind in "US":
        return _texts(array)
    values = _load(array)
    if array.dtype.kind == "b":
        values = values.astype(np.uint8)
    if not one:
        wrong = np.flatnonzero(((values != 0) & (values != 1)).any(axis=1) | ((values != 0).sum(axis=1) != 1))
        if wrong.size:
            raise DataError(f"{array.where}: row {wrong[0]:,} of {array.found} is not all 0 but for a single 1")
        numbers: NDArray[np.int64] = values.argmax(axis=1)
        return numbers
    values = values.reshape(-1)
    if array.dtype.kind == "f":
        wrong = np.flatnonzero(~(np.abs(values) < 2**53) | (values != np.rint(values)))
        if wrong.size:
            raise DataError(
                f"{array.where}: label {values[wrong[0]]} of picture {wrong[0]:,}; labels are whole numbers"
            )
        return values.astype(np.int64)
    return values


def _pixels(arrays: Mapping[str, Array]) -> tuple[dict[str, U8], list[str]]:
    """Pictures as (n, H, W) or (n, H, W, 3), and notes on how they became so. Fractions of all parts have one scale."""
    for array in arrays.values():
        _check_shape(array)
    loaded = {part: _load(array) for part, array in arrays.items()}
    ranges = {part: _range(array, loaded[part]) for part, array in arrays.items()}
    fractions = [part for part, array in arrays.items() if array.dtype.kind == "f"]
    unit = all(ranges[part][1] <= 1 for part in fractions)
    for part in fractions if not unit else ():
        array, (low, high, whole) = arrays[part], ranges[part]
        if not whole:
            raise DataError(
                f"{array.where}: {array.found} with fractions between {low:g} and {high:g}; fractions are read from 0 "
                "to 1, and whole numbers from 0 to 255: save the pixels as uint8"
            )
    pixels, notes = {}, []
    for part, array in arrays.items():
        factor = 255 if array.dtype.kind == "b" or (part in fractions and unit) else 1
        if factor > 1:
            notes.append(f"{array.name!r}: {array.dtype} from 0 to 1 is taken times 255, and rounded")
        pixels[part] = converted(loaded.pop(part), _check_shape(array), (0, 255 / factor))
    return pixels, notes


def layout_of(shape: tuple[int, ...]) -> str:
    """Where the colours of pictures of this shape are: "none", "last" or "first"; "" where it is none of pictures."""
    if len(shape) == 4:
        return "last" if shape[3] in (1, 3, 4) else "first" if shape[1] in (1, 3) else ""
    return "none" if len(shape) == 3 else ""


def _check_shape(array: Array) -> str:
    """Its layout. Raises ``DataError`` where it has none of pictures."""
    layout = layout_of(array.shape)
    if not layout or array.dtype.kind not in "buif" or 0 in array.shape[1:]:
        raise DataError(
            f"{array.where}: {array.found} are no pictures; needed are numbers of shape (n, H, W), (n, H, W, 1), "
            "(n, H, W, 3), (n, H, W, 4), (n, 1, H, W) or (n, 3, H, W)"
        )
    return layout


def _blocks(values: NDArray[Any]) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, values[:1].nbytes))
    yield from (slice(at, at + step) for at in range(0, len(values), step))


def _range(array: Array, values: NDArray[Any]) -> tuple[float, float, bool]:
    """The lowest and the highest value, and whether all are whole. Raises ``DataError`` where they are no pixels."""
    if array.dtype in (np.uint8, np.bool_):
        return 0, 1, True
    low, high, whole = np.inf, -np.inf, True
    for block in _blocks(values):
        part = values[block]
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        if not 0 <= float(part.min()) <= float(part.max()) <= 255:  # NaN is neither
            raise DataError(
                f"{array.where}: {array.found} with values from {float(part.min()):g} to {float(part.max()):g}; pixels "
                "are whole numbers from 0 to 255, or fractions from 0 to 1"
            )
        whole = whole and bool((part == np.rint(part)).all())
    return low, high, whole


def converted(values: NDArray[Any], layout: str, levels: tuple[float, float]) -> U8:
    """As uint8, with colours last if there are any; what is transparent lies over white. ``levels`` are the numbers
    that black and white are; beyond them is black or white too."""
    if layout == "first":
        values = np.moveaxis(values, 1, 3)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    alpha = values.ndim == 4 and values.shape[3] == 4
    low, high = levels
    if values.dtype == np.uint8 and not alpha and (low, high) == (0, 255):
        return values
    pixels = np.empty((*values.shape[:3], 3) if values.ndim == 4 else values.shape, np.uint8)
    for block in _blocks(values):
        part = np.rint((values[block].astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        if alpha:  # as Pillow computes it
            opacity = part[..., 3:].astype(np.uint32)
            mixed = part[..., :3] * opacity + 255 * (255 - opacity) + 128
            part = ((mixed + (mixed >> 8)) >> 8).astype(np.uint8)
        pixels[block] = part
    return pixels
