"""Dropout on every device: the masks are exactly Philox, wherever an element lies."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.control import control_words
from convnet.kernels.shapes import DropoutShape
from convnet.ops import ops
from convnet.ops.layout import to_float32


@pytest.mark.parametrize("p", [0.0, 0.5, 0.3, 0.99])
@pytest.mark.parametrize(("N", "features"), [(1, 1), (3, 50), (8, 33), (65, 7)])
def test_mask_is_philox(device, precision, N, features, p):
    seed, step, layer = 0x0123456789ABCDEF, 70_000, 7
    x = reference.held(np.random.default_rng(0).standard_normal((N, features), dtype=np.float32), precision)
    y, mask = functional.dropout(x, p, seed=seed, step=step, layer=layer, device=device, precision=precision)
    np.testing.assert_array_equal(mask, reference.dropout_mask(N, features, np.float32(p).item(), seed, step, layer))
    np.testing.assert_array_equal(y, np.where(mask, x, 0))  # not scaled
    assert p != 0 or mask.all()


def test_a_word_equal_to_the_threshold_is_kept(device):
    """p * 2^32 chosen to be the word of one element: that one is kept, and dropped for the next larger p."""
    words = [reference.philox_word((e, 4, 2, 0), 11) for e in range(2000)]
    element = next(e for e, word in enumerate(words) if word >= 2**31 and word % 256 == 0)  # exact as a float32
    x, p = np.ones((2, 1000), np.float32), np.float32(words[element] / 2**32)
    for probability, kept in ((p, True), (np.nextafter(p, np.float32(1)), False)):
        mask = functional.dropout(x, probability.item(), seed=11, step=4, layer=2, device=device)[1]
        assert mask.reshape(-1)[element] == kept


def test_other_counters_give_other_masks(device):
    x = np.ones((4, 100), np.float32)
    base = {"seed": 1, "step": 2, "layer": 3}
    masks = [functional.dropout(x, 0.5, **{**base, **change}, device=device)[1] for change in (
        {}, {"seed": 2}, {"seed": 1 + 2**32}, {"step": 3}, {"layer": 4})]  # fmt: skip
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 100 < (a != b).sum() < 300
        assert 140 < a.sum() < 260


def test_images_are_features_in_row_order(device):
    x = np.ones((3, 4, 5, 2), np.float32)
    y, mask = functional.dropout(x, 0.5, seed=5, step=0, layer=1, device=device)
    flat = functional.dropout(x.reshape(3, 40), 0.5, seed=5, step=0, layer=1)[1]
    np.testing.assert_array_equal(mask, flat.reshape(x.shape))
    assert y.shape == mask.shape == x.shape


@pytest.mark.parametrize("N", [5, 66])
def test_halves_of_the_features_have_the_mask_of_the_whole(machine, precision, N):
    """A tower on its own device drops what it would drop beside the other one; backward uses the same mask."""
    features, p, seed, step, layer = 24, 0.5, 99, 3, 6
    random = np.random.default_rng(1)
    x, dy = (reference.held(random.standard_normal((N, features), dtype=np.float32), precision) for _ in range(2))
    whole = reference.dropout_mask(N, features, p, seed, step, layer)
    for part in (slice(0, 12), slice(12, 24)):
        shape = machine.padded(DropoutShape(N, 12, 1, part.start, features, p, seed, layer))
        y, dx = machine.activations(shape.x, precision), machine.activations(shape.x, precision)
        mask = machine.empty(shape.x, np.uint8)
        control = machine.put(control_words(step))
        part_x = machine.put_images(x[:, part], precision)
        ops.dropout_forward(machine.stream, shape, precision, part_x, y, mask, control)
        np.testing.assert_array_equal(machine.images(mask, N), whole[:, part])
        np.testing.assert_array_equal(machine.images(y, N), np.where(whole[:, part], x[:, part], 0))
        ops.dropout_backward(machine.stream, precision, machine.put_images(dy[:, part], precision), mask, dx)
        np.testing.assert_array_equal(machine.images(dx, N), np.where(whole[:, part], dy[:, part], 0))


@pytest.mark.parametrize("count", [1, 3, 4, 7, 1023, 1025])
def test_backward_takes_any_count(machine, precision, count):
    """Whole activations are multiples of 8 values; others end within a quad."""
    random = np.random.default_rng(count)
    dy = reference.held(random.standard_normal(count, dtype=np.float32), precision)
    mask, dx = random.integers(0, 2, count, dtype=np.uint8), machine.activations((count,), precision)
    mask[-1] = 1
    ops.dropout_backward(machine.stream, precision, machine.put_rounded(dy, precision), machine.put(mask), dx)
    np.testing.assert_array_equal(to_float32(dx.download()), dy * mask)


def test_everything_is_dropped_at_1(machine, precision):
    """What ``functional.dropout`` refuses, as a network of zeros is of no use, the kernel takes."""
    shape = machine.padded(DropoutShape(5, 9, 1, 0, 9, 1.0, 1, 2))
    x, y = machine.put_images(np.ones((5, 9), np.float32), precision), machine.activations(shape.x, precision)
    mask = machine.empty(shape.x, np.uint8)
    ops.dropout_forward(machine.stream, shape, precision, x, y, mask, machine.put(control_words(3)))
    assert not mask.download().any()
    assert not machine.images(y, 5).any()
