"""Softmax, cross-entropy, its gradient and the rank of the true class on every device."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.control import control_words
from convnet.kernels.shapes import SoftmaxShape
from convnet.ops import ops


def log_limit(logits):
    """Rounding of log softmax, (N, K): the difference to the maximum, every exponential, their sum, its logarithm."""
    logits = logits.astype(np.float64)
    probs, logs = reference.softmax(logits)
    below = logits.max(axis=1, keepdims=True) - logits
    exponents = (probs * (below + 2)).sum(axis=1, keepdims=True)
    return 4 * reference.UNIT * (below + exponents + np.sqrt(logits.shape[1]) + np.abs(logs) + 1)


def ratios(case, losses, dlogits, probs, logits, labels, wrong=None, precision="fp32") -> dict[str, float]:
    right_probs, logs = reference.softmax(logits)
    N, rows = len(labels), np.arange(len(labels))
    onehot = labels[:, None] == np.arange(case.K)
    limit = log_limit(logits)
    tiny = 4e-38  # below the smallest normal float32 a device may round to 0
    expected = {"losses": -logs[rows, labels], "probs": right_probs, "dlogits": (right_probs - onehot) / N}
    limits = {
        "losses": limit[rows, labels],
        "probs": right_probs * limit + tiny,
        "dlogits": (right_probs * limit + 4 * reference.UNIT * np.abs(right_probs - onehot)) / N + tiny,
    }
    limits["dlogits"] = reference.held_limit(limits["dlogits"], expected["dlogits"], precision)
    expected.update(wrong or {})
    actual = {"losses": losses, "probs": probs, "dlogits": dlogits}
    return {name: reference.ratio(actual[name], expected[name], limits[name]) for name in actual}


@pytest.mark.parametrize("case", cases.SOFTMAX, ids=lambda case: case.id)
def test_values(device, precision, case, within):
    logits, labels = case.inputs()
    logits = reference.held(logits, precision)
    losses, dlogits, probs = functional.softmax_cross_entropy(logits, labels, device=device, precision=precision)
    for name, ratio in ratios(case, losses, dlogits, probs, logits, labels, precision=precision).items():
        within(f"softmax {name}", ratio)
    again = functional.softmax_cross_entropy(logits, labels, device=device, precision=precision)
    for first, second in zip((losses, dlogits, probs), again, strict=True):
        np.testing.assert_array_equal(first, second)


def test_bf16_is_rounded_once():
    """A slope made of a probability that is rounded as well would show."""
    case = cases.SoftmaxCase("rounded", 5, 40)
    logits, labels = case.inputs()
    logits = reference.held(logits, "bf16")
    probs, logs = reference.softmax(logits)
    onehot = labels[:, None] == np.arange(case.K)
    losses = -logs[np.arange(case.N), labels]
    once, twice = (reference.bf16((p - onehot) / case.N) for p in (probs, reference.bf16(probs)))
    assert ratios(case, losses, once, probs, logits, labels, precision="bf16")["dlogits"] <= 1
    assert ratios(case, losses, twice, probs, logits, labels, precision="bf16")["dlogits"] > 1


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_labels_of_any_integer_type(device, dtype):
    logits, labels = cases.SoftmaxCase("types", 5, 7).inputs()
    expected = functional.softmax_cross_entropy(logits, labels)[0]
    losses = functional.softmax_cross_entropy(logits, labels.astype(dtype), device=device)[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_extreme_logits(device):
    """No overflow and no NaN: a certain right answer costs 0, a certain wrong one the whole difference."""
    logits = np.array([[1e4, 0, -1e4], [1e38, -1e38, 0], [0, 0, 0]], np.float32)
    losses, dlogits, probs = functional.softmax_cross_entropy(logits, np.array([0, 0, 2]), device=device)
    np.testing.assert_allclose(losses, [0, 0, np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(probs, [[1, 0, 0], [1, 0, 0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(dlogits[2] * 3, [1 / 3, 1 / 3, -2 / 3], rtol=1e-6)
    losses = functional.softmax_cross_entropy(logits[:1], np.array([2]), device=device)[0]
    np.testing.assert_allclose(losses, [2e4], rtol=1e-6)


@pytest.mark.parametrize("K", [13, 200])  # more classes than threads share
@pytest.mark.parametrize("n", [1, 9, 64, 65, 130])
def test_ranks_padding_and_labels(machine, precision, n, K):
    """Equal logits count by index; rows from ``valid`` on are 0; a label out of range gives NaN and rank K."""
    random = np.random.default_rng(n)
    logits = random.integers(-3, 4, (n, K)).astype(np.float32)  # ties everywhere
    labels = random.integers(0, K, n)
    valid = max(1, n - 2)
    shape = machine.padded(SoftmaxShape(n, valid, K, 1))
    stored = np.full(shape.N, 10**6, np.int32)  # never looked at from `valid` on
    stored[:n] = labels
    bad = n > 3
    if bad:
        stored[:2] = K, -1
    losses, ranks = machine.empty((shape.N,)), machine.empty((shape.N,), np.int32)
    probs, dlogits = machine.empty(shape.x), machine.activations(shape.x, precision)
    put = machine.put
    control = put(control_words())
    arguments = (machine.put_images(logits, precision), put(stored), losses, ranks)
    ops.softmax_cross_entropy(machine.stream, shape, precision, *arguments, probs, dlogits, control)
    first = 2 if bad else 0
    expected = [reference.rank(logits[i], int(labels[i])) for i in range(first, valid)]
    np.testing.assert_array_equal(ranks.download()[first:valid], expected)
    assert (ranks.download()[valid:] == 0).all()
    assert (losses.download()[valid:] == 0).all()
    for array in (probs, dlogits):
        everything = machine.images(array, shape.N)
        assert (everything[valid:] == 0).all()
        assert not np.isnan(everything[first:]).any()
    gradient = machine.images(dlogits, n)[first:valid].astype(np.float64)
    slack = 2 * 2**-8 / valid if precision == "bf16" else 0  # of slopes whose sizes add up to less than 2 / valid
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-6 + slack)
    right = reference.softmax(logits[first:valid])[0] - (labels[first:valid, None] == np.arange(K))
    limit = reference.held_limit(1e-5 / valid, right / valid, precision)
    assert reference.ratio(gradient, right / valid, limit) <= 1
    if bad:
        assert np.isnan(losses.download()[:2]).all()
        assert (ranks.download()[:2] == K).all()
        assert np.isnan(machine.images(dlogits, 2)).all()
    again = machine.empty((shape.N,)), machine.empty((shape.N,), np.int32)
    ops.softmax_cross_entropy(machine.stream, shape, precision, *arguments[:2], *again, None, None, control)
    np.testing.assert_array_equal(again[0].download(), losses.download())
    np.testing.assert_array_equal(again[1].download(), ranks.download())
    for expected, make in ((probs, machine.empty), (dlogits, lambda size: machine.activations(size, precision))):
        alone = make(shape.x)
        wanted = (alone, None) if expected is probs else (None, alone)
        ops.softmax_cross_entropy(machine.stream, shape, precision, *arguments[:2], *again, *wanted, control)
        np.testing.assert_array_equal(alone.download(), expected.download())


@pytest.mark.parametrize("case", [case for case in cases.SOFTMAX if case.K > 1], ids=lambda case: case.id)
def test_wrong_references_fail(case):
    logits, labels = case.inputs()
    results = functional.softmax_cross_entropy(logits, labels)
    right_probs, logs = reference.softmax(logits)
    onehot = labels[:, None] == np.arange(case.K)
    other = (labels + 1) % case.K

    def noticed(name, wrong):
        return ratios(case, *results, logits, labels, {name: wrong})[name] > 1

    assert noticed("losses", -logs[np.arange(case.N), other])
    assert noticed("losses", -logs[np.arange(case.N), labels] * 1.001 + 1e-4)
    assert noticed("probs", np.roll(right_probs, 1, axis=1))
    assert noticed("dlogits", (right_probs - (other[:, None] == np.arange(case.K))) / case.N)
    if case.N > 1:
        assert noticed("dlogits", right_probs - onehot)


def test_ranks_of_nan(machine, precision):
    """A network that has diverged is never right: NaN comes before the label, everything before a label that is NaN."""
    logits = np.array([[1, np.nan, 0, 2], [np.nan, 1, 2, 3], [np.nan] * 4, [0, 1, 2, 3]], np.float32)
    shape = machine.padded(SoftmaxShape(4, 4, 4, 1))
    labels = np.zeros(shape.N, np.int32)
    losses, ranks = machine.empty((shape.N,)), machine.empty((shape.N,), np.int32)
    arguments = (machine.put_images(logits, precision), machine.put(labels), losses, ranks)
    ops.softmax_cross_entropy(machine.stream, shape, precision, *arguments, None, None, machine.put(control_words()))
    np.testing.assert_array_equal(ranks.download()[:4], [2, 3, 3, 3])
