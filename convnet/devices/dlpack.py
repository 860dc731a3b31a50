"""DLPack capsules of memory that NumPy does not know: the structures of dlpack.h (version 1.0) and their lifetimes.

A capsule holds the owner of its memory. Whoever takes the memory over renames the capsule and calls the deleter when
done; of a capsule that nobody took, the destructor does. Either way the owner is let go once.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .foreign import row_major

CUDA = 2  # kinds of devices
CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # NumPy's letters for kinds of numbers
Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLDevice(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class DLManagedTensor(ctypes.Structure):
    _fields_ = (("dl_tensor", DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", Deleter))


class DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),  # 1: read only, 2: copied
        ("dl_tensor", DLTensor),
    )


PLAIN, VERSIONED = b"dltensor", b"dltensor_versioned"  # capsules keep these addresses
_held: dict[int, tuple[Any, ...]] = {}  # what every structure that is in use, by its address, needs

_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", _api))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))


def _let_go(address: int) -> None:
    _held.pop(address, None)


def _destroyed(capsule: int) -> None:  # by address: the object is being taken apart
    for name in (PLAIN, VERSIONED):
        if _is_valid(capsule, name):
            _let_go(_pointer(capsule, name))


_deleter = Deleter(_let_go)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_destroyed)


def capsule(
    owner: Any,
    address: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    device: tuple[int, int],
    versioned: bool,
    copied: bool,
) -> Any:
    """A capsule of an array without gaps at ``address`` on ``device``, a kind and an index."""
    if dtype.kind not in CODES:
        raise BufferError(f"DLPack has no name for {dtype}")
    axes = ctypes.c_int64 * len(shape)
    sizes, steps = axes(*shape), axes(*row_major(shape))
    tensor = DLTensor(
        address,
        DLDevice(*device),
        len(shape),
        DLDataType(CODES[dtype.kind], 8 * dtype.itemsize, 1),
        ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
        ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64)),
        0,
    )
    managed: Any = (
        DLManagedTensorVersioned(1, 0, None, _deleter, 2 if copied else 0, tensor)
        if versioned
        else DLManagedTensor(tensor, None, _deleter)
    )
    where = ctypes.addressof(managed)
    _held[where] = managed, sizes, steps, owner
    return _new(where, VERSIONED if versioned else PLAIN, ctypes.cast(_destructor, ctypes.c_void_p))
