"""Every kind of activation on every device: values against float64, gradients to the bit from what they read."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.activations import ACTIVATIONS
from convnet.ops import ops
from convnet.ops.layout import to_float32

KINDS = [
    ("relu",), ("tanh", 1.0, 1.0), ("tanh", 1.7159, 0.6667), ("tanh", -2.0, 3.0), ("logistic",), ("linear", -1.5, 0.3),
    ("softrelu",), ("brelu", 0.7), ("abs",), ("square",), ("sqrt",),
]  # fmt: skip
EXACT = {"relu", "linear", "brelu", "abs", "square", "sqrt"}  # to the bit
ULPS = 4.5  # of tanh: 2.5, and half of one for b x, for a, and for what is not quite half; the others need fewer
COUNTS = (1, 4, 1029)


def inputs(count: int, kind: str, precision: str):
    """x from tiny to saturating, with the kinks and both zeros among them, and dy."""
    random = np.random.default_rng(count)
    x = random.choice([-1.0, 1.0], count) * np.exp(random.uniform(-20, 4.4, count))
    special = [0.0, -0.0, 4.0, 4.03125, 0.7, 100.0, -100.0, -88.0]
    x[: min(count, 8)] = special[: min(count, 8)]
    x = random.permutation(np.abs(x) if kind == "sqrt" else x).astype(np.float32)
    dy = random.standard_normal(count, dtype=np.float32)
    return reference.held(x, precision), reference.held(dy, precision)


def units(values):
    """Of the last place of float32; below the smallest normal number anything is right."""
    return np.spacing(np.abs(values).astype(np.float32)).astype(np.float64) + 2.0**-126


def in_float32(kind: str, parameters, x):
    """y of those kinds that are exact: every operation rounded."""
    a, b = (*map(np.float32, parameters), np.float32(0), np.float32(0))[:2]
    return {
        "relu": lambda: np.maximum(x, 0), "linear": lambda: a * x + b, "brelu": lambda: np.minimum(a, np.maximum(x, 0)),
        "abs": lambda: np.abs(x), "square": lambda: x * x, "sqrt": lambda: np.sqrt(x),
    }[kind]()  # fmt: skip


def slopes(kind: str, parameters, dy, saved):
    """dx in float32, every operation rounded, but for softrelu's."""
    a, b = (*map(np.float32, parameters), np.float32(0), np.float32(0))[:2]
    one, two = np.float32(1), np.float32(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "relu": lambda: np.where(saved > 0, dy, 0),
            "tanh": lambda: dy * (a * b - saved * saved * (b / a)),
            "logistic": lambda: dy * (saved * (one - saved)),
            "linear": lambda: dy * a,
            "brelu": lambda: np.where((saved > 0) & (saved < a), dy, 0),
            "abs": lambda: np.where(saved > 0, dy, -dy),
            "square": lambda: dy * (two * saved),
            "sqrt": lambda: dy / (two * saved),
        }[kind]()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("how", KINDS, ids=str)
def test_activation(device, precision, within, how, count):
    kind, *parameters = how[0], *map(np.float32, how[1:])
    options = {"device": device, "precision": precision}
    x, dy = inputs(count, kind, precision)
    y = functional.activation(x, *how, **options)
    value, slope = reference.ACTIVATIONS[kind]
    expected = value(x.astype(np.float64), *parameters)
    if kind in EXACT:
        np.testing.assert_array_equal(y, reference.held(in_float32(kind, parameters, x), precision))
    else:
        limit = reference.held_limit(ULPS * units(expected), expected, precision)
        within(kind, reference.ratio(y, expected, limit))
        if count > 5:
            wrong = value(x * (1 + 2.0**-6), *parameters)
            assert reference.ratio(y, wrong, limit) > 1

    reads = ACTIVATIONS[kind].reads
    dx = functional.activation_backward(dy, x, *how, **options)
    if kind == "softrelu":
        expected = dy * slope(x.astype(np.float64))
        limit = reference.held_limit(5 * units(expected), expected, precision)
        within(f"{kind} backward", reference.ratio(dx, expected, limit))
    else:
        expected = slopes(kind, parameters, dy, {"x": x, "y": y, "": x}[reads])
        np.testing.assert_array_equal(dx, reference.held(expected, precision))
    if precision == "fp32":
        # The slope of y's formula is as far off as y: where it has saturated, that is all there is.
        with np.errstate(divide="ignore"):
            exact = dy * slope(x.astype(np.float64), *parameters)
        scale = max([1.0, *map(abs, parameters)]) ** 2
        finite = np.isfinite(exact)
        limit = 16 * reference.UNIT * scale * (np.abs(dy) + np.abs(exact))
        within(f"{kind} slope", reference.ratio(dx[finite], exact[finite], limit[finite]))


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_what_is_no_number_stays_so(device, precision, how):
    """And infinities are taken where they lead."""
    kind, *parameters = how
    options = {"device": device, "precision": precision}
    x = np.array([np.nan, np.inf, 0.0 if kind == "sqrt" else -np.inf], np.float32)
    y = functional.activation(x, *how, **options)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = reference.ACTIVATIONS[kind][0](x.astype(np.float64), *parameters).astype(np.float32)
        expected = np.where(np.isfinite(expected), reference.held(expected, precision), expected)
    np.testing.assert_array_equal(y, expected)
    assert np.isnan(y[0])


def test_relu_and_tanh_have_the_bits_of_their_own_functions(device, precision):
    x, dy = inputs(1029, "relu", precision)
    options = {"device": device, "precision": precision}
    np.testing.assert_array_equal(functional.activation(x, "relu", **options), functional.relu(x, **options))
    y = functional.activation(x, "tanh", 1, 1, **options)
    np.testing.assert_array_equal(y, functional.tanh(x, **options))
    dx = functional.activation_backward(dy, x, "tanh", 1, 1, **options)
    np.testing.assert_array_equal(dx, functional.tanh_backward(dy, y, **options))


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_in_place(machine, precision, how):
    kind, *parameters = how
    a, b = (*parameters, 0.0, 0.0)[:2]
    x, dy = inputs(1029, kind, precision)
    arguments = machine.stream, precision, kind, a, b
    reads = ACTIVATIONS[kind].reads
    given, gradient = machine.put_rounded(x, precision), machine.put_rounded(dy, precision)
    y, dx = machine.activations(x.shape, precision), machine.activations(x.shape, precision)
    ops.activation_forward(*arguments, given, y)
    saved = {"x": given, "y": y, "": None}[reads]
    ops.activation_backward(*arguments, gradient, saved, dx)
    ops.activation_backward(*arguments, gradient, saved, gradient)
    np.testing.assert_array_equal(to_float32(gradient.download()), to_float32(dx.download()))
    ops.activation_forward(*arguments, given, given)
    np.testing.assert_array_equal(to_float32(given.download()), to_float32(y.download()))


def test_no_values_are_no_work(machine, precision):
    nothing = machine.activations((0,), precision)
    ops.activation_forward(machine.stream, precision, "sqrt", 0.0, 0.0, nothing, nothing)
    ops.activation_backward(machine.stream, precision, "sqrt", 0.0, 0.0, nothing, nothing, nothing)
    assert nothing.download().size == 0


def test_what_is_read_must_be_there(machine):
    array = machine.empty((4,))
    with pytest.raises(ValueError, match="activation_backward: square needs x as saved, got None"):
        ops.activation_backward(machine.stream, "fp32", "square", 0.0, 0.0, array, None, array)


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("gelu",), "there is no activation 'gelu'; there are relu, tanh"),
        ((["relu"],), r"there is no activation \['relu'\]"),
        (("tanh",), r"tanh = a tanh\(b x\) takes a and b, got no parameters"),
        (("relu", 1.0), r"relu = max\(x, 0\) takes no parameters, got a"),
        (("brelu", 0.0), "brelu needs an a above 0, got 0.0"),
        (("brelu", -1.0), "brelu needs an a above 0, got -1.0"),
        (("tanh", 1e-50, 1.0), "tanh needs an a other than 0, got 1e-50"),
        (("linear", 1.0, np.nan), "b must be a finite number, got nan"),
    ],
)
def test_wrong_calls(arguments, text):
    with pytest.raises(ValueError, match=f"^activation: {text}"):
        functional.activation(ONE, *arguments)
    with pytest.raises(ValueError, match=f"^activation_backward: {text}"):
        functional.activation_backward(ONE, ONE, *arguments)


@pytest.mark.parametrize(
    ("kind", "a", "text"),
    [
        ("tanh", 0.0, "an a that is not 0"),
        ("brelu", 0.0, "an a above 0"),
        ("linear", np.inf, "must be finite"),
        ("gelu", 1.0, "kind must be the name of an activation, got 'gelu'"),
    ],
)
def test_kernels_refuse_what_they_cannot_compute(machine, kind, a, text):
    with pytest.raises(ValueError, match=text):
        machine.device.kernels.activation_forward(0, "fp32", kind, a, 1.0, 16, 16, 0)
    with pytest.raises(ValueError, match=text):
        machine.device.kernels.activation_backward(0, "fp32", kind, a, 1.0, 16, 16, 16, 0)


@pytest.mark.parametrize("kind", sorted(set(ACTIVATIONS) - {"linear"}))
def test_kernels_refuse_a_missing_x_or_y(machine, kind):
    with pytest.raises(ValueError, match="saved may be null for linear alone"):
        machine.device.kernels.activation_backward(64, "fp32", kind, 1.0, 1.0, 16, None, 16, 0)


def test_counts_that_no_memory_holds_are_refused(machine):
    kernels = machine.device.kernels
    for count in (2**41 + 1, 2**63 - 1):
        with pytest.raises(ValueError, match="count must be 0 to "):
            kernels.activation_forward(count, "fp32", "square", 1.0, 1.0, 16, 16, 0)
        with pytest.raises(ValueError, match="count must be 0 to "):
            kernels.scale(count, "fp32", 16, 1.0, 16, 0)
