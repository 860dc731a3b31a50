"""The compiled modules: what they take is what ops declare and stubs promise, and what they say to wrong arguments."""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import convnet
from convnet.kernels.shapes import ConvShape, DropoutShape, IngestShape, LinearShape
from convnet.ops.declare import DECLARED, Scratch


def promised(stub: str) -> dict[str, list[str]]:
    """The functions of a stub with the names of their arguments."""
    tree = ast.parse((Path(convnet.__file__).parent / "kernels" / stub).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {function.name: [argument.arg for argument in function.args.args] for function in functions}


KERNELS = promised("_kernels.pyi")
MODULES = ("_cpu", "_emu", "_glass", "_gpu")
COMPILED = [(module, function) for module in MODULES for function in [*KERNELS, *promised(f"{module}.pyi")]]
SHAPE = ConvShape.of(8, 3, 8, 8, 4, 3, 3, lanes=8)
DROPOUT = DropoutShape(8, 4, 8, 0, 4, 0.5, 1, 0)
INGEST = IngestShape(8, 8, 8, 8, 8, 8, (1.0, 1.0, 1.0))


def module(name: str):
    try:
        return importlib.import_module(f"convnet.kernels.{name}")
    except ImportError:
        return pytest.skip(f"convnet.kernels.{name} is not built")


@pytest.fixture
def emu():
    return module("_emu")


def argument_names(function) -> list[str]:
    """From the first line of a docstring: "add(count: int, a: object) -> None"."""
    inside = re.search(r"\((.*)\)", function.__doc__.splitlines()[0])[1]
    return [part.split(":")[0].strip() for part in inside.split(",") if part.strip()]


@pytest.mark.parametrize(("name", "function"), COMPILED)
def test_compiled_module_matches_the_stub(name, function):
    assert argument_names(getattr(module(name), function)) == {**KERNELS, **promised(f"{name}.pyi")}[function]


def declared(op: str) -> list[tuple[str, str, bool, bool]]:
    """What a kernel takes, as ``signatures()`` says it, but for numbers of elements: these follow from arrays."""
    rows = []
    for name, parameter in DECLARED[op].parameters.items():
        kind, written = parameter.kind.__name__, False
        for mark in parameter.marks:
            scratch = isinstance(mark, Scratch)
            kind = "float32" if scratch else mark.dtype.name if mark.dtype else "activations"
            written = scratch or mark.written
        rows.append((name, {"str": name, "Sequence": "updates"}.get(kind, kind), written, parameter.optional))
    return [*rows[1:], ("stream", "stream", False, False)]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("op", DECLARED)
def test_a_kernel_takes_what_its_op_declares(name, op):
    assert [row for row in module(name).signatures()[op] if row[1] != "int"] == declared(op)


@pytest.mark.parametrize("name", MODULES)
def test_every_kernel_is_declared(name):
    assert set(module(name).signatures()) - set(KERNELS) - set(promised(f"{name}.pyi")) == set(DECLARED)


@pytest.mark.parametrize("name", MODULES)
def test_build_info(name):
    info = module(name).build_info()
    assert set(info) == {"compiler", "cuda", "architectures", "version"}
    assert info["version"] == convnet.__version__
    assert bool(info["cuda"]) == (name == "_gpu")


def test_gpu_module_needs_no_driver():
    """Importing it works anywhere; a launch without a driver is an error that says so."""
    gpu = module("_gpu")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(RuntimeError, match=r"driver.*CUDA error"):
            gpu.relu_forward(4, "fp32", 256, 256, 0)
        for capture in (gpu.begin_capture, gpu.end_capture):
            with pytest.raises(RuntimeError, match=r"capturing a graph: .*driver.*CUDA error"):
                capture(256)
    else:
        pytest.skip("this machine has a driver")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((SHAPE, "fp32", 0, 16, None, 16, True, False, 0), ValueError, "x is required, got a null address"),
        ((SHAPE, "fp32", 16, None, None, 16, True, False, 0), ValueError, "conv_forward: weight is required"),
        (
            (SHAPE, "fp32", 16, 16, 20, 16, True, False, 0),
            ValueError,
            "conv_forward: bias must be aligned to 16 bytes, got address 20",
        ),
        ((SHAPE, "fp32", -16, 16, None, 16, True, False, 0), ValueError, "conv_forward: x must be at least 0"),
        ((SHAPE, "fp32", 2**64, 16, None, 16, True, False, 0), ValueError, "x must be at least 0 and at most"),
        ((SHAPE, "fp32", "x", 16, None, 16, True, False, 0), TypeError, "conv_forward: x must be an int, got str"),
        ((SHAPE, "fp32", 16.0, 16, None, 16, True, False, 0), TypeError, "conv_forward: x must be an int, got float"),
        (
            (SHAPE, "fp32", np.zeros(4), 16, None, 16, True, False, 0),
            TypeError,
            "conv_forward: x must be an int, got numpy.ndarray",
        ),
        (
            (3, "fp32", 16, 16, None, 16, True, False, 0),
            TypeError,
            "conv_forward: shape must be a shape of convnet.kernels.shapes with a field N",
        ),
        ((DROPOUT, "fp32", 16, 16, None, 16, True, False, 0), TypeError, "with a field C, got DropoutShape"),
    ],
)
def test_wrong_addresses_and_shapes(emu, arguments, error, text):
    with pytest.raises(error, match=re.escape(text)):
        emu.conv_forward(*arguments)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("K", -1, ValueError),
        ("K", 2**31, ValueError),
        ("pad_top", -1, ValueError),
        ("K", "4", TypeError),
        ("K", 4.0, TypeError),
        ("K", None, TypeError),
    ],
)
def test_wrong_extents(emu, field, value, error):
    with pytest.raises(error, match=rf"conv_forward: shape\.{field} must be"):
        emu.conv_forward(dataclasses.replace(SHAPE, **{field: value}), "fp32", 16, 16, None, 16, True, False, 0)


def test_tensors_whose_size_wraps_are_refused(emu):
    """2^30 x 2^30 pixels of 16 images are 0 in 64 bits."""
    for call, rest in ((emu.conv_forward, (16, 16, None, 16, True, False, 0)), (emu.fold_weight, (16, 16, 0))):
        shape = dataclasses.replace(SHAPE, N=16, lanes=16, H=2**30, W=2**30, R=2**30, S=2**30)
        with pytest.raises(
            ValueError, match=r"shape must describe tensors of at most 1099511627776 values, got one of"
        ):
            call(shape, "fp32", *rest)


def test_what_needs_a_workspace_says_so(emu):
    linear = LinearShape(16, 64, 8, 16)
    with pytest.raises(ValueError, match="linear_backward_filter: dbias needs a workspace, got a null address"):
        emu.linear_backward_filter(linear, "fp32", 16, 16, 16, 16, None, 0)
    with pytest.raises(ValueError, match="conv_backward_filter: sums of parts and dbias need a workspace"):
        emu.conv_backward_filter(SHAPE, "fp32", 16, 16, 16, 16, None, 0)


def update(**changes):
    """An entry of ``sgd_many``, by name."""
    entry = {"count": 4, "weight": 16, "velocity": 16, "gradient": 16, "copy": None, "columns": 1}
    return tuple({**entry, "rate": 1.0, "decay": 1.0, "momentum": 1.0, "folded": None, **changes}.values())


@pytest.mark.parametrize(
    ("updates", "error", "text"),
    [
        (5, TypeError, "not iterable"),
        ((5,), TypeError, "sgd_many: updates must be tuples of ten, got 5"),
        (((1, 2, 3),), TypeError, "sgd_many: updates must be tuples of ten, got (1, 2, 3)"),
        ((update(decay="no"),), TypeError, "sgd_many: updates.decay must be a number, got str"),
        ((update(gradient=None),), ValueError, "sgd_many: updates.gradient is required"),
        ((update(),) * 100, ValueError, "sgd_many: takes at most"),
        ((update(folded=5),), TypeError, "sgd_many: updates.folded must be a shape and a precision, got 5"),
        ((update(folded=(SHAPE,)),), TypeError, "sgd_many: updates.folded must be a shape and a precision, got ("),
        ((update(folded=(5, "bf16")),), TypeError, "sgd_many: updates.folded must be a shape of"),
        ((update(folded=(SHAPE, "half")),), ValueError, 'sgd_many: updates.folded must be "fp32", "tf32" or "bf16"'),
        ((update(folded=(SHAPE, "bf16")),), ValueError, "sgd_many: a folded weight must have the"),
    ],
)
def test_wrong_updates(emu, updates, error, text):
    with pytest.raises(error, match=re.escape(text)):
        emu.sgd_many(updates, 16, 0)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("p", "half", TypeError), ("seed", 2**64, ValueError), ("layer", 2**32, ValueError), ("layer", -1, ValueError)],
)
def test_wrong_dropout_fields(emu, field, value, error):
    with pytest.raises(error, match=rf"dropout_forward: shape\.{field} must be"):
        emu.dropout_forward(dataclasses.replace(DROPOUT, **{field: value}), "fp32", 16, 16, 1, 4, 0)


def test_bytes_need_no_alignment_and_labels_need_four(emu):
    """relu would take the floats; here the order of the checks shows which address is refused."""
    with pytest.raises(ValueError, match="dropout_backward: dx is required"):
        emu.dropout_backward(4, "fp32", 16, 1, 0, 0)  # a mask at address 1 is fine
    with pytest.raises(ValueError, match="ingest: windows must be aligned to 4 bytes, got address 2"):
        emu.ingest(INGEST, "fp32", 1, 2, 16, 16, 16, 0)


@pytest.mark.parametrize(("scale", "got"), [(1.0, "1.0"), ((1.0, 2.0), r"\(1.0, 2.0\)"), (None, "None")])
def test_a_scale_has_three_numbers(emu, scale, got):
    with pytest.raises(TypeError, match=rf"ingest: shape\.scale must be three numbers, got {got}"):
        emu.ingest(dataclasses.replace(INGEST, scale=scale), "fp32", 1, 4, 16, 16, 16, 0)
    with pytest.raises(TypeError, match=r"ingest: shape\.scale must be a number, got str"):
        emu.ingest(dataclasses.replace(INGEST, scale=(1.0, "2", 3.0)), "fp32", 1, 4, 16, 16, 16, 0)


def test_numpy_integers_are_integers(emu):
    values = np.zeros(64 + 3, np.float32)
    values = values[-values.ctypes.data % 16 // 4 :][:64]
    values[:] = np.arange(64) - 32
    address = np.uint64(values.ctypes.data)
    emu.relu_forward(np.int64(64), "fp32", address, address, 0)
    np.testing.assert_array_equal(values, np.maximum(np.arange(64) - 32, 0))
