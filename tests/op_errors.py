"""What every op of ``convnet.ops`` launches, and says to arguments of which one is wrong: ``golden/op_errors.json``.

All follows from the declarations, so that a new op is a new entry:

    python tests/op_errors.py --update  # writes the file; read the difference before you commit it

Kernels here are plain functions that note what they are given, on devices that need nothing compiled.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from convnet.devices.host import HostDevice
from convnet.devices.protocol import Array, Device
from convnet.kernels.precision import activation_dtype
from convnet.kernels.shapes import (
    BlurShape,
    ConvShape,
    DropoutShape,
    GatherShape,
    IngestShape,
    LinearShape,
    LocalShape,
    LrnShape,
    NailbedShape,
    PackShape,
    PoolShape,
    SoftmaxShape,
    SpatialNormShape,
)
from convnet.ops import ops
from convnet.ops.declare import DECLARED, Extent, Scratch, Tensor

GOLDEN = Path(__file__).parent / "golden" / "op_errors.json"
WORKSPACE = 4096  # bytes, where a kernel wants one
PRECISIONS = ("fp32", "bf16")

CONV = ConvShape.of(16, 3, 8, 9, 5, 3, 3, stride=2, lanes=8)
LOCAL = LocalShape.of(16, 3, 8, 9, 5, 3, 3, stride=2, lanes=8)
LINEAR = LinearShape(16, 5, 7, 8)
POOL = PoolShape.of(16, 3, 8, 9, 3, 2, lanes=8)
LRN = LrnShape(16, 3, 8, 9, 1, 8, 5, 1e-4, 0.75, 2.0)
SPATIAL = SpatialNormShape(16, 3, 8, 9, 8, 5, 1e-4, 0.75, 2.0)
BLUR = BlurShape(16, 3, 8, 9, 8, 5, 1.0)
NAILBED = NailbedShape.of(16, 3, 8, 9, 2, lanes=8)
DROPOUT = DropoutShape(16, 7, 8, 2, 9, 0.5, 1, 0)  # of LINEAR's output
SOFTMAX = SoftmaxShape(16, 12, 7, 8)
INGEST = IngestShape(16, 12, 11, 13, 8, 8, (1.0, 1.0, 1.0), fold=2)
PACK = PackShape(16, 12, 3, 5, 4, 8, 2, 1, 60, 20, 4, 1)
GATHER = GatherShape(16, 4, 5, 3, 6, 8)

SHAPES = {ConvShape: CONV, LinearShape: LINEAR, PoolShape: POOL, LrnShape: LRN, DropoutShape: DROPOUT}
SHAPES |= {LocalShape: LOCAL, SoftmaxShape: SOFTMAX, IngestShape: INGEST, PackShape: PACK}
SHAPES |= {SpatialNormShape: SPATIAL, BlurShape: BLUR, NailbedShape: NAILBED, GatherShape: GATHER}


def kernels(launched: list[tuple[Any, ...]]) -> SimpleNamespace:
    """A kernel table; what a kernel is given, its own name in front, is added to ``launched``."""

    def kernel(name: str) -> Any:
        return lambda *arguments: launched.append((name, *arguments))

    sizes = ("conv_backward_filter_workspace", "linear_workspace", "rnorm_workspace", "cnorm_workspace")
    table = {name: kernel(name) for name in DECLARED}
    return SimpleNamespace(**table, **dict.fromkeys(sizes, lambda shape, precision: WORKSPACE))


# ---- right arguments ----

ANY = SimpleNamespace(shape=(5, 7), size=35)  # in place of an array that others are measured by


def measured(extent: Extent, found: dict[str, Any]) -> tuple[int, ...]:
    """The shape that an extent stands for, with the arguments ``found`` so far."""
    if callable(extent):
        return extent(*[found.get(name, ANY) for name in inspect.signature(extent).parameters])
    owner, path = extent.split(".", 1) if "." in extent else ("shape", extent)
    if path == "size":
        return ANY.shape
    size = attrgetter(path)(found[owner])
    return (size,) if isinstance(size, int) else size


def right(op: str, precision: str, device: Device) -> dict[str, Any]:
    """Arguments of ``op`` but the stream, by name, nothing left out; ``sgd_many`` gets those of ``sgd``."""
    parameters = DECLARED["sgd" if op == "sgd_many" else op].parameters
    values = {**SHAPES, bool: True}
    names = {"precision": precision, "kind": "logistic", "cost": "squared-error"}
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        mark = parameter.marks[0] if parameter.marks else None
        if isinstance(mark, Tensor):
            shape = measured(mark.extent, {**found, "precision": precision})
            found[name] = device.empty(shape, mark.dtype or activation_dtype(precision))
        elif isinstance(mark, Scratch):
            found[name] = device.empty((WORKSPACE,), np.uint8)
        elif name != "stream":
            own = 0.5 ** len(found) if parameter.kind is float else None  # that it may be told by
            found[name] = own or names.get(name) or values[parameter.kind]
    return found


def call(op: str, stream: Any, arguments: dict[str, Any]) -> None:
    if op == "sgd_many":
        rest = dict(arguments)
        control = rest.pop("control")
        ops.sgd_many(stream, [ops.Update(**rest)], control)
    else:
        getattr(ops, op)(stream, *arguments.values())


# ---- one of them wrong ----


def spoiled(arguments: dict[str, Any], elsewhere: Device) -> Iterator[tuple[str, str, Any]]:
    """Name of an argument, what is wrong with it, and the wrong value."""
    for name, value in arguments.items():
        if name == "workspace":
            yield name, "missing", None
            yield name, "small", value.device.empty((WORKSPACE - 1,), np.uint8)
        elif isinstance(value, Array):
            *rows, last = value.shape
            # more than the padding of a copy in bfloat16 could take in
            yield name, "shape", value.device.empty((*rows, last + 8), value.dtype)
            yield name, "dtype", value.device.empty(value.shape, np.int64)
            yield name, "device", elsewhere.empty(value.shape, value.dtype)
        elif name == "precision":
            yield name, "value", "fp16"
        elif name == "dropout":
            yield name, "value", replace(value, features=3)
        elif name == "pool":
            yield name, "value", replace(value, C=4)


def written(value: Any, arguments: dict[str, Any]) -> str:
    """What a kernel was given: by the name it has among the op's arguments, or as it is."""
    if isinstance(value, tuple):
        return "(" + ", ".join(written(item, arguments) for item in value) + ")"
    names = [n for n, given in arguments.items() if getattr(given, "handle", given) is value]
    return names[0] if names else repr(value)


def errors() -> dict[str, dict[str, str]]:
    """Texts by op and precision, then by argument and what is wrong with it; "launch" is what right ones end in."""
    found = {}
    for op in DECLARED:
        for precision in PRECISIONS if "precision" in DECLARED[op].parameters else ["fp32"]:
            launched: list[tuple[Any, ...]] = []
            here, elsewhere = HostDevice("cpu", 0, kernels(launched)), HostDevice("emu", 1, kernels(launched))
            stream, arguments = here.stream(), right(op, precision, here)
            texts = found[f"{op} {precision}"] = {}
            for name, wrong, value in spoiled(arguments, elsewhere):
                try:
                    call(op, stream, {**arguments, name: value})
                except ValueError as error:
                    texts[f"{name} {wrong}"] = str(error)
            here.synchronize()
            assert not launched, f"{op} launched what it refused"
            call(op, stream, arguments)
            here.synchronize()
            [(kernel, *given, _)] = launched
            texts["launch"] = kernel + written(tuple(given), arguments)
            for device in (here, elsewhere):
                device.close()
    return found


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    GOLDEN.write_text(json.dumps(errors(), indent=1) + "\n")
