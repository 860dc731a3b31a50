"""Weights for kernels in bfloat16: the copy that they read, written by an update too; folded weights. To the bit."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet.kernels.control import control_words
from convnet.kernels.precision import BF16, copy_columns
from convnet.kernels.shapes import ConvShape
from convnet.ops import ops
from convnet.ops.layout import pack_weight, to_float32, unpack_weight

pytestmark = pytest.mark.parametrize("device", ["emu", "cuda"], indirect=True)

ROWS = [(1, 1), (3, 5), (7, 8), (5, 12), (4, 4), (2, 1000), (9, 127), (130, 16), (1, 4099), (341, 3)]
POISON = 0xFFFF


def copied(weight):
    """Rounded, rows padded with zeros."""
    padding = copy_columns(weight.shape[-1]) - weight.shape[-1]
    return np.pad(reference.bf16(weight), [(0, 0)] * (weight.ndim - 1) + [(0, padding)])


@pytest.mark.parametrize("size", ROWS)
def test_cast(machine, size):
    weight = np.random.default_rng(size[1]).standard_normal(size, dtype=np.float32)
    copy = machine.empty((size[0], copy_columns(size[1])), BF16)
    ops.cast_weight(machine.stream, machine.put(weight), copy)
    np.testing.assert_array_equal(to_float32(copy.download()), copied(weight))


def test_nothing_is_cast_and_updated(machine):
    """No rows are no launch."""
    nothing, copy = machine.empty((0, 5)), machine.empty((0, 8), BF16)
    ops.cast_weight(machine.stream, nothing, copy)
    assert copy.download().size == 0
    control = machine.put(control_words(lr=0.01))
    ops.sgd(machine.stream, nothing, nothing, nothing, copy, control, 1.0, 1.0, 1.0)
    assert nothing.download().size == 0


def test_cast_rounds_to_nearest_even(machine):
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0xFF7F8000, 0x00000001, 0x80018000, 0x7F800000,
            0x7F800001, 0xFFFFFFFF, 0x80000000]  # fmt: skip
    expected = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0xFF80, 0x0000, 0x8002, 0x7F80, 0x7FFF, 0x7FFF, 0x8000]
    copy = machine.empty((16,), BF16)
    ops.cast_weight(machine.stream, machine.put(np.array(bits, np.uint32).view(np.float32)), copy)
    np.testing.assert_array_equal(copy.download(), [*expected, 0, 0, 0, 0])


@pytest.mark.parametrize("size", ROWS)
def test_sgd_writes_the_copy(machine, size):
    """The update is the one without a copy, to the bit; the copy is the new weight, and its padding is left alone."""
    random = np.random.default_rng(size[0])
    tensors = [random.standard_normal(size, dtype=np.float32) for _ in range(3)]
    weight, velocity, gradient = map(machine.put, tensors)
    copy = machine.empty((size[0], copy_columns(size[1])), BF16)
    constants = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    control = machine.put(control_words(**constants))
    ops.sgd(machine.stream, weight, velocity, gradient, copy, control, rate=1.0, decay=1.0, momentum=1.0)
    new_weight, new_velocity = reference.sgd(*tensors, **constants)
    np.testing.assert_array_equal(weight.download(), new_weight)
    np.testing.assert_array_equal(velocity.download(), new_velocity)
    held = copy.download()
    np.testing.assert_array_equal(to_float32(held[:, : size[1]].copy()), reference.bf16(new_weight))
    assert (held[:, size[1] :] == POISON).all()


def test_rows_must_be_whole(machine):
    weight, copy = machine.put(np.ones(12, np.float32)), machine.empty((16,), BF16)

    def cast():
        machine.stream.launch(machine.device.kernels.cast_weight, 12, 5, weight, copy)
        machine.device.synchronize()

    with pytest.raises(ValueError, match="cast_weight: a weight must be whole rows, got 12 values in rows of 5"):
        cast()


def conv(C, H, K, R, S, stride) -> ConvShape:
    return ConvShape.of(2, C, H, H + 1, K, R, S, stride=stride, lanes=1)


FOLDED = [
    conv(3, 23, 20, 11, 11, 4),  # AlexNet's first layer
    conv(3, 12, 16, 5, 5, 2),
    conv(1, 9, 13, 2, 3, 3),
    conv(2, 17, 3, 8, 4, 4),
    conv(5, 7, 9, 3, 1, 2),
    conv(2, 6, 8, 3, 3, 1),
    conv(2, 16, 130, 1, 7, 5),
]


def fold(x, s):
    """Of the last two axes of (n, C, H, W), element by element."""
    n, C, H, W = x.shape
    folded = np.zeros((n, C * s * s, -(-H // s), -(-W // s)), x.dtype)
    for c, i, j in np.ndindex(C, H, W):
        folded[:, c * s * s + i % s * s + j % s, i // s, j // s] = x[:, c, i, j]
    return folded


def integers(size, seed):
    return np.random.default_rng(seed).integers(-8, 9, size).astype(np.float32)


def on_device(machine, shape, filters, precision):
    """``filters`` (K, C, R, S) folded by the device, and what lies in the padding of their rows."""
    bf16 = precision == "bf16"
    copy = machine.empty(shape.folded.weight_copy, BF16) if bf16 else machine.empty(shape.folded.weight)
    ops.fold_weight(machine.stream, shape, precision, machine.put(pack_weight(filters, 1)), copy)
    values = to_float32(copy.download()) if bf16 else copy.download()
    return unpack_weight(values[..., : shape.K]), values[..., shape.K :]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("shape", FOLDED, ids=lambda s: f"{s.K}x{s.C}x{s.R}x{s.S}-stride-{s.stride}")
def test_folded_weight(machine, shape, precision):
    """Rounded, each tap in its place, zero where there is none; and it convolves a folded image to the same result."""
    size = (shape.K, shape.C, shape.R, shape.S)
    filters = np.random.default_rng(1).standard_normal(size, dtype=np.float32)
    folded, padding = on_device(machine, shape, filters, precision)
    np.testing.assert_array_equal(folded, fold(reference.held(filters, precision), shape.stride))
    assert not padding.any()

    filters, x = integers(size, 2), integers((shape.N, shape.C, shape.H, shape.W), 3)
    folded, _ = on_device(machine, shape, filters, precision)
    window = {"top": 0, "left": 0, "P": shape.P, "Q": shape.Q}
    y = reference.conv_forward(x, filters, stride=shape.stride, **window)
    np.testing.assert_array_equal(reference.conv_forward(fold(x, shape.stride), folded, stride=1, **window), y)
    if shape.folded.R * shape.folded.S > 1:
        wrong = reference.conv_forward(fold(x, shape.stride), folded[:, :, ::-1, ::-1], stride=1, **window)
        assert (wrong != y).any()


@pytest.mark.parametrize("shape", FOLDED, ids=lambda s: f"{s.K}x{s.C}x{s.R}x{s.S}-stride-{s.stride}")
def test_unfolded_gradient(machine, shape):
    """The gradient of the folded convolution becomes that of the plain one; what has no original is not read."""
    window = {"top": 0, "left": 0, "P": shape.P, "Q": shape.Q}
    filters, x = (integers(size, 4) for size in ((shape.K, shape.C, shape.R, shape.S),
                                                 (shape.N, shape.C, shape.H, shape.W)))  # fmt: skip
    dy = integers((shape.N, shape.K, shape.P, shape.Q), 5)
    s = shape.stride
    dweight = reference.conv_backward(dy, x, filters, stride=s, **window)[1]
    folded = reference.conv_backward(dy, fold(x, s), fold(filters, s), stride=1, **window)[1].astype(np.float32)
    folded[fold(np.ones_like(filters), s) == 0] = np.nan
    gradient = machine.empty(shape.weight)
    ops.unfold_gradient(machine.stream, shape, machine.put(pack_weight(folded, 1)), gradient)
    np.testing.assert_array_equal(unpack_weight(gradient.download()), dweight)
