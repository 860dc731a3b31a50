"""Updates of weights on every device, to the bit: many tensors in one launch, within the product that makes their
gradient, and none at all where the loss was not finite."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference
from conftest import Machine

from convnet.kernels.control import SPOILED, STOPPED, control_words
from convnet.kernels.precision import BF16, copy_columns
from convnet.kernels.shapes import ConvShape, LinearShape, SoftmaxShape
from convnet.ops import ops
from convnet.ops.layout import to_float32

CONSTANTS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
SIZES = [(96,), (1,), (363, 5), (64, 128), (3, 1001), (1024,), (7, 4), (1, 4099), (130, 16)]
# of each tensor of those sizes: what its rate, weight decay and momentum are multiplied by
FACTORS = [(0.5 * i, (0.0, 1.0, 60.0)[i % 3], (1.0, 0.0, 1.0, 0.55)[i % 4]) for i in range(len(SIZES))]


def drawn(size, seed=0):
    """Weight, velocity, gradient."""
    random = np.random.default_rng([seed, *size])
    return [random.standard_normal(size, dtype=np.float32) for _ in range(3)]


def multiplied(rate: float, decay: float, momentum: float) -> dict[str, np.float32]:
    """CONSTANTS times the factors of a tensor."""
    factors = {"lr": rate, "momentum": momentum, "weight_decay": decay}
    return {name: np.float32(value) * np.float32(factors[name]) for name, value in CONSTANTS.items()}


def copy_of(machine, size, wanted):
    return machine.empty((*size[:-1], copy_columns(size[-1])), BF16) if wanted else None


@pytest.mark.parametrize("copies", [False, True], ids=["", "copies"])
def test_many_tensors_are_updated_as_one_by_one(machine, copies):
    """Each with its own rate, decay and momentum, some without decay or momentum, some without a copy."""
    if copies and machine.device.name == "cpu":
        pytest.skip("cpu has no copies in bfloat16")
    control = machine.put(control_words(**CONSTANTS))
    results = []
    for together in (True, False):
        updates = [
            ops.Update(*map(machine.put, drawn(size)), copy_of(machine, size, copies and i % 4 < 3), *FACTORS[i])
            for i, size in enumerate(SIZES)
        ]
        if together:
            ops.sgd_many(machine.stream, updates, control)
        else:
            for u in updates:
                tensors = u.weight, u.velocity, u.gradient, u.copy
                ops.sgd(machine.stream, *tensors, control, u.rate, u.decay, u.momentum)
        results.append([array.download() for u in updates for array in (u.weight, u.velocity, u.copy) if array])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    for i, (size, update) in enumerate(zip(SIZES, updates, strict=True)):
        weight, velocity = reference.sgd(*drawn(size), **multiplied(*FACTORS[i]))
        np.testing.assert_array_equal(update.weight.download(), weight)
        np.testing.assert_array_equal(update.velocity.download(), velocity)
        if update.copy:
            copied = to_float32(update.copy.download())[..., : size[-1]]
            np.testing.assert_array_equal(copied, reference.bf16(weight))


def test_at_most_32_tensors():
    from convnet.kernels import _emu as emu

    with pytest.raises(ValueError, match="sgd_many: takes at most 32 tensors"):
        emu.sgd_many(((0, 16, 16, 16, None, 1, 1.0, 1.0, 1.0, None),) * 33, 16, 0)
    with pytest.raises(ValueError, match=r"sgd_many: updates\.velocity must be aligned to 16 bytes"):
        emu.sgd_many(((4, 16, 20, 16, None, 1, 1.0, 1.0, 1.0, None),), 16, 0)
    emu.sgd_many((), 16, 0)


def test_32_tensors_at_once(machine):
    control = machine.put(control_words(**CONSTANTS))
    updates = [ops.Update(*map(machine.put, drawn((5, i + 1))), None, 1.0, 1.0, 1.0) for i in range(32)]
    ops.sgd_many(machine.stream, updates, control)
    for i, update in enumerate(updates):
        np.testing.assert_array_equal(update.weight.download(), reference.sgd(*drawn((5, i + 1)), **CONSTANTS)[0])


def test_cpu_folds_nothing():
    from convnet.kernels import _cpu as cpu

    shape = ConvShape.of(2, 3, 9, 9, 8, 3, 3, stride=2, lanes=1)
    with pytest.raises(ValueError, match='the CPU computes in "fp32" only'):
        cpu.sgd_many(((216, 16, 16, 16, 16, 8, 1.0, 1.0, 1.0, (shape, "tf32")),), 16, 0)


def test_nothing_changes_after_a_loss_that_is_not_finite(machine, precision):
    """From a batch whose last image goes wrong to weights, velocities and copies."""
    control = machine.put(control_words(**CONSTANTS))
    logits = np.zeros((5, 7), np.float32)
    shape = machine.padded(SoftmaxShape(5, 5, 7, 1))
    labels, outputs = machine.put(np.zeros(shape.N, np.int32)), [machine.empty((shape.N,))]
    outputs += [machine.empty((shape.N,), np.int32), None, None]

    def stopped() -> bool:
        x = machine.put_images(logits, precision)
        ops.softmax_cross_entropy(machine.stream, shape, precision, x, labels, *outputs, control)
        return bool(control.download()[STOPPED])

    assert not stopped()
    logits[4, 0] = -np.inf  # of the true class: an infinite loss
    assert stopped()
    machine.stream.upload(control, control_words(**CONSTANTS))
    logits[4] = [0, 0, 0, np.nan, 0, 0, 0]
    assert stopped()
    tensors, size = drawn((9, 13)), (9, 13)
    copy = copy_of(machine, size, machine.device.name != "cpu")
    weight, velocity, gradient = map(machine.put, tensors)
    ops.sgd(machine.stream, weight, velocity, gradient, copy, control, 1.0, 1.0, 1.0)
    ops.sgd_many(machine.stream, [ops.Update(weight, velocity, gradient, copy, 1.0, 1.0, 1.0)], control)
    np.testing.assert_array_equal(weight.download(), tensors[0])
    np.testing.assert_array_equal(velocity.download(), tensors[1])
    if copy:
        assert (copy.download() == 0xFFFF).all()
    machine.stream.upload(control, control_words(**CONSTANTS))
    ops.sgd(machine.stream, weight, velocity, gradient, copy, control, 1.0, 1.0, 1.0)
    np.testing.assert_array_equal(weight.download(), reference.sgd(*tensors, **CONSTANTS)[0])


@pytest.mark.parametrize("size", [(9, 13), (4, 8)], ids=str)
def test_without_decay_no_weight_reaches_its_velocity(machine, size):
    """Not even one that is infinite: 0 times infinity is no number."""
    tensors = drawn(size)
    tensors[0].flat[[0, 6, -1]] = np.inf, -np.inf, np.nan
    control = machine.put(control_words(**CONSTANTS))
    weight, velocity, gradient = map(machine.put, tensors)
    ops.sgd(machine.stream, weight, velocity, gradient, None, control, 1.0, 0.0, 1.0)
    expected = reference.sgd(np.zeros(size, np.float32), *tensors[1:], **multiplied(1, 0, 1))[1]
    np.testing.assert_array_equal(velocity.download(), expected)
    np.testing.assert_array_equal(weight.download(), tensors[0] + expected)


@pytest.mark.parametrize("together", [False, True], ids=["sgd", "sgd_many"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_never_reaches_a_weight(machine, together, value):
    """Its own weight and velocity stay, all others take their step, and the control block says so."""
    size, spoiled = (9, 13), np.zeros((9, 13), bool)
    spoiled.flat[[0, 7, 116]] = True  # within whole quads and the last value
    tensors = drawn(size)
    expected = [
        np.where(spoiled, old, new) for old, new in zip(tensors, reference.sgd(*tensors, **CONSTANTS), strict=False)
    ]
    for changed in (False, True):
        gradient = np.where(spoiled, np.float32(value), tensors[2]) if changed else tensors[2]
        control = machine.put(control_words(**CONSTANTS))
        copy = copy_of(machine, size, machine.device.name != "cpu")
        weight, velocity, slopes = map(machine.put, (*tensors[:2], gradient))
        if together:
            ops.sgd_many(machine.stream, [ops.Update(weight, velocity, slopes, copy, 1.0, 1.0, 1.0)], control)
        else:
            ops.sgd(machine.stream, weight, velocity, slopes, copy, control, 1.0, 1.0, 1.0)
        assert control.download()[SPOILED] == changed
        assert not control.download()[STOPPED]
    np.testing.assert_array_equal(weight.download(), expected[0])
    np.testing.assert_array_equal(velocity.download(), expected[1])
    if copy:
        np.testing.assert_array_equal(to_float32(copy.download())[:, : size[-1]], reference.bf16(expected[0]))


# ---- within the product ----


UPDATED = [case for case in cases.LINEAR if case.id in (
    "one-everything-N1",
    "outputs-129-N9",  # rows of weights that are not aligned
    "maps-64-N128",
    "maps-256-136-N128",  # several tiles
    "batch-257-N257",
    "batch-320-N320",
)] + [cases.LinearCase("wide-tiles-N257", 257, 300, 132)]  # fmt: skip


def step(arithmetic, case, integers: bool, fused: bool, control, factors=(0.5, 1.0, 1.0), spoil=False, infinite=False):
    """One step of a linear layer's weights: gradient, then update, or both at once. What they were, and what they are:
    weight, velocity, the bias's gradient, copy. ``control`` becomes what it was afterwards. ``factors``: of rate, decay
    and momentum. ``spoil``: one value of x is infinite. ``infinite``: some weights are."""
    machine = Machine(arithmetic.device)
    x, weight, _, dy = case.inputs(integers=integers)
    if spoil:
        x[case.N - 1, case.C // 2] = np.inf
    shape, precision = machine.padded(LinearShape(case.N, case.C, case.K, 1)), arithmetic.precision
    if infinite:
        weight.flat[[0, weight.size // 2, -1]] = np.inf
    before = weight.T.copy(), np.random.default_rng(case.N).standard_normal(shape.weight, dtype=np.float32)
    w, v = map(machine.put, before)
    copy = machine.empty(shape.weight_copy, BF16) if precision == "bf16" else None
    dbias, words = machine.empty((case.K,)), machine.put(control)
    workspace = machine.workspace(machine.device.kernels.linear_workspace(shape, precision))
    problem = machine.stream, shape, precision, *(machine.put_images(values, precision) for values in (dy, x))
    if fused:
        ops.linear_backward_filter_update(*problem, w, v, copy, dbias, words, *factors, workspace)
    else:
        gradient = machine.empty(shape.weight)
        ops.linear_backward_filter(*problem, gradient, dbias, workspace)
        ops.sgd(machine.stream, w, v, gradient, copy, words, *factors)
    after = [array.download() for array in (w, v, dbias, copy) if array]
    control[:] = words.download()
    machine.device.close()
    return before, after


@pytest.mark.parametrize("case", UPDATED, ids=lambda case: case.id)
def test_update_of_a_linear_layer(arithmetic, case):
    """The bits of the gradient and the update one behind the other; and of the formula, where the gradient is exact."""
    control, some = control_words(**CONSTANTS), (0.5, 60.0, 0.55)
    _, apart = step(arithmetic, case, integers=False, fused=False, control=control, factors=some)
    _, fused = step(arithmetic, case, integers=False, fused=True, control=control, factors=some)
    assert not control[SPOILED]
    for a, b in zip(fused, apart, strict=True):
        np.testing.assert_array_equal(a, b)

    x, weight, _, dy = case.inputs(integers=True)
    gradient = reference.linear_backward(dy, x, weight)[1].T.astype(np.float32)
    for factors, infinite in ((some, False), ((0.5, 0.0, 1.0), True)):
        before, after = step(
            arithmetic, case, integers=True, fused=True, control=control, factors=factors, infinite=infinite
        )
        expected = reference.sgd(*before, gradient, **multiplied(*factors))
        np.testing.assert_array_equal(after[0], expected[0])
        np.testing.assert_array_equal(after[1], expected[1])
    np.testing.assert_array_equal(after[2], dy.sum(0))
    if arithmetic.precision == "bf16":
        copy = after[3]
        np.testing.assert_array_equal(to_float32(copy[:, : case.K].copy()), reference.bf16(after[0]))
        assert (copy[:, case.K :] == 0xFFFF).all()  # the padding is left alone


@pytest.mark.parametrize("case", UPDATED[1:3], ids=lambda case: case.id)
def test_no_update_of_a_linear_layer_where_stopped(arithmetic, case):
    control = control_words(**CONSTANTS)
    control[STOPPED] = 1
    before, after = step(arithmetic, case, integers=True, fused=True, control=control)
    for a, b in zip(after, before, strict=False):
        np.testing.assert_array_equal(a, b)
    assert not np.isnan(after[2]).any()
    assert (np.array(after[3:]) == 0xFFFF).all()


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("case", UPDATED, ids=lambda case: case.id)
def test_an_infinite_input_spoils_no_weight(arithmetic, case, fused):
    """The weights that read it stay as they are; every other one takes its step."""
    _, sound = step(arithmetic, case, integers=True, fused=fused, control=control_words(**CONSTANTS))
    control = control_words(**CONSTANTS)
    before, after = step(arithmetic, case, integers=True, fused=fused, control=control, spoil=True)
    assert control[SPOILED]
    row = case.C // 2
    for was, would_be, now in zip(before, sound, after, strict=False):
        np.testing.assert_array_equal(now[row], was[row])
        np.testing.assert_array_equal(np.delete(now, row, 0), np.delete(would_be, row, 0))
    if arithmetic.precision == "bf16":
        np.testing.assert_array_equal(to_float32(after[3][:, : case.K].copy()), reference.bf16(after[0]))
