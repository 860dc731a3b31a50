"""Reads the pickles of the CIFAR-10 Python version without running anything they name.

A pickle is a program. This reader lets it build lists, tuples, dicts, strings, bytes, numbers and uint8 arrays; every
global it names is answered by an inert token of ours, never by the object of that name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

from .dataset import U8, DataError

_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_MAX_MEMO = 1_000_000


def read_plain(raw: bytes, where: str) -> Any:
    """The object pickled in ``raw``, with byte strings that are dict keys turned into ``str``.

    ``where`` names the source in messages. Raises ``DataError`` for anything but plain data and uint8 arrays.
    """
    try:
        _check_program(raw)
        return _plain(_Reader(io.BytesIO(raw), encoding="bytes").load())
    except Exception as error:  # a hostile program can fail in any way; none of them is our user's mistake
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: not a pickle of plain arrays and lists ({reason})") from error


def _check_program(raw: bytes) -> None:
    """Goes through the opcodes without running them: truncated arguments and memo numbers that would cost gigabytes."""
    for opcode, argument, _ in pickletools.genops(raw):
        if "PUT" in opcode.name and isinstance(argument, int) and argument > _MAX_MEMO:
            raise pickle.UnpicklingError(f"memo number {argument}")


class _Token:
    """Stands for a global; calling it is the only thing a pickle can do with it. No attribute can be set on it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"a state for {self._name}")

    def __call__(self, *arguments: object) -> object:
        if self._name == "numpy.dtype" and arguments and arguments[0] in ("u1", b"u1", "|u1", b"|u1"):
            return _Type()
        if self._name == "_reconstruct":
            return _Array()
        if self._name == "_codecs.encode" and len(arguments) == 2 and arguments[1] in ("latin1", b"latin1"):
            return str(arguments[0]).encode("latin1")
        raise pickle.UnpicklingError(f"{self._name} of {arguments!r:.80}")


class _Type:
    """The dtype uint8; the state that NumPy stores with it says nothing more."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        return


class _Array:
    """An array to be: ``value`` once its state has come and has been found good."""

    __slots__ = ("value",)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state  # NumPy's own five: version, shape, dtype, order, bytes
        if not isinstance(dtype, _Type) or not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array of something else than uint8")
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape} from {len(data)} bytes")
        self.value: U8 = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _ARRAY_MODULES and name == "_reconstruct":
            return _Token("_reconstruct")
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")):
            return _Token(f"{module}.{name}")
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _plain(value: Any) -> Any:
    """Checks the top of the structure and unwraps arrays; the callers check what lies in the lists they use."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key.decode("latin1") if isinstance(key, bytes) else key: _plain(entry) for key, entry in value.items()}
    return value
