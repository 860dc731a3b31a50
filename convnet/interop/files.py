"""Arrays by name from the files that people keep weights in: safetensors, NumPy's archives, ONNX, and PyTorch's, of
which nothing is unpickled but where the numbers lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.lib.stride_tricks import as_strided

from ..data import DataError, npz
from ..data.pickles import Tensor, read_tensors
from ..data.published import check_room
from ..data.zipped import PIECE, content, opened
from ..output.files import open_regular, printable, read_regular
from .onnx_tensors import initializers

Values = np.ndarray[Any, Any]
Read = tuple[dict[str, Values], dict[str, str]]  # tensors, and the texts that lie beside them

ZIP = b"PK\x03\x04"
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how files of PyTorch before 1.6 begin
SUFFIXES = (".pth", ".pt", ".npz", ".onnx")
SAFETENSORS_KINDS = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}
FLOATS = {"float16": "f2", "float32": "f4", "float64": "f8", "bfloat16": "u2"}  # and how NumPy reads them
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training programs keep a state dict


class WeightsError(ValueError):
    """A file of weights that cannot be used; the text names it, what was expected and what was found. Exit code 4."""


def holds_weights(path: Path) -> bool:
    """Whether a file is one of these, by its first bytes or its name, and no checkpoint of ours."""
    try:
        with open_regular(path) as file:
            head = file.read(len(OLD_TORCH))
    except (OSError, ValueError):
        return path.suffix.lower() in SUFFIXES and not path.is_dir()
    if head.startswith(ZIP) or head == OLD_TORCH or path.suffix.lower() in SUFFIXES:
        return True
    try:
        with safetensors.safe_open(path, framework="np") as tensors:
            return not any(name.startswith("weights/") for name in tensors.keys())  # noqa: SIM118  (not a mapping)
    except (safetensors.SafetensorError, OSError, ValueError):
        return False


def read_weights(path: str | Path) -> dict[str, Values]:
    """All tensors of a ``.safetensors``, ``.npz``, ``.pth``, ``.pt`` or ``.onnx`` file, float32, under the names they
    have there.

    What the file is its first bytes say, of ONNX its name. Numbers of 16 and 64 bits become float32; PyTorch's tensors
    may be views of common storages, and stay that. A state dict may lie in a dict with others, as ``state_dict`` or
    ``model``. Raises ``WeightsError`` for what is damaged, or holds anything else than tensors of floating-point
    numbers.
    """
    return read_file(Path(path))[0]


def read_file(path: Path) -> Read:
    """As ``read_weights``; and by name the texts of a file that has some, lists of them as JSON."""
    try:
        with open_regular(path) as file:
            head = file.read(len(OLD_TORCH))
        if path.suffix.lower() == ".onnx":
            return initializers(path)
        if head == OLD_TORCH:
            raise DataError(
                f"{str(path)!r}: a PyTorch file as they were before version 1.6, which is not read; save it again: "
                "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
            )
        if not head.startswith(ZIP):
            return _from_safetensors(path)
        with opened(path, "zip archive") as archive:
            of_torch = any(os.path.basename(name) == "data.pkl" for name in archive.namelist())
        return (_from_torch(path), {}) if of_torch else _from_npz(path)
    except DataError as error:
        raise WeightsError(str(error)) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error


def _as_float32(values: Values, kind: str) -> Values:
    """``values`` as they lie in a file, bfloat16 as uint16."""
    if kind == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # infinite is found out about where the numbers are used
        return values.astype(np.float32, copy=False)


def _refuse(path: Path, name: str, found: str) -> DataError:
    return DataError(
        f"{str(path)!r}: {printable(name)!r:.80} is {found}; weights are tensors of floating-point numbers"
    )


# ---- the kinds of files; what is wrong with them is a ``DataError`` ----


def _from_safetensors(path: Path) -> Read:
    size = os.stat(path).st_size
    check_room(3 * size, repr(str(path)), instead="")
    content = read_regular(path)
    try:
        tensors = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise DataError(
            f"{str(path)!r}: neither a complete safetensors file, nor an .npz archive, nor torch.save's ({error})"
        ) from error
    found = {}
    for name, tensor in tensors:
        kind = SAFETENSORS_KINDS.get(tensor["dtype"])
        if kind is None:
            raise _refuse(path, name, tensor["dtype"])
        raw = np.frombuffer(tensor["data"], "<" + FLOATS[kind]).reshape(tensor["shape"])
        found[name] = _as_float32(raw, kind)
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # which has just been found whole
    return found, head.get("__metadata__") or {}


def _from_npz(path: Path) -> Read:
    found, texts = {}, {}
    for name, values in npz.arrays(path).items():
        if values.dtype.kind == "U":
            texts[name] = json.dumps(values.tolist()) if values.ndim else str(values)
            continue
        if values.dtype.kind != "f" or values.dtype.itemsize > 8:
            raise _refuse(path, name, str(values.dtype))
        found[name] = _as_float32(values, values.dtype.name)
    return found, texts


def _from_torch(path: Path) -> dict[str, Values]:
    """A zip archive: ``data.pkl`` says what there is, and the numbers lie in ``data/KEY``, never packed."""
    where, size = repr(str(path)), os.stat(path).st_size
    with opened(path, "PyTorch file") as archive:
        members = {info.filename: info for info in archive.infolist()}
        root = next(name for name in members if os.path.basename(name) == "data.pkl").removesuffix("data.pkl")
        if f"{root}constants.pkl" in members:
            raise DataError(
                f"{where}: holds a whole module (TorchScript), which is a program; save its weights alone: "
                "torch.save(model.state_dict(), FILE)"
            )
        if any(info.compress_type for info in members.values()):
            raise DataError(f"{where}: a packed member, which PyTorch does not write; save it again with torch.save")
        if sum(info.file_size for info in members.values()) > size or members[f"{root}data.pkl"].file_size > PIECE:
            raise DataError(f"{where}: members that are larger than the file, or than PyTorch's; it is damaged")
        check_room(3 * size, where, instead="")
        program = content(archive, f"{root}data.pkl", 0, members[f"{root}data.pkl"].file_size).tobytes()
        tensors = _state_dict(read_tensors(program, where), where)
        order = "<"
        if f"{root}byteorder" in members:
            order = {b"little": "<", b"big": ">"}[archive.read(f"{root}byteorder")]
        for name, tensor in tensors.items():
            if tensor.kind not in FLOATS:
                raise _refuse(path, name, tensor.kind)
        storages: dict[tuple[str, str], Values] = {}
        for key, kind, count in {tensor[:3] for tensor in tensors.values()}:
            dtype = np.dtype(order + FLOATS[kind])
            if members[f"{root}data/{key}"].file_size != count * dtype.itemsize:
                raise ValueError(f"storage {key:.40} has not {count} numbers of {kind}")
            raw = content(archive, f"{root}data/{key}", 0, count * dtype.itemsize)
            storages[key, kind] = _as_float32(raw.view(dtype), kind)
    return {name: _view(storages[tensor.storage, tensor.kind], tensor) for name, tensor in tensors.items()}


def _view(storage: Values, tensor: Tensor) -> Values:
    strides = tuple(4 * stride for stride in tensor.strides)
    return as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)


def _state_dict(found: Any, where: str) -> dict[str, Tensor]:
    """Of what a file holds the dict of tensors, which may lie in a dict with others."""
    if isinstance(found, dict):
        found = next((found[name] for name in WRAPPERS if isinstance(found.get(name), dict)), found)
    if not isinstance(found, dict) or not found:
        what = type(found).__name__ if found else "nothing"
        raise DataError(f"{where}: expected a state dict, found {what}; save one: torch.save(model.state_dict(), FILE)")
    for name, value in found.items():
        if type(name) is not str or type(value) is not Tensor:
            shown = printable(name) if type(name) is str else type(name).__name__
            raise DataError(f"{where}: expected a dict of tensors, found {type(value).__name__} as {shown!r:.80}")
    return found
