"""Launches that see some of the images of a step: they draw and divide as one that sees all, by what the control block
says of the first image's place and of how many there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
from conftest import Machine

from convnet.kernels.control import control_words
from convnet.kernels.costs import COSTS
from convnet.kernels.shapes import DropoutShape, LinearShape, PoolShape, SoftmaxShape
from convnet.ops import ops
from convnet.ops.layout import to_float32

N, SHARD, STEP = 11, slice(5, 9), 70_000  # the first one lies within a quad of lanes of the whole


def both(machine, **words):
    """The control blocks of the whole, and of the shard."""
    whole = machine.put(control_words(STEP, **words))
    return whole, machine.put(control_words(STEP, first=SHARD.start, images=N, **words))


def random(*shape: int, seed: int = 0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_dropout(machine, precision):
    x, found = reference.held(random(N, 33), precision), []
    for control, part in zip(both(machine), (slice(0, N), SHARD), strict=True):
        given = x[part]
        shape = machine.padded(DropoutShape(len(given), 33, 1, 0, 33, 0.5, 99, 6))
        y, mask = machine.activations(shape.x, precision), machine.empty(shape.x, np.uint8)
        ops.dropout_forward(machine.stream, shape, precision, machine.put_images(given, precision), y, mask, control)
        found.append(machine.images(mask, len(given)))
    np.testing.assert_array_equal(found[0][SHARD], found[1])
    np.testing.assert_array_equal(found[0], reference.dropout_mask(N, 33, 0.5, 99, STEP, 6))


def test_dropout_of_a_product(arithmetic):
    machine, precision = Machine(arithmetic.device), arithmetic.precision
    x, weight, found = random(N, 24), random(24, 40, seed=1), []
    for control, part in zip(both(machine), (slice(0, N), SHARD), strict=True):
        given = reference.held(x[part], precision)
        shape = machine.padded(LinearShape(len(given), 24, 40, 1))
        drop = DropoutShape(shape.N, 40, shape.lanes, 0, 40, 0.5, 99, 6)
        y, bias = machine.activations(shape.y, precision), machine.put(np.full(40, 100, np.float32))
        matrix = machine.put(weight)
        if precision == "bf16":
            matrix = machine.empty(shape.weight_copy, np.uint16)
            ops.cast_weight(machine.stream, machine.put(weight), matrix)
        work = machine.workspace(machine.device.kernels.linear_workspace(shape, precision))
        operands = machine.put_images(given, precision), matrix, bias, y, True, drop, control, work
        ops.linear_forward(machine.stream, shape, precision, *operands)
        found.append(machine.images(y, len(given)) > 0)
    np.testing.assert_array_equal(found[0][SHARD], found[1])
    np.testing.assert_array_equal(found[0], reference.dropout_mask(N, 40, 0.5, 99, STEP, 6).astype(bool))


def test_stochastic_pooling(machine, precision):
    x, found = np.random.default_rng(0).random((N, 4, 7, 6), np.float32), []
    for control, part in zip(both(machine), (slice(0, N), SHARD), strict=True):
        given = reference.held(x[part], precision)
        shape = machine.padded(PoolShape.of(len(given), 4, 7, 6, 3, 2, lanes=1))
        features = shape.C * shape.P * shape.Q
        draw = DropoutShape(shape.N, features, shape.lanes, 0, features, 0.0, 7, 5)
        y, places = machine.activations(shape.y, precision), machine.empty(shape.y, np.uint8)
        images = machine.put_images(given, precision)
        ops.rand_pool_forward(machine.stream, shape, draw, precision, images, y, places, control)
        found.append(machine.images(places, len(given)))
    np.testing.assert_array_equal(found[0][SHARD], found[1])
    others = machine.put(control_words(STEP, first=SHARD.start + 1))
    ops.rand_pool_forward(machine.stream, shape, draw, precision, images, y, places, others)
    assert (machine.images(places, len(given)) != found[1]).any()


@pytest.mark.parametrize("cost", ["softmax", *COSTS])
def test_gradients_are_of_the_mean_over_all(machine, precision, cost):
    """Losses are those of every image; the gradient of one is the same in the whole, to the bit."""
    K, found = 10, []
    logits = np.random.default_rng(2).random((N, K), np.float32) * 0.9 + 0.05  # probabilities, for those who read such
    labels = np.arange(N, dtype=np.int32) % K
    for control, part in zip(both(machine), (slice(0, N), SHARD), strict=True):
        given, n = reference.held(logits[part], precision), len(logits[part])
        lanes = machine.device.lanes(n)
        shape = replace(SoftmaxShape(n, n, K, lanes), N=-(-n // lanes) * lanes)
        padded = np.zeros(shape.N, np.int32)
        padded[:n] = labels[part]
        x, classes = machine.put_images(given, precision), machine.put(padded)
        losses, ranks = machine.empty(shape.per_image), machine.empty(shape.per_image, np.int32)
        dx, on = machine.activations(shape.x, precision), (machine.stream, shape, precision)
        if cost == "softmax":
            ops.softmax_cross_entropy(*on, x, classes, losses, ranks, None, dx, control)
        else:
            ops.cost(*on, cost, 0.5, x, None if cost == "squares" else classes, losses, dx, control)
        found.append((losses.download()[:n], machine.images(dx, n)))
    (losses, slopes), (own_losses, own_slopes) = found
    np.testing.assert_array_equal(losses[SHARD], own_losses)
    np.testing.assert_array_equal(slopes[SHARD], own_slopes)
    assert (abs(to_float32(own_slopes)) > 0).any()
