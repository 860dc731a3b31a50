"""Weights for kernels in bfloat16: the copy that they read, written by an update too; folded weights. To the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference

from convnet.kernels.control import SPOILED, STOPPED, control_words
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


# ---- folded weights in an update

CONSTANTS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
UPDATED = [*FOLDED, conv(2, 6, 1, 3, 3, 2), conv(3, 12, 96, 11, 11, 4)]


def folded_places(shape) -> np.ndarray:
    """1 + the place of each weight, where it lies folded, and 0 where nothing lies. To folding, the channels of all
    groups are channels."""
    size = 1, shape.C, shape.R, shape.S, shape.K // shape.groups
    return pack_weight(fold(unpack_weight(1 + np.arange(np.prod(size)).reshape(size)), shape.stride), 1)


def updated(machine, shape, precision, tensors, control=None):
    """Weight, velocity and copy after an update of many tensors, a folded weight among them; NaN is all of its gradient
    that has no original, and the copy holds nothing before."""
    weight, velocity, gradient = tensors
    places = folded_places(shape)
    folded = np.append(np.float32(np.nan), gradient)[places]
    bf16 = precision == "bf16"
    copy = machine.empty((*places.shape[:-1], copy_columns(places.shape[-1])) if bf16 else places.shape,
                         BF16 if bf16 else np.float32)  # fmt: skip
    words = machine.put(control_words(**CONSTANTS) if control is None else control)
    w, v, g = machine.put(weight), machine.put(velocity), machine.put(folded)
    around = [[machine.put(np.full(1030, i + j, np.float32)) for i in range(3)] for j in range(2)]
    row = (w.size, w, v, g, copy, 7, 1.0, 1.0, 1.0, (shape, precision))
    before, behind = ((1030, *three, None, 1, 1.0, 1.0, 1.0, None) for three in around)
    machine.stream.launch(machine.device.kernels.sgd_many, (before, row, behind), words)
    for j, three in enumerate(around):
        old = [np.full(1030, i + j, np.float32) for i in range(3)]
        expected = old if control is not None else [*reference.sgd(*old, **CONSTANTS), old[2]]
        for array, values in zip(three, expected, strict=True):
            np.testing.assert_array_equal(array.download(), values)
    if control is not None:
        control[:] = words.download()
    else:
        assert not words.download()[SPOILED]
    np.testing.assert_array_equal(g.download(), folded)
    return w.download(), v.download(), copy.download()


def drawn(shape):
    """Weight, velocity and gradient as they lie without folding."""
    random = np.random.default_rng(shape.K)
    return [random.standard_normal(shape.weight, dtype=np.float32) for _ in range(3)]


def assert_copied(copy, shape, precision, weight):
    """Every weight in its folded place, and all else is left alone."""
    places = folded_places(shape)
    values = to_float32(copy) if precision == "bf16" else copy
    held = values[..., : places.shape[-1]]
    np.testing.assert_array_equal(held[places > 0], reference.held(weight.ravel()[places[places > 0] - 1], precision))
    assert np.isnan(held[places == 0]).all()
    assert np.isnan(values[..., places.shape[-1] :]).all()


def identity(shape) -> str:
    return f"{shape.K}x{shape.C}x{shape.R}x{shape.S}-stride-{shape.stride}-groups-{shape.groups}"


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("shape", [*UPDATED, replace(FOLDED[0], C=4, groups=2)], ids=identity)
def test_folded_weights_are_updated(machine, shape, precision):
    """As unfolded ones, to the bit; what has no original is neither read nor written."""
    tensors = drawn(shape)
    weight, velocity, copy = updated(machine, shape, precision, tensors)
    for found, expected in zip((weight, velocity), reference.sgd(*tensors, **CONSTANTS), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_copied(copy, shape, precision, weight)


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("shape", UPDATED[:3], ids=identity)
def test_a_folded_update_is_its_three_parts(machine, shape, precision):
    """``unfold_gradient``, ``sgd`` and ``fold_weight``, each with factors of its own, to the bit."""
    dtype = BF16 if precision == "bf16" else np.float32
    size = shape.folded.weight_copy if precision == "bf16" else shape.folded.weight
    folded = np.random.default_rng(0).standard_normal(shape.folded.weight, dtype=np.float32)
    control, factors, results = machine.put(control_words(**CONSTANTS)), (0.5, 60.0, 0.55), []
    for together in (True, False):
        w, v = map(machine.put, drawn(shape)[:2])
        copy, g = machine.empty(size, dtype), machine.put(folded)
        ops.fold_weight(machine.stream, shape, precision, w, copy)
        if together:
            ops.sgd_many(machine.stream, [ops.Update(w, v, g, copy, *factors, shape)], control)
        else:
            gradient = machine.empty(shape.weight)
            ops.unfold_gradient(machine.stream, shape, g, gradient)
            ops.sgd(machine.stream, w, v, gradient, None, control, *factors)
            ops.fold_weight(machine.stream, shape, precision, w, copy)
        results.append([array.download() for array in (w, v, copy)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (results[0][0] != drawn(shape)[0]).any()


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("shape", UPDATED[:3], ids=identity)
def test_nothing_of_a_folded_weight_changes_where_stopped(machine, shape, precision):
    tensors, control = drawn(shape), control_words(**CONSTANTS)
    control[STOPPED] = 1
    weight, velocity, copy = updated(machine, shape, precision, tensors, control)
    np.testing.assert_array_equal(weight, tensors[0])
    np.testing.assert_array_equal(velocity, tensors[1])
    assert np.isnan(to_float32(copy) if precision == "bf16" else copy).all()
    assert not control[SPOILED]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("shape", UPDATED[:3], ids=identity)
def test_a_folded_gradient_that_is_not_finite_reaches_no_weight(machine, shape, precision, value):
    """Its own weight and velocity stay, in the copy too; all others take their step, and the control block says so."""
    tensors, places, spoiled = drawn(shape), folded_places(shape), np.zeros(shape.weight, bool)
    spoiled.flat[[0, 6, -1]] = True
    control = control_words(**CONSTANTS)
    g = np.where(spoiled, np.float32(value), tensors[2])
    w, v, g = (machine.put(t) for t in (*tensors[:2], np.append(np.float32(0), g)[places].astype(np.float32)))
    bf16 = precision == "bf16"
    copy = machine.empty(shape.folded.weight_copy, BF16) if bf16 else machine.empty(shape.folded.weight)
    words = machine.put(control)
    ops.sgd_many(machine.stream, [ops.Update(w, v, g, copy, 1.0, 1.0, 1.0, shape)], words)
    expected = [np.where(spoiled, t, n) for t, n in zip(tensors, reference.sgd(*tensors, **CONSTANTS), strict=False)]
    np.testing.assert_array_equal(w.download(), expected[0])
    np.testing.assert_array_equal(v.download(), expected[1])
    assert_copied(copy.download(), shape, precision, expected[0])
    assert words.download()[SPOILED]
    assert not words.download()[STOPPED]


def test_what_is_no_folded_update(machine):
    """Of arrays that do not belong to the folded weight the checks speak as of all others."""
    shape = FOLDED[0]
    w, v, folded = machine.empty(shape.weight), machine.empty(shape.weight), machine.empty(shape.folded.weight)
    control, other = machine.put(control_words()), machine.empty((5,))
    copy = machine.empty(shape.folded.weight_copy, BF16)
    for wrong, said in (
        ((other, v, folded, copy), "weight must have shape"),
        ((w, other, folded, copy), "velocity must have shape"),
        ((w, v, w, copy), "gradient must have shape"),
        ((w, v, folded, machine.empty(shape.weight, BF16)), "copy must have shape"),
        ((w, v, folded, w), "copy must have shape"),
    ):
        with pytest.raises(ValueError, match=f"sgd_many: {said}"):
            ops.sgd_many(machine.stream, [ops.Update(*wrong, 1.0, 1.0, 1.0, shape)], control)

    def without_copy():
        ops.sgd_many(machine.stream, [ops.Update(w, v, folded, None, 1.0, 1.0, 1.0, shape)], control)
        machine.device.synchronize()

    with pytest.raises(ValueError, match="sgd_many: a folded weight needs a copy, got a null address"):
        without_copy()
