"""The sum of squares and the cross-entropy of logistic outputs, on every device, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.control import STOPPED, control_words
from convnet.kernels.shapes import SoftmaxShape
from convnet.ops import ops
from convnet.ops.layout import to_float32

SIZES = [(1, 1), (3, 10), (9, 63), (8, 64), (65, 65), (130, 21), (2, 1000)]


def drawn(N: int, K: int, precision: str):
    """x from small to saturating, and targets, of which some are 0 and 1."""
    random = np.random.default_rng([N, K])
    x = (random.choice([-1, 1], (N, K)) * np.exp(random.uniform(-4, 5, (N, K)))).astype(np.float32)
    targets = np.clip(random.uniform(-0.5, 1.5, (N, K)), 0, 1).astype(np.float32)
    return reference.held(x, precision), reference.held(targets, precision)


def logistic_losses(x, targets):
    x, t = x.astype(np.float64), targets.astype(np.float64)
    return t * np.minimum(np.logaddexp(0, -x), 50) + (1 - t) * np.minimum(np.logaddexp(0, x), 50)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sum_of_squares(device, precision, within, size):
    x, _ = drawn(*size, precision)
    losses, dx = functional.sum_of_squares(x, coefficient=0.3, device=device, precision=precision)
    squares = x.astype(np.float64) ** 2
    limit = reference.sum_limit(squares.sum(1), size[1] + 1)
    within("sum of squares", reference.ratio(losses, squares.sum(1), limit))
    if size[1] > 1:
        assert reference.ratio(losses, squares[:, 1:].sum(1), limit) > 1
    expected = np.float32(0.3) * (2 * x) / np.float32(size[0])
    np.testing.assert_array_equal(dx, reference.held(expected, precision))


def test_sum_of_squares_of_images(device, precision):
    """Every map counts."""
    x = np.random.default_rng(0).integers(-4, 5, (9, 3, 5, 2)).astype(np.float32)
    losses, dx = functional.sum_of_squares(x, device=device, precision=precision)
    np.testing.assert_array_equal(losses, (x**2).sum((1, 2, 3)))
    np.testing.assert_array_equal(dx, reference.held(2 * x / np.float32(9), precision))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logistic_cross_entropy(device, precision, within, size):
    x, targets = drawn(*size, precision)
    losses, dx = functional.logistic_cross_entropy(x, targets, coefficient=0.3, device=device, precision=precision)
    terms = logistic_losses(x, targets)
    limit = reference.sum_limit(terms.sum(1), size[1] + 4)
    within("logistic cross-entropy", reference.ratio(losses, terms.sum(1), limit))
    assert reference.ratio(losses, logistic_losses(x, 1 - targets).sum(1), limit) > 1
    expected = np.float32(0.3) * (reference.logistic(x) - targets) / size[0]
    limit = reference.held_limit(8 * reference.UNIT * 0.3 / size[0], expected, precision)
    within("logistic cross-entropy dx", reference.ratio(dx, expected, limit))


def test_logarithms_end_at_50(device, precision):
    """And certain outputs that are right cost nothing."""
    x = np.array([[1000, -1000, 1000, -1000, 49]], np.float32)
    options = {"device": device, "precision": precision}
    for k, loss in enumerate([50, 50, 0, 0, 49]):
        t = np.array([[0, 1, 1, 0, 0]], np.float32)
        assert functional.logistic_cross_entropy(x[:, k : k + 1], t[:, k : k + 1], **options)[0] == loss


@pytest.mark.parametrize("name", ["sum_of_squares", "logistic_cross_entropy"])
def test_images_that_do_not_exist(machine, precision, name):
    """They get 0 and stop nothing; without dx the losses are the same; dx may be x."""
    x, targets = drawn(13, 7, precision)
    shape = machine.padded(SoftmaxShape(13, 5, 7, 1))
    x[5:] = np.nan
    images, wanted = machine.put_images(x, precision), machine.put_images(targets, precision)
    given = (images,) if name == "sum_of_squares" else (images, wanted)
    losses, again, dx = machine.empty((shape.N,)), machine.empty((shape.N,)), machine.activations(shape.x, precision)
    control, op = machine.put(control_words()), getattr(ops, name)
    op(machine.stream, shape, precision, 0.5, *given, losses, dx, control)
    op(machine.stream, shape, precision, 0.5, *given, again, None, control)
    assert not control.download()[STOPPED]
    np.testing.assert_array_equal(losses.download(), again.download())
    assert (losses.download()[:5] > 0).all()
    assert (losses.download()[5:] == 0).all()
    found = machine.images(dx, shape.N)
    assert (found[5:] == 0).all()
    alone = getattr(functional, name)(
        *(x[:5], targets[:5])[: len(given)], coefficient=0.5, device=machine.device.name, precision=precision
    )
    np.testing.assert_array_equal(found[:5], alone[1])
    np.testing.assert_array_equal(losses.download()[:5], alone[0])
    op(machine.stream, shape, precision, 0.5, *given, again, images, control)
    np.testing.assert_array_equal(to_float32(images.download()), to_float32(dx.download()))


@pytest.mark.parametrize("name", ["sum_of_squares", "logistic_cross_entropy"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_updates(machine, precision, name, value):
    x, targets = drawn(9, 7, precision)
    shape = machine.padded(SoftmaxShape(9, 9, 7, 1))
    if name == "logistic_cross_entropy":  # which an infinite output does not harm
        targets[4, 3] = value
    else:
        x[4, 3] = value
    given = [machine.put_images(values, precision) for values in (x, targets)]
    losses, control = machine.empty((shape.N,)), machine.put(control_words())
    given = given[:1] if name == "sum_of_squares" else given
    getattr(ops, name)(machine.stream, shape, precision, 1.0, *given, losses, None, control)
    assert control.download()[STOPPED]
    assert np.isfinite(losses.download()[:9]).tolist() == [n != 4 for n in range(9)]


def test_batches_give_what_their_images_give(device):
    """The order of a sum depends on the features alone."""
    x, targets = drawn(65, 333, "fp32")
    whole = functional.logistic_cross_entropy(x, targets, device=device)[0]
    alone = [functional.logistic_cross_entropy(x[n : n + 1], targets[n : n + 1], device=device)[0] for n in (0, 40, 64)]
    np.testing.assert_array_equal(np.concatenate(alone), whole[[0, 40, 64]])


ROWS = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: functional.sum_of_squares(ROWS[0]), r"sum_of_squares: x must have shape \(N, F\)"),
        (
            lambda: functional.sum_of_squares(ROWS, coefficient=np.nan),
            "sum_of_squares: coefficient must be a finite number",
        ),
        (lambda: functional.logistic_cross_entropy(ROWS, ROWS[:1]), r"targets must have shape \(2, 3\)"),
        (lambda: functional.logistic_cross_entropy(ROWS, [1]), "targets must be a float32 array"),
    ],
)
def test_wrong_calls(call, text):
    with pytest.raises(ValueError, match=text):
        call()
