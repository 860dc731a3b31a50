"""Costs beside the softmax's cross-entropy, of every kind on every device, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.control import STOPPED, control_words
from convnet.kernels.costs import COSTS
from convnet.kernels.shapes import SoftmaxShape
from convnet.ops import ops
from convnet.ops.layout import to_float32

SIZES = [(1, 1), (3, 10), (9, 63), (8, 64), (65, 65), (130, 21), (2, 1000)]
CLASSES = [kind for kind in COSTS if kind != "squares"]


def drawn(N: int, K: int, precision: str, kind: str):
    """x from small to large, for the cross-entropy probabilities with 0 and 1 among them, and labels."""
    random = np.random.default_rng([N, K])
    x = random.choice([-1, 1], (N, K)) * np.exp(random.uniform(-4, 5, (N, K)))
    if kind == "cross-entropy":
        x = np.clip(random.uniform(-0.1, 1.1, (N, K)), 0, 1)
    return reference.held(x.astype(np.float32), precision), random.integers(0, K, N)


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_costs(device, precision, within, kind, size):
    N, K = size
    x, labels = drawn(N, K, precision, kind)
    options = {"coefficient": 0.3, "device": device, "precision": precision}
    losses, dx = functional.cost(x, kind, None if kind == "squares" else labels, **options)
    terms, slopes = reference.cost(x, labels, kind)
    limit = reference.sum_limit(terms.sum(1), K + 4)
    within(kind, reference.ratio(losses, terms.sum(1), limit))
    expected = 0.3 * slopes / N
    # where x is about t, their difference is small
    slope_limit = reference.held_limit(8 * reference.UNIT * (np.abs(expected) + 0.6 / N), expected, precision)
    within(f"{kind} dx", reference.ratio(dx, expected, slope_limit))
    if K > 1:  # a feature less, and other classes, are noticed
        assert reference.ratio(losses, terms[:, 1:].sum(1), limit) > 1
        if kind != "squares":
            terms, slopes = reference.cost(x, (labels + 1) % K, kind)
            assert reference.ratio(losses, terms.sum(1), limit) > 1
            assert reference.ratio(dx, 0.3 * slopes / N, slope_limit) > 1


def test_sum_of_squares_of_images(device, precision):
    """Every map counts."""
    x = np.random.default_rng(0).integers(-4, 5, (9, 3, 5, 2)).astype(np.float32)
    losses, dx = functional.cost(x, "squares", device=device, precision=precision)
    np.testing.assert_array_equal(losses, (x**2).sum((1, 2, 3)))
    np.testing.assert_array_equal(dx, reference.held(2 * x / np.float32(9), precision))


def test_logarithms_of_logistic_outputs_end_at_50(device, precision):
    """Their slopes go on, and outputs that are certain and right cost nothing, infinite ones too."""
    x = np.array([1000, -1000, np.inf, -np.inf, 49, -49], np.float32)
    for label, losses in (0, [0, 50, 0, 50, 0, 49]), (1, [50, 0, 50, 0, 49, 0]):
        pairs = np.stack([x, np.full(6, -1000 if label == 0 else 1000, np.float32)], 1)  # the second one is right
        labels, options = np.full(6, label), {"device": device, "precision": precision}
        found, dx = functional.cost(pairs, "logistic-cross-entropy", labels, **options)
        np.testing.assert_allclose(found, losses, rtol=1e-6, atol=1e-20)
        np.testing.assert_allclose(dx[:, 0], ((x > 0) - (label == 0) * 1.0) / 6, rtol=2.0**-8, atol=1e-20)


def test_logarithms_of_probabilities_end_at_50(device, precision):
    """There they are flat."""
    p = np.array([[1, 0], [0, 0], [1, 1], [0, 1], [2.0**-70, 0]], np.float32)
    losses, dx = functional.cost(p, "cross-entropy", np.zeros(5, int), device=device, precision=precision)
    np.testing.assert_allclose(losses, [0, 50, 50, 100, 70 * np.log(2)], rtol=1e-6)
    slopes = np.array([[-1, 1], [0, 1], [-1, 0], [0, 0], [-(2.0**70), 1]])
    np.testing.assert_allclose(dx, slopes / 5, rtol=2.0**-8)


@pytest.mark.parametrize("kind", COSTS)
def test_images_that_do_not_exist(machine, precision, kind):
    """They get 0 and stop nothing; without dx the losses are the same; dx may be x."""
    x, labels = drawn(13, 7, precision, kind)
    shape = machine.padded(SoftmaxShape(13, 5, 7, 1))
    x[5:] = np.nan
    images, classes = machine.put_images(x, precision), np.full(shape.N, 99, np.int32)
    classes[:5] = labels[:5]
    given = images, None if kind == "squares" else machine.put(classes)
    losses, again, dx = machine.empty((shape.N,)), machine.empty((shape.N,)), machine.activations(shape.x, precision)
    control, problem = machine.put(control_words()), (machine.stream, shape, precision, kind, 0.5)
    ops.cost(*problem, *given, losses, dx, control)
    ops.cost(*problem, *given, again, None, control)
    assert not control.download()[STOPPED]
    np.testing.assert_array_equal(losses.download(), again.download())
    assert (losses.download()[:5] > 0).all()
    assert (losses.download()[5:] == 0).all()
    found = machine.images(dx, shape.N)
    assert (found[5:] == 0).all()
    options = {"coefficient": 0.5, "device": machine.device.name, "precision": precision}
    alone = functional.cost(x[:5], kind, None if kind == "squares" else labels[:5], **options)
    np.testing.assert_array_equal(found[:5], alone[1])
    np.testing.assert_array_equal(losses.download()[:5], alone[0])
    ops.cost(*problem, *given, again, images, control)
    np.testing.assert_array_equal(to_float32(images.download()), to_float32(dx.download()))


def lost(machine, precision, kind, x, labels):
    """The losses of the images, their gradients, and whether they stop the updates."""
    shape = machine.padded(SoftmaxShape(len(x), len(x), x.shape[1], 1))
    classes = np.zeros(shape.N, np.int32)
    classes[: len(x)] = labels
    losses, dx, control = machine.empty((shape.N,)), machine.activations(shape.x, precision), control_words()
    control = machine.put(control)
    images, classes = machine.put_images(x, precision), machine.put(classes)
    ops.cost(machine.stream, shape, precision, kind, 1.0, images, classes, losses, dx, control)
    return losses.download()[: len(x)], machine.images(dx, len(x)), bool(control.download()[STOPPED])


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_loss_that_is_not_finite_stops_the_updates(machine, precision, kind, value):
    """Infinite outputs do no harm to the logistic cross-entropy, and what is no probability to all but the other."""
    x, labels = drawn(9, 7, precision, kind)
    x[4, 3] = value
    losses, _, stopped = lost(machine, precision, kind, x, labels)
    harmless = kind != "cross-entropy" if value == -1 else value == np.inf and kind == "logistic-cross-entropy"
    assert stopped != harmless
    assert np.isfinite(losses).tolist() == [n != 4 or harmless for n in range(9)]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("label", [-1, 7])
def test_labels_that_are_no_classes_stop_the_updates(machine, precision, kind, label):
    x, labels = drawn(9, 7, precision, kind)
    labels[4] = label
    losses, dx, stopped = lost(machine, precision, kind, x, labels)
    assert stopped
    assert np.isnan(losses).tolist() == [n == 4 for n in range(9)]
    assert np.isnan(dx).tolist() == [[n == 4] * 7 for n in range(9)]


@pytest.mark.parametrize("kind", COSTS)
def test_batches_give_what_their_images_give(device, kind):
    """The order of a sum depends on the features alone."""
    x, labels = drawn(65, 333, "fp32", kind)
    labels = None if kind == "squares" else labels
    whole = functional.cost(x, kind, labels, device=device)[0]
    alone = [
        functional.cost(x[n : n + 1], kind, None if labels is None else labels[n : n + 1], device=device)[0]
        for n in (0, 40, 64)
    ]
    np.testing.assert_array_equal(np.concatenate(alone), whole[[0, 40, 64]])


ROWS = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: functional.cost(ROWS[0], "squares"), r"cost: x must have shape \(N, K\)"),
        (lambda: functional.cost(ROWS, "squares", coefficient=np.nan), "cost: coefficient must be a finite number"),
        (lambda: functional.cost(ROWS, "squares", [0, 1]), 'cost: "squares" takes no labels'),
        (lambda: functional.cost(ROWS, "hinge", [0, 1]), 'cost: kind must be one of squares, .*, got "hinge"'),
        (lambda: functional.cost(ROWS, "squared-error"), r"labels must be whole numbers of shape \(2,\)"),
        (lambda: functional.cost(ROWS, "squared-error", np.array([0, 3])), "must lie between 0 and 2, got 0 to 3"),
    ],
)
def test_wrong_calls(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_wrong_calls_of_the_op(machine):
    shape = machine.padded(SoftmaxShape(8, 8, 7, 1))
    x, losses = machine.empty(shape.x), machine.empty((shape.N,))
    control = machine.put(control_words())
    with pytest.raises(ValueError, match="cost: cross-entropy needs labels, got None"):
        ops.cost(machine.stream, shape, "fp32", "cross-entropy", 1.0, x, None, losses, None, control)
    kernel = machine.device.kernels.cost
    with pytest.raises(ValueError, match="cost: labels are required for all but squares"):
        kernel(shape, "fp32", "squared-error", 1.0, 16, None, 16, None, 16, 0)
    with pytest.raises(ValueError, match="cost: cost must be the name of a cost, got 'hinge'"):
        kernel(shape, "fp32", "hinge", 1.0, 16, None, 16, None, 16, 0)
