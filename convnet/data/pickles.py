"""Reads the pickles of CIFAR's Python version, others like them, the checkpoints of 2012, and those of PyTorch's state
dicts, without running anything they name.

A pickle is a program. This reader lets it build lists, tuples, dicts, strings, bytes, numbers, and arrays and scalars
of NumPy that are plain numbers, or what says where the numbers of PyTorch's tensors lie; every global it names is
answered by an inert token of ours, never by the object of that name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dataset import DataError

# Module and name -> what the token does. NumPy 2 moved what NumPy 1 had in "core".
_KNOWN = {(f"numpy.{core}.multiarray", name): name for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
_KNOWN |= {(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")}
_KNOWN |= {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): "dtype", ("_codecs", "encode"): "encode"}
_KNOWN |= {(builtins, "bytes"): "bytes" for builtins in ("__builtin__", "builtins")}  # called for none at all
# What torch.save writes of a state dict; behind the names of storages what their numbers are.
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
_TORCH = {("torch", name): name for name in STORAGES} | {("collections", "OrderedDict"): "OrderedDict"}
_TORCH |= {("torch._utils", name): name for name in ("_rebuild_tensor_v2", "_rebuild_parameter")}
# What checkpoints of 2012 name besides arrays: how Python 2 makes objects again, and any class of the program's module
# of options. All are answered by one token, which forgets.
_2012 = {("numpy.core.multiarray", name): name for name in ("_reconstruct", "scalar")}
_2012 |= {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): "dtype"}
_2012_OPTIONS, _2012_OBJECTS = "options", {("copy_reg", "_reconstructor"), ("__builtin__", "object")}
_MAX_DIMENSIONS, _MAX_COUNT = 8, 2**48
_NUMBERS = {kind + size for kind in "iu" for size in "1248"} | {"f4", "f8", "b1"}
_MAX_MEMO = 1_000_000


def read_plain(raw: bytes, where: str) -> Any:
    """The object pickled in ``raw``, with byte strings that are dict keys turned into ``str``.

    ``where`` names the source in messages. Raises ``DataError`` for anything but plain data and arrays of numbers.
    """
    try:
        _check_program(raw)
        return _plain(_Reader(io.BytesIO(raw), _KNOWN).load())
    except Exception as error:  # a hostile program can fail in any way; none of them is our user's mistake
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: not a pickle of plain arrays and lists ({reason})") from error


def read_2012(raw: bytes, where: str) -> Any:
    """The object pickled in ``raw``, a checkpoint of the 2012 program: as ``read_plain``, and instances of its classes
    of options, of which nothing is kept. Byte strings and arrays are as they come, ``Array`` and ``bytes``.

    Raises ``DataError`` for anything else.
    """
    try:
        _check_program(raw)
        return _Reader(io.BytesIO(raw), _2012).load()
    except Exception as error:  # as above
        reason = " ".join(str(error).split())
        raise DataError(
            f"{where}: not a checkpoint of the 2012 program: a pickle of layers and their arrays ({reason})"
        ) from error


def read_tensors(raw: bytes, where: str) -> Any:
    """The object pickled in ``raw``, the ``data.pkl`` of a file of PyTorch's, with a ``Tensor`` for every tensor.

    ``where`` names the source in messages. Raises ``DataError`` for anything but tensors and plain data.
    """
    try:
        _check_program(raw)
        return _Reader(io.BytesIO(raw), _TORCH).load()
    except Exception as error:  # as above
        reason = " ".join(str(error).split())
        raise DataError(
            f"{where}: holds something else than tensors and plain data ({reason}), which is not read, since reading "
            "it may run anything; save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from error


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

    def __call__(self, *arguments: Any) -> object:
        if self._name == "dtype" and arguments and (code := _text(arguments[0]).lstrip("<>|=")) in _NUMBERS:
            return _Type(code)
        if self._name == "_reconstruct":
            return Array()
        if self._name == "_frombuffer" and len(arguments) > 3 and not any(arguments[4:]):  # from protocol 5 on
            data, dtype, shape, order = arguments[:4]
            return Array().filled(shape, dtype, _text(order) == "F", data)
        if self._name == "scalar" and len(arguments) == 2:
            return Array().filled((), arguments[0], False, arguments[1]).value.item()
        if self._name == "encode" and [type(a) for a in arguments[:1]] == [str] and _text(arguments[-1]) == "latin1":
            return str(arguments[0]).encode("latin1")
        if self._name == "bytes" and not arguments:
            return b""
        if self._name == "OrderedDict" and not arguments:
            return _Ordered()
        if self._name == "_rebuild_tensor_v2" and len(arguments) >= 4:
            return _tensor(*arguments[:4])
        if self._name == "_rebuild_parameter" and [type(a) for a in arguments[:1]] == [Tensor]:
            return arguments[0]
        # Not what they are: lists of the same list, and so on, have a text without an end.
        raise pickle.UnpicklingError(f"{self._name} of {', '.join(type(a).__name__ for a in arguments)}")


class _Forgotten:
    """Stands for a class, and for its instances: what is said of them goes nowhere."""

    __slots__ = ()

    def __call__(self, *_: object) -> _Forgotten:
        return self

    def __setstate__(self, state: object) -> None:
        pass


_FORGOTTEN = _Forgotten()


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


class _Type:
    """The dtype of plain numbers; of the state that NumPy stores with it the order of bytes counts."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str) -> None:
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if order not in tuple("<>|="):
            raise pickle.UnpicklingError(f"bytes in the order {order!r:.20}")
        self._order = order

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


class Array:
    """An array to be: ``value`` once its state has come and has been found good."""

    __slots__ = ("value",)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state  # NumPy's own five: version, shape, dtype, order, bytes
        self.filled(shape, dtype, bool(fortran), data)

    def filled(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> Array:
        if not isinstance(dtype, _Type) or not isinstance(data, (bytes, bytearray)) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array of something else than numbers")
        kind = dtype.dtype()
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * kind.itemsize != len(data):
            raise pickle.UnpicklingError(f"{len(data)} bytes for an array of {kind} of another size")
        self.value: NDArray[Any] = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
        return self


class _Ordered(dict[Any, Any]):
    """An OrderedDict. What a state dict keeps beside its entries, versions of modules, is left out."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or state.keys() != {"_metadata"}:
            raise pickle.UnpicklingError("a state for OrderedDict")


class _Storage(NamedTuple):
    key: str
    kind: str
    numbers: int


class Tensor(NamedTuple):
    """Where the numbers of a tensor lie: in a ``storage`` of so many ``numbers`` of ``kind``, the first at ``offset``,
    neighbours along each axis ``strides`` apart. All of them lie inside, and a storage has at least as many.
    """

    storage: str
    kind: str
    numbers: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise pickle.UnpicklingError("a tensor of something else than numbers")
    whole = all(type(n) is int and 0 <= n < _MAX_COUNT for n in (offset, *shape, *strides))
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS or not whole:
        raise pickle.UnpicklingError("a tensor whose shape, strides or offset are impossible")
    last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    if not 1 <= math.prod(shape) <= storage.numbers or last >= storage.numbers:
        raise pickle.UnpicklingError(f"a tensor that is empty, or not inside its storage of {storage.numbers} numbers")
    return Tensor(*storage, offset, shape, strides)


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: Mapping[tuple[str, str], str]) -> None:
        super().__init__(file, encoding="bytes")
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return _Token(self._known[module, name])
        if self._known is _2012 and (module == _2012_OPTIONS or (module, name) in _2012_OBJECTS):
            return _FORGOTTEN
        raise pickle.UnpicklingError(f"it names {module:.80}.{name:.80}")

    def persistent_load(self, pid: Any) -> _Storage:
        """PyTorch's way to name a storage: ("storage", its kind, its key, device, how many numbers)."""
        if self._known is not _TORCH or type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("a reference to something outside of it")
        _, kind, key, _, count = pid
        name = kind._name if type(kind) is _Token else ""
        if name not in STORAGES or type(key) is not str or type(count) is not int or not 0 <= count < _MAX_COUNT:
            raise pickle.UnpicklingError("a storage of something else than numbers")
        return _Storage(key, STORAGES[name], count)


def _plain(value: Any) -> Any:
    """Unwraps arrays at the top and one level below; the callers check what lies in the lists they use."""
    if isinstance(value, dict):
        named = {key.decode("latin1") if isinstance(key, bytes) else key: entry for key, entry in value.items()}
        return {key: entry.value if isinstance(entry, Array) else entry for key, entry in named.items()}
    return value.value if isinstance(value, Array) else value
