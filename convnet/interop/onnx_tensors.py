"""What ONNX files are made of: protocol buffers, and numbers in them.

The file may come from anybody. It is read whole and never leads to another one, and numbers are taken from it as they
lie there, where there are as many as it says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError
from ..data.published import check_room
from ..output.files import printable, read_regular
from .onnx_out import REMEDY

Values = np.ndarray[Any, Any]

TYPES = {1: "<f4", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}  # of numbers, as TensorProto counts them


class Unfit(Exception):
    """Something in the file that is not what it should be; the text says what."""


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """What is wrong with the file at ``path``, as a ``DataError`` that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except Unfit as error:
        raise DataError(f"{str(path)!r}: {printable(str(error))}") from error


def initializers(path: str | Path) -> tuple[dict[str, Values], dict[str, str]]:
    """All floating-point numbers that an ONNX file stores, by name, float32, whatever its nodes make of them, and its
    metadata. Raises ``DataError``.
    """
    with told(path):
        model = parsed(path)
        stored = {text(tensor.name): tensor for tensor in model.graph.initializer}
        found = {name: numbers(tensor) for name, tensor in stored.items()}
        texts = {text(entry.key): text(entry.value) for entry in model.metadata_props}
    with np.errstate(over="ignore"):  # infinite is found out about where the numbers are used
        return {name: v.astype(np.float32, copy=False) for name, v in found.items() if v.dtype.kind == "f"}, texts


def parsed(path: str | Path) -> Any:
    """The ModelProto in a file."""
    try:
        from google.protobuf.message import DecodeError
        from onnx import ModelProto
    except ImportError as error:
        raise Unfit(f"to read ONNX files the package onnx is needed: {REMEDY}") from error
    check_room(3 * Path(path).stat().st_size, repr(str(path)), instead="")  # the file, what is parsed, and arrays
    try:
        return ModelProto.FromString(read_regular(path))
    except DecodeError as error:
        raise Unfit("a damaged ONNX file, or none; get it again") from error


# ---- numbers in the file ----


def numbers(tensor: Any) -> Values:
    """The numbers of a TensorProto, as they lie in the file where they are float32."""
    dims = list(tensor.dims)
    what = f"the tensor {short(text(tensor.name))} of shape {dims[:6]}"
    if tensor.data_location or tensor.external_data:
        raise Unfit(f"{what} lies in another file; save the model with all of its data inside")
    kind = TYPES.get(tensor.data_type)
    if kind is None:
        raise Unfit(f"{what} is of ONNX's type {tensor.data_type}; numbers must be float16, 32 or 64, or int32 or 64")
    if len(dims) > 8 or not all(0 <= n < 2**31 for n in dims):
        raise Unfit(f"{what} cannot be")
    if tensor.raw_data:
        given, unit = tensor.raw_data, np.dtype(kind).itemsize
        count = len(given) // unit if len(given) % unit == 0 else -1
    else:
        fields = {"<f4": "float_data", "<f8": "double_data", "<i8": "int64_data"}
        given = getattr(tensor, fields.get(kind, "int32_data"))
        count = len(given)
    if count != math.prod(dims):
        raise Unfit(f"{what} has not as many numbers as that; the file is damaged")
    if tensor.raw_data:
        return np.frombuffer(given, kind).reshape(dims)
    if kind == "<f2":  # its bits, each in a whole number
        return np.array(given, np.int64).astype("<u2").view("<f2").reshape(dims)
    return np.array(given, kind).reshape(dims)


def text(value: str | bytes) -> str:
    """What the parser hands out as bytes where it is no UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")
