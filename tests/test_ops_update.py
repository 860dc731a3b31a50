"""Updates of weights on every device, to the bit: many tensors in one launch, within the product that makes their
gradient, and none at all where the loss was not finite."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import ops
from convnet.control import STOPPED, control_words
from convnet.layout import to_float32
from convnet.precision import BF16, copy_columns
from convnet.shapes import SoftmaxShape

CONSTANTS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
SIZES = [(96,), (1,), (363, 5), (64, 128), (3, 1001), (1024,), (7, 4), (1, 4099), (130, 16)]


def drawn(size, seed=0):
    """Weight, velocity, gradient."""
    random = np.random.default_rng([seed, *size])
    return [random.standard_normal(size, dtype=np.float32) for _ in range(3)]


def copy_of(machine, size, wanted):
    return machine.empty((*size[:-1], copy_columns(size[-1])), BF16) if wanted else None


@pytest.mark.parametrize("copies", [False, True], ids=["", "copies"])
def test_many_tensors_are_updated_as_one_by_one(machine, copies):
    """Each with its own rate, some without decay, some without a copy."""
    if copies and machine.device.name == "cpu":
        pytest.skip("NumPy has no copies in bfloat16")
    control = machine.put(control_words(**CONSTANTS))
    results = []
    for together in (True, False):
        updates = [
            ops.Update(*map(machine.put, drawn(size)), copy_of(machine, size, copies and i % 4 < 3), 0.5 * i, i % 3 > 0)
            for i, size in enumerate(SIZES)
        ]
        if together:
            ops.sgd_many(machine.stream, updates, control)
        else:
            for u in updates:
                ops.sgd(machine.stream, u.weight, u.velocity, u.gradient, u.copy, control, u.rate, u.decays)
        results.append([array.download() for u in updates for array in (u.weight, u.velocity, u.copy) if array])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    for i, (size, update) in enumerate(zip(SIZES, updates, strict=True)):
        decay = CONSTANTS["weight_decay"] if i % 3 else 0.0
        rate = np.float32(CONSTANTS["lr"]) * np.float32(0.5 * i)
        weight, velocity = reference.sgd(*drawn(size), rate, CONSTANTS["momentum"], decay)
        np.testing.assert_array_equal(update.weight.download(), weight)
        np.testing.assert_array_equal(update.velocity.download(), velocity)
        if update.copy:
            copied = to_float32(update.copy.download())[..., : size[-1]]
            np.testing.assert_array_equal(copied, reference.bf16(weight))


def test_at_most_32_tensors():
    emu = pytest.importorskip("convnet._emu", reason="the emulator is not built")
    with pytest.raises(ValueError, match="sgd_many: takes at most 32 tensors"):
        emu.sgd_many(((0, 16, 16, 16, None, 1, 1.0, True),) * 33, 16, 0)
    with pytest.raises(ValueError, match=r"sgd_many: updates\.velocity must be aligned to 16 bytes"):
        emu.sgd_many(((4, 16, 20, 16, None, 1, 1.0, True),), 16, 0)
    emu.sgd_many((), 16, 0)


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
    logits[4, 3] = np.nan
    assert stopped()
    tensors, size = drawn((9, 13)), (9, 13)
    copy = copy_of(machine, size, machine.device.name != "cpu")
    weight, velocity, gradient = map(machine.put, tensors)
    ops.sgd(machine.stream, weight, velocity, gradient, copy, control, 1.0, True)
    ops.sgd_many(machine.stream, [ops.Update(weight, velocity, gradient, copy, 1.0, True)], control)
    np.testing.assert_array_equal(weight.download(), tensors[0])
    np.testing.assert_array_equal(velocity.download(), tensors[1])
    if copy:
        assert (copy.download() == 0xFFFF).all()
    machine.stream.upload(control, control_words(**CONSTANTS))
    ops.sgd(machine.stream, weight, velocity, gradient, copy, control, 1.0, True)
    np.testing.assert_array_equal(weight.download(), reference.sgd(*tensors, **CONSTANTS)[0])
