"""What every op of ``convnet.ops.ops`` launches, and says to arguments of which one is wrong: ``golden/op_errors.json``.

    python tests/op_errors.py --update  # writes the file; read the difference before you commit it

Kernels here are plain functions that note what they are given, on devices that need nothing compiled.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from convnet.devices.host import HostDevice
from convnet.devices.protocol import Array, Device
from convnet.kernels.precision import BF16, activation_dtype
from convnet.kernels.shapes import ConvShape, DropoutShape, IngestShape, LinearShape, LrnShape, PoolShape, SoftmaxShape
from convnet.ops import ops

GOLDEN = Path(__file__).parent / "golden" / "op_errors.json"
WORKSPACE = 4096  # bytes, where a kernel wants one
PRECISIONS = ("fp32", "bf16")

CONV = ConvShape.of(16, 3, 8, 9, 5, 3, 3, stride=2, lanes=8)
LINEAR = LinearShape(16, 5, 7, 8)
POOL = PoolShape.of(16, 3, 8, 9, 3, 2, lanes=8)
LRN = LrnShape(16, 3, 8, 9, 1, 8, 5, 1e-4, 0.75, 2.0)
DROPOUT = DropoutShape(16, 4, 8, 2, 6, 0.5, 1, 0)
SOFTMAX = SoftmaxShape(16, 12, 7, 8)
INGEST = IngestShape(16, 12, 11, 13, 8, 8, (1.0, 1.0, 1.0), fold=2)

SHAPES = {ConvShape: CONV, LinearShape: LINEAR, PoolShape: POOL, LrnShape: LRN, DropoutShape: DROPOUT}
SHAPES |= {SoftmaxShape: SOFTMAX, IngestShape: INGEST}


def kernels(launched: list[tuple[Any, ...]]) -> SimpleNamespace:
    """A kernel table; what a kernel is given, its own name in front, is added to ``launched``."""

    def kernel(name: str) -> Any:
        return lambda *arguments: launched.append((name, *arguments))

    sizes = ("conv_backward_filter_workspace", "linear_workspace")
    table = {name: kernel(name) for name in OPS}
    return SimpleNamespace(**table, **dict.fromkeys(sizes, lambda shape, precision: WORKSPACE))


# ---- right arguments ----

F32, I32, U8, U32 = np.float32, np.int32, np.uint8, np.uint32
ACTIVATIONS = "of activations"
CONTROL = ((8,), U32)


def _tensors(bf16: bool) -> dict[str, dict[str, tuple[tuple[int, ...], Any]]]:
    """Shape and dtype of every tensor of every op."""
    A = ACTIVATIONS
    x, y, w, wc = CONV.x, CONV.y, CONV.weight, (CONV.weight_copy if bf16 else CONV.weight)
    lx, ly, lw, lc = LINEAR.x, LINEAR.y, LINEAR.weight, (LINEAR.weight_copy if bf16 else LINEAR.weight)
    bias, lbias, scratch = ((5,), F32), ((7,), F32), ((WORKSPACE,), U8)
    update = {"weight": (lw, F32), "velocity": (lw, F32)}
    copy = {"copy": (LINEAR.weight_copy, BF16)}
    crop, tints, mean = (12, 3), ((12, 3), F32), ((3, 8, 8), F32)
    chroma = ((4, 6, 7), U8)
    e = (16, 3)
    return {
        "conv_forward": {"x": (x, A), "weight": (wc, A), "bias": bias, "y": (y, A)},
        "conv_backward_data": {"dy": (y, A), "weight": (wc, A), "dx": (x, A), "mask": (x, A)},
        "conv_backward_filter": {
            "dy": (y, A), "x": (x, A), "dweight": (w, F32), "dbias": bias, "workspace": scratch,
        },
        "linear_forward": {
            "x": (lx, A), "weight": (lc, A), "bias": lbias, "y": (ly, A), "control": CONTROL, "workspace": scratch,
        },
        "linear_backward_data": {
            "dy": (ly, A), "weight": (lc, A), "dx": (lx, A), "mask": (lx, A), "workspace": scratch,
        },
        "linear_backward_filter": {
            "dy": (ly, A), "x": (lx, A), "dweight": (lw, F32), "dbias": lbias, "workspace": scratch,
        },
        "linear_backward_filter_update": {
            "dy": (ly, A), "x": (lx, A), **update, **copy, "dbias": lbias, "control": CONTROL, "workspace": scratch,
        },
        "max_pool_forward": {"x": (POOL.x, A), "y": (POOL.y, A), "argmax": (POOL.y, U8)},
        "max_pool_backward": {
            "dy": (POOL.y, A), "argmax": (POOL.y, U8), "mask": (POOL.y, A), "dx": (POOL.x, A),
        },
        "lrn_forward": {"x": (LRN.x, A), "y": (LRN.x, A)},
        "lrn_backward": {"dy": (LRN.x, A), "x": (LRN.x, A), "dx": (LRN.x, A)},
        "lrn_pool_forward": {"x": (POOL.x, A), "p": (POOL.y, A), "argmax": (POOL.y, U8)},
        "lrn_pool_backward": {"dp": (POOL.y, A), "argmax": (POOL.y, U8), "x": (POOL.x, A), "dx": (POOL.x, A)},
        "relu_forward": {"x": (e, A), "y": (e, A)},
        "relu_backward": {"dy": (e, A), "y": (e, A), "dx": (e, A)},
        "tanh_forward": {"x": (e, A), "y": (e, A)},
        "tanh_backward": {"dy": (e, A), "y": (e, A), "dx": (e, A)},
        "add": {"a": (e, A), "b": (e, A), "y": (e, A)},
        "scale": {"x": (e, A), "y": (e, A)},
        "dropout_forward": {"x": (DROPOUT.x, A), "y": (DROPOUT.x, A), "mask": (DROPOUT.x, U8), "control": CONTROL},
        "dropout_backward": {"dy": (e, A), "mask": (e, U8), "dx": (e, A)},
        "softmax_cross_entropy": {
            "logits": (SOFTMAX.x, A), "labels": ((16,), I32), "losses": ((16,), F32), "ranks": ((16,), I32),
            "probs": (SOFTMAX.x, F32), "dlogits": (SOFTMAX.x, A), "control": CONTROL,
        },
        "sgd": {**update, "gradient": (lw, F32), **copy, "control": CONTROL},
        "sgd_many": {**update, "gradient": (lw, F32), **copy, "control": CONTROL},
        "cast_weight": {"weight": (lw, F32), **copy},
        "fold_weight": {"weight": (w, F32), "copy": (CONV.folded.weight_copy, BF16)},
        "unfold_gradient": {"folded": (CONV.folded.weight, F32), "gradient": (w, F32)},
        "ingest": {
            "images": ((12, 11, 13, 3), U8), "windows": (crop, I32), "noise": tints, "mean": mean, "y": (INGEST.y, A),
        },
        "ingest_planar": {
            "luma": ((4, 11, 13), U8), "cb": chroma, "cr": chroma, "index": ((12,), I32), "windows": (crop, I32),
            "noise": tints, "mean": mean, "y": (INGEST.y, A),
        },
    }  # fmt: skip


OPS = list(_tensors(False))
VALUES = {"relu": True, "rate": 0.5, "factor": 0.5, "decays": True, "lrn": LRN, "pool": POOL}


def right(op: str, precision: str, device: Device) -> dict[str, Any]:
    """Arguments of ``op`` but the stream, by name, nothing left out; those of one update in place of ``updates``."""
    tensors = _tensors(precision == "bf16")[op]
    parameters = dict(inspect.signature(getattr(ops, op)).parameters)
    if op == "sgd_many":
        parameters = {**inspect.signature(ops.Update).parameters, "control": parameters["control"]}
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name in tensors:
            shape, dtype = tensors[name]
            found[name] = device.empty(shape, activation_dtype(precision) if dtype is ACTIVATIONS else dtype)
        elif name == "shape":
            found[name] = next(shape for kind, shape in SHAPES.items() if kind.__name__ == parameter.annotation)
        elif name != "stream":
            dropout = replace(DROPOUT, features=7, features_total=9)
            found[name] = {**VALUES, "precision": precision, "dropout": dropout}[name]
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
            yield name, "small", value.device.empty((WORKSPACE - 1,), U8)
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
    names = [n for n, given in arguments.items() if given is value or getattr(given, "handle", None) is value]
    return names[0] if names else repr(value)


def errors() -> dict[str, dict[str, str]]:
    """Texts by op and precision, then by argument and what is wrong with it; "launch" is what right ones end in."""
    found = {}
    for op in OPS:
        for precision in PRECISIONS if "precision" in inspect.signature(getattr(ops, op)).parameters else ["fp32"]:
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
