"""``convnet.functional``: what it refuses, random geometry against the references, and the emulator's thread orders."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from convnet import functional
from convnet.devices.protocol import DeviceError


def ones(*shape):
    return np.ones(shape, np.float32)


X, W = ones(2, 4, 6, 5), ones(6, 4, 3, 3)
DY = ones(2, 6, 4, 3)
LW = ones(4, 3, 6, 4, 3, 3)
conv, back = functional.conv2d, functional.conv2d_backward
local, unlocal = functional.local2d, functional.local2d_backward
pool, unpool = functional.max_pool2d, functional.max_pool2d_backward
average, unaverage = functional.avg_pool2d, functional.avg_pool2d_backward
rnorm, unrnorm = functional.spatial_response_norm, functional.spatial_response_norm_backward
cnorm, uncnorm = functional.local_contrast_norm, functional.local_contrast_norm_backward
blur, nailbed = functional.blur2d, functional.nailbed2d
NORM = (3, 0.1, 0.75, 1.0)  # size, alpha, beta, k
lrn, unlrn = functional.local_response_norm, functional.local_response_norm_backward
linear, softmax, sgd = functional.linear, functional.softmax_cross_entropy, functional.sgd
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
DROP = {"seed": 0, "step": 0, "layer": 0}
REFUSED = {
    "conv dtype": (lambda: conv(X.astype(np.float64), W), "conv2d: x must be a float32"),
    "conv list": (lambda: conv(X.tolist(), W), "conv2d: x must be a float32 array, got list"),
    "conv rank": (lambda: conv(X[0], W), r"x must have shape \(N, C, H, W\)"),
    "conv weight rank": (lambda: conv(X, W[0]), r"weight must have shape \(K, C, R, S\)"),
    "conv no images": (lambda: conv(X[:0], W), "no size 0"),
    "conv channels": (lambda: conv(X, W[:, :3]), "C/groups channels"),
    "conv groups": (lambda: conv(X, W, groups=2), "C/groups channels"),
    "conv filters per group": (lambda: conv(ones(2, 12, 6, 5), W[:5], groups=3), "groups must divide"),
    "conv no groups": (lambda: conv(X, W, groups=0), "groups must lie between 1"),
    "conv bias": (lambda: conv(X, W, ones(5)), r"bias must have shape \(6,\)"),
    "conv bias dtype": (lambda: conv(X, W, np.ones(6)), "bias must be a float32"),
    "conv filter too large": (lambda: conv(X, ones(6, 4, 7, 3)), "conv2d: a window of 7"),
    "conv stride": (lambda: conv(X, W, stride=0), "stride must lie between 1"),
    "conv stride type": (lambda: conv(X, W, stride=1.5), "stride must be a whole number, got 1.5"),
    "conv padding": (lambda: conv(X, W, padding=-1), "padding must lie between 0"),
    "conv paddings": (lambda: conv(X, W, padding=(1, 1)), "padding must be a number or"),
    "conv precision": (
        lambda: conv(X, W, precision="bf16"),
        'conv2d: cpu computes in fp32 only, got precision "bf16"; use device "emu" or "cuda"',
    ),
    "conv no precision": (lambda: conv(X, W, precision="fp16"), 'conv2d: precision must be "fp32", "tf32" or "bf16"'),
    "conv device": (lambda: conv(X, W, device="gpu"), "device must be"),
    "conv backward dy": (lambda: back(DY[:, :5], X, W), r"conv2d_backward: dy must have shape \(2, 6, 4, 3\)"),
    "conv backward ceil": (lambda: back(DY, X, W, stride=2), "dy must have shape"),
    "conv backward geometry": (lambda: back(DY, X, ones(6, 4, 3, 6)), "conv2d_backward: a window of 6"),
    "local weight rank": (lambda: local(X, W), r"local2d: weight must have shape \(P, Q, K, C, R, S\)"),
    "local pixels": (
        lambda: local(X, LW[:3]),
        "local2d: weight must have filters for each of the 4 x 3 pixels of the output, got those of 3 x 3",
    ),
    "local pixels of padding": (lambda: local(X, LW, padding=1), "the 6 x 5 pixels of the output, got those of 4 x 3"),
    "local pixels of overhang": (lambda: local(X, LW[:2, :1], stride=2), "each of the 3 x 2 pixels"),
    "local channels": (lambda: local(X, LW[:, :, :, :3]), r"C/groups channels, got .* weight.shape\[3\] \* groups"),
    "local groups": (lambda: local(X, LW, groups=0), "local2d: groups must lie between 1"),
    "local filters per group": (lambda: local(ones(2, 16, 6, 5), LW, groups=4), "local2d: sizes must be positive"),
    "local filter too large": (lambda: local(X, ones(1, 1, 6, 4, 7, 3)), "local2d: a window of 7"),
    "local bias": (lambda: local(X, LW, ones(6)), r"local2d: bias must have shape \(6, 4, 3\)"),
    "local dtype": (lambda: local(X, LW.astype(np.float16)), "local2d: weight must be a float32 array, got float16"),
    "local precision": (lambda: local(X, LW, precision="tf32"), "use device"),
    "local dy": (lambda: unlocal(DY[:, :, :3], X, LW), r"local2d_backward: dy must have shape \(2, 6, 4, 3\)"),
    "position bias": (
        lambda: functional.add_position_bias(DY, ones(6)),
        r"add_position_bias: bias must have shape \(6, 4, 3\)",
    ),
    "position bias rank": (
        lambda: functional.add_position_bias_backward(DY[0]),
        r"add_position_bias_backward: dy must have shape \(N, K, P, Q\)",
    ),
    "pool size": (lambda: pool(X, 16, 1), "max_pool2d: size must lie between 1 and 15"),
    "pool window": (lambda: pool(X, 6, 1), "max_pool2d: a window of 6"),
    "pool padding": (lambda: pool(X, 2, 1, padding=2), "padding must be smaller than the window"),
    "pool empty window": (lambda: pool(X, 1, 4, ceil_mode=True), "outside the 6x5 image"),
    "pool dy": (lambda: unpool(X, X, 2, 1), r"max_pool2d_backward: dy must have shape \(2, 4, 5, 4\)"),
    "average size": (lambda: average(X, 16, 1), "avg_pool2d: size must lie between 1 and 15"),
    "average window": (lambda: average(X, 6, 1), "avg_pool2d: a window of 6"),
    "average padding": (lambda: average(X, 2, 1, padding=2), "avg_pool2d: padding must be smaller than the window"),
    "average empty window": (lambda: average(X, 1, 4, ceil_mode=True), "avg_pool2d: the last window would lie outside"),
    "average dy": (lambda: unaverage(X, X, 2, 1), r"avg_pool2d_backward: dy must have shape \(2, 4, 5, 4\)"),
    "rnorm size": (lambda: rnorm(X, 7, *NORM[1:]), "spatial_response_norm: size must lie between 1 and 6, got 7"),
    "rnorm no size": (lambda: rnorm(X, 0, *NORM[1:]), "size must lie between 1 and 6, got 0"),
    "rnorm k": (lambda: rnorm(X, 3, 0.1, 0.75, 0.0), "spatial_response_norm: needs finite alpha >= 0, k > 0"),
    "rnorm alpha": (lambda: rnorm(X, 3, -0.1, 0.75, 1.0), "alpha >= 0"),
    "rnorm rank": (lambda: rnorm(X[0], *NORM), r"x must have shape \(N, C, H, W\)"),
    "rnorm dy": (lambda: unrnorm(X[:, :3], X, *NORM), "spatial_response_norm_backward: dy must have shape"),
    "cnorm size": (lambda: cnorm(X, 7, *NORM[1:]), "local_contrast_norm: size must lie between 1 and 6, got 7"),
    "cnorm beta": (lambda: cnorm(X, 3, 0.1, float("inf"), 1.0), "local_contrast_norm: needs finite"),
    "cnorm dy": (lambda: uncnorm(X[:, :3], X, *NORM), "local_contrast_norm_backward: dy must have shape"),
    "blur size": (lambda: blur(X, 4, 1.0), "blur2d: size must be 3, 5, 7 or 9 pixels and std positive, got size=4"),
    "blur large": (lambda: blur(X, 11, 1.0), "blur2d: size must lie between 3 and 9, got 11"),
    "blur std": (lambda: blur(X, 5, 0.0), "std positive, got size=5 std=0.0"),
    "blur std of nothing": (lambda: blur(X, 5, 1e-60), "std positive"),
    "blur no number": (lambda: blur(X, 5, "wide"), "blur2d: std must be a finite number, got 'wide'"),
    "blur dy": (lambda: functional.blur2d_backward(X[0], 5, 1.0), "blur2d_backward: dy must have shape"),
    "nailbed stride": (lambda: nailbed(X, 0), "nailbed2d: stride must lie between 1"),
    "nailbed dy": (
        lambda: functional.nailbed2d_backward(X, X, 2),
        r"nailbed2d_backward: dy must have shape \(2, 4, 3, 3",
    ),
    "lrn size": (lambda: lrn(X, 0), "size must lie between 1 and 16"),
    "lrn k": (lambda: lrn(X, k=0.0), "k > 0"),
    "lrn alpha": (lambda: lrn(X, alpha=-1e-4), "alpha >= 0"),
    "lrn beta": (lambda: lrn(X, beta=float("nan")), "finite"),
    "lrn rank": (lambda: lrn(X[0]), r"shape \(N, C, H, W\)"),
    "lrn dy": (lambda: unlrn(X[:, :3], X), "dy must have shape"),
    "linear sizes": (lambda: linear(ones(3, 4), ones(4, 5)), "same C"),
    "linear bias": (lambda: linear(ones(3, 4), ones(5, 4), ones(4)), r"bias must have shape \(5,\)"),
    "linear rank": (lambda: linear(X, ones(5, 4)), r"x must have shape \(N, C\)"),
    "linear precision": (lambda: linear(ones(3, 4), ones(5, 4), precision="tf32"), "use device"),
    "linear dy": (lambda: functional.linear_backward(ones(3, 4), ones(3, 4), ones(5, 4)), "dy must have shape"),
    "tanh dtype": (lambda: functional.tanh(np.ones(3)), "tanh: x must be a float32"),
    "relu dtype": (lambda: functional.relu(np.ones(3)), "relu: x must be a float32"),
    "relu backward": (lambda: functional.relu_backward(ones(3), ones(4)), "dy must have shape"),
    "dropout p": (lambda: functional.dropout(ones(3, 4), 1.0, **DROP), r"p must lie in \[0, 1\)"),
    "dropout seed": (lambda: functional.dropout(ones(3, 4), 0.5, **{**DROP, "seed": 2**64}), "seed must lie"),
    "dropout step": (lambda: functional.dropout(ones(3, 4), 0.5, **{**DROP, "step": -1}), "step must lie"),
    "dropout rank": (lambda: functional.dropout(ones(3), 0.5, **DROP), "x must have shape"),
    "softmax labels": (lambda: softmax(ones(3, 4), np.array([0, 4, 1])), "between 0 and 3, got 0 to 4"),
    "softmax negative": (lambda: softmax(ones(3, 4), np.array([0, -1, 1])), "between 0 and 3"),
    "softmax label dtype": (lambda: softmax(ones(3, 4), ones(3)), "whole numbers"),
    "softmax label shape": (lambda: softmax(ones(3, 4), np.zeros((3, 1), int)), r"shape \(3,\)"),
    "sgd shapes": (lambda: sgd(ones(3), ones(4), ones(3), **SGD), "velocity must have shape"),
    "sgd dtype": (lambda: sgd(ones(3), ones(3), np.ones(3), **SGD), "gradient must be a float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_launch_nothing(name, monkeypatch):
    call, message = REFUSED[name]
    if "device" not in message:
        monkeypatch.setattr("convnet.ops.call._open", lambda device: pytest.fail("a device was opened"))
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_device_says_so():
    with pytest.raises(DeviceError):
        functional.relu(ones(3), device="cuda:99")


def test_strided_and_reversed_views(device):
    """Arguments need not be contiguous, and none is changed."""
    case = next(case for case in cases.CONV_EDGES if case.id == "primes-N5")
    x, weight, bias, dy = case.inputs()
    views = [np.asfortranarray(a[..., ::-1])[..., ::-1] for a in (x, weight, dy)]
    kept = [a.copy() for a in views]
    y = conv(views[0], views[1], bias, device=device, **case.options)
    np.testing.assert_array_equal(y, conv(x, weight, bias, device=device, **case.options))
    strided = back(views[2], views[0], views[1], device=device, **case.options)
    for a, b in zip(strided, back(dy, x, weight, device=device, **case.options), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32
        assert a.flags.c_contiguous
        assert a.flags.writeable
    for a, b in zip(views, kept, strict=True):
        np.testing.assert_array_equal(a, b)


small = st.integers(1, 4)
paddings = st.one_of(st.integers(0, 3), st.tuples(*[st.integers(0, 3)] * 4))


@st.composite
def conv_cases(draw):
    """Legal geometry: filters and output sizes are drawn, the image follows from them."""
    groups, stride, R, S = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(small), draw(small)
    padding = draw(paddings)
    top, bottom, left, right = padding if isinstance(padding, tuple) else (padding,) * 4
    ceil_mode = draw(st.booleans())
    H = (draw(small) - 1) * stride + R + draw(st.integers(0, stride - 1)) - top - bottom
    W = (draw(small) - 1) * stride + S + draw(st.integers(0, stride - 1)) - left - right
    assume(H > 0)
    assume(W > 0)
    C, K, N = groups * draw(small), groups * draw(small), draw(st.integers(1, 3))
    return cases.ConvCase("drawn", N, C, H, W, K, R, S, stride, padding, groups, ceil_mode, draw(st.booleans()))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(conv_cases())
@example(cases.ConvCase("drawn", 1, 1, 1, 1, 1, 1, 1, 4, 3, 1, True))
def test_any_legal_convolution(case):
    x, weight, bias, dy = case.inputs(integers=True)
    y = conv(x, weight, bias, relu=case.relu, **case.options)
    np.testing.assert_array_equal(y, reference.conv_forward(x, weight, bias, relu=case.relu, **case.geometry))
    gradients = back(dy, x, weight, **case.options)
    for actual, expected in zip(gradients, reference.conv_backward(dy, x, weight, **case.geometry), strict=True):
        np.testing.assert_array_equal(actual, expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(conv_cases())
@example(cases.ConvCase("drawn", 1, 1, 1, 1, 1, 1, 1, 4, 3, 1, True))
def test_any_legal_local_convolution(convolution):
    case = cases.LocalCase(**{**vars(convolution), "ceil_mode": True})
    x, weight, bias, dy = case.inputs(integers=True)
    y = local(x, weight, bias, relu=case.relu, **case.options)
    np.testing.assert_array_equal(y, reference.local_forward(x, weight, bias, relu=case.relu, **case.geometry))
    gradients = unlocal(dy, x, weight, **case.options)
    for actual, expected in zip(gradients, reference.local_backward(dy, x, weight, **case.geometry), strict=True):
        np.testing.assert_array_equal(actual, expected)


@st.composite
def pool_cases(draw):
    size, stride = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    padding = draw(st.one_of(st.integers(0, size - 1), st.tuples(*[st.integers(0, size - 1)] * 4)))
    sizes = [draw(st.integers(1, 9)) for _ in range(2)]
    case = cases.PoolCase(
        "drawn", draw(small), draw(small), *sizes, size, stride, padding, draw(st.booleans()), draw(st.booleans())
    )
    try:
        case.shape()
    except ValueError:
        assume(False)
    return case


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pool_cases())
def test_any_legal_pooling(case):
    x, dy = case.inputs(integers=True)
    y, argmax = reference.pool_forward(x, **case.geometry)
    np.testing.assert_array_equal(pool(x, case.size, case.stride, **case.options), y)
    place = {key: case.geometry[key] for key in ("size", "stride", "top", "left")}
    expected = reference.pool_backward(dy, argmax, case.H, case.W, **place)
    np.testing.assert_array_equal(unpool(dy, x, case.size, case.stride, **case.options), expected)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pool_cases())
def test_any_legal_average(case):
    """Sums of small integers are exact: a mean is rounded once, shares of dy and their sums a few times."""
    x, dy = case.inputs(integers=True)
    x = np.rint(4 * x)
    y = average(x, case.size, case.stride, **case.options)
    np.testing.assert_allclose(y, reference.avg_pool_forward(x, **case.geometry), rtol=reference.UNIT, atol=0)
    place = {key: case.geometry[key] for key in ("size", "stride", "top", "left")}
    expected = reference.avg_pool_backward(dy, case.H, case.W, **place)
    dx = unaverage(dy, x, case.size, case.stride, **case.options)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=2**-24 * 30 * 3 * 25)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(small, small, st.integers(1, 11), st.integers(1, 11), st.integers(1, 11), st.sampled_from(["rnorm", "cnorm"]))
def test_any_square_normalisation(N, C, H, W, size, kind):
    assume(size <= max(H, W))
    case = cases.SpatialCase("drawn", N, C, H, W, size, alpha=0.3 / size**2)
    x, dy = case.inputs()
    u = x if kind == "rnorm" else x - reference.square_means(x, size)
    forward, backward = (rnorm, unrnorm) if kind == "rnorm" else (cnorm, uncnorm)
    expected = reference.spatial_forward(x, u, **case.constants)
    np.testing.assert_allclose(forward(x, **case.constants), expected, rtol=1e-5, atol=1e-6)
    expected = reference.spatial_backward(dy, x, u, **case.constants)[0]
    np.testing.assert_allclose(backward(dy, x, **case.constants), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_any_illegal_convolution(data):
    """One rule broken at a time."""
    C, K, R, S = 4, 6, data.draw(small), data.draw(small)
    x, weight = ones(1, C, data.draw(st.integers(4, 7)), data.draw(st.integers(4, 7))), ones(K, C, R, S)
    broken = data.draw(st.sampled_from(["filter", "stride", "padding", "channels", "groups"]))
    options = {}
    if broken == "filter":
        weight = ones(K, C, x.shape[2] + data.draw(small), S)
    elif broken == "stride":
        options["stride"] = data.draw(st.integers(-3, 0))
    elif broken == "padding":
        options["padding"] = (1, data.draw(st.integers(-3, -1)), 1, 1)
    elif broken == "channels":
        weight = ones(K, C + data.draw(small), R, S)
    else:
        options["groups"] = data.draw(st.integers(-2, 9).filter(lambda groups: groups != 1))
    with pytest.raises(ValueError, match=r"^conv2d: "):
        conv(x, weight, **options)


def _everything(device: str):
    """A call of every operation with threads that work together."""
    results = []
    for id in ("primes-N5", "groups2-stride2-N6", "filters-129-N2"):
        case = next(case for case in cases.CONV_EDGES if case.id == id)
        x, weight, bias, dy = case.inputs()
        results.append(conv(x, weight, bias, device=device, **case.options))
        results += back(dy, x, weight, device=device, **case.options)
    for id in ("primes-N5", "groups2-stride2-N6", "maps-33-64-N16"):
        case = next(case for case in cases.LOCAL if case.id == id)
        x, weight, bias, dy = case.inputs()
        results.append(local(x, weight, bias, device=device, **case.options))
        results += unlocal(dy, x, weight, device=device, **case.options)
    for id in ("primes-N13", "outputs-129-N9", "inputs-129-N3"):
        x, weight, bias, dy = next(case for case in cases.LINEAR_EDGES if case.id == id).inputs()
        results += [linear(x, weight, bias, device=device), *functional.linear_backward(dy, x, weight, device=device)]
    logits, labels = cases.SOFTMAX[3].inputs()
    results += softmax(logits, labels, device=device)
    x, dy = cases.LRN[1].inputs()
    results += [lrn(x, device=device), unlrn(dy, x, device=device)]
    x, dy = cases.POOL[1].inputs()
    return [*results, unpool(dy, x, 3, 2, device=device)]


def test_thread_order_changes_nothing():
    """Three orders in which the emulator runs threads and blocks: the same bits, or a barrier is missing."""
    from convnet.kernels import _emu

    runs = []
    for seed in (1, 2, 3):
        _emu.seed_order(seed)
        runs.append(_everything("emu"))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
