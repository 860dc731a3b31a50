"""The operations against PyTorch's in float64: somebody else's reading of the same formulas."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.costs import COSTS
from convnet.kernels.shapes import four_paddings

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
torch.set_num_threads(1)  # small problems; its threads would wait for each other


def leaf(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradients(y, dy, *leaves):
    return [g.numpy() for g in torch.autograd.grad(y, leaves, torch.tensor(dy, dtype=torch.float64))]


def bound(name, actual, expected, limit, within):
    within(f"{name} (PyTorch)", reference.ratio(actual, expected, limit))


def torch_conv(case, x, weight, bias):
    """Overhanging windows read zeros: pad below and to the right as far as the last one reaches."""
    shape, (top, _, left, _) = case.shape(), four_paddings(case.padding)
    bottom = max((shape.P - 1) * case.stride + case.R - top - case.H, 0)
    right = max((shape.Q - 1) * case.stride + case.S - left - case.W, 0)
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, case.stride, groups=case.groups)
    return y[:, :, : shape.P, : shape.Q]


CONV = [case for case in [*cases.CONV_EDGES, *cases.CONV_SHRUNK, *cases.CONV_TINY]]


@pytest.mark.parametrize("case", CONV, ids=lambda case: case.id)
def test_conv(case, within):
    x, weight, bias, dy = case.inputs()
    leaves = leaf(x), leaf(weight), leaf(bias)
    y = torch_conv(case, *leaves)
    magnitude = reference.conv_forward(abs(x), abs(weight), abs(bias), **case.geometry)
    limit = reference.sum_limit(magnitude, weight[0].size + 1)
    bound("conv forward", functional.conv2d(x, weight, bias, **case.options), y.detach().numpy(), limit, within)
    expected = gradients(y, dy, *leaves)
    actual = functional.conv2d_backward(dy, x, weight, **case.options)
    magnitudes = reference.conv_backward(abs(dy), abs(x), abs(weight), **case.geometry)
    taps = -(-case.R // case.stride) * -(-case.S // case.stride)
    terms = (case.K // case.groups * taps, dy[:, 0].size, dy[:, 0].size)
    for name, a, e, m, t in zip(("dx", "dweight", "dbias"), actual, expected, magnitudes, terms, strict=True):
        bound(f"conv {name}", a, e, reference.sum_limit(m, t), within)


@pytest.mark.parametrize("case", [*cases.LINEAR_EDGES, *cases.LINEAR_TINY], ids=lambda case: case.id)
def test_linear(case, within):
    x, weight, bias, dy = case.inputs()
    leaves = leaf(x), leaf(weight), leaf(bias)
    y = F.linear(*leaves)
    y = F.relu(y) if case.relu else y
    limit = reference.sum_limit(reference.linear_forward(abs(x), abs(weight), abs(bias)), case.C + 1)
    actual = functional.linear(x, weight, bias, relu=case.relu)
    bound("linear forward", actual, y.detach().numpy(), limit, within)
    dy = functional.relu_backward(dy, actual) if case.relu else dy
    magnitudes = reference.linear_backward(abs(dy), abs(x), abs(weight))
    expected = gradients(F.linear(*leaves), dy, *leaves)
    for name, a, e, m, t in zip(
        ("dx", "dweight", "dbias"),
        functional.linear_backward(dy, x, weight),
        expected,
        magnitudes,
        (case.K, case.N, case.N),
        strict=True,
    ):
        bound(f"linear {name}", a, e, reference.sum_limit(m, t), within)


@pytest.mark.parametrize("case", [case for case in cases.POOL if not case.padding], ids=lambda case: case.id)
def test_max_pool(case, within):
    """Without padding the two programs round up alike; ties too go to the first maximum."""
    x, dy = case.inputs()
    leaves = [leaf(x)]
    y = F.max_pool2d(leaves[0], case.size, case.stride, ceil_mode=case.ceil_mode)
    bound("max-pool", functional.max_pool2d(x, case.size, case.stride, **case.options), y.detach().numpy(), 0.0, within)
    dx = functional.max_pool2d_backward(dy, x, case.size, case.stride, **case.options)
    limit = 8 * reference.UNIT * gradients(y, abs(dy), *leaves)[0] if case.stride < case.size else 0.0
    y = F.max_pool2d(leaves[0], case.size, case.stride, ceil_mode=case.ceil_mode)
    bound("max-pool dx", dx, gradients(y, dy, *leaves)[0], limit, within)


ACTIVATIONS = {
    "relu": ((), F.relu),
    "tanh": ((1.7159, 0.6667), lambda x: 1.7159 * torch.tanh(0.6667 * x)),
    "logistic": ((), torch.sigmoid),
    "linear": ((-1.5, 0.3), lambda x: -1.5 * x + 0.3),
    "softrelu": ((), lambda x: F.softplus(x, threshold=4)),
    "brelu": ((0.75,), lambda x: F.hardtanh(x, 0.0, 0.75)),
    "abs": ((), torch.abs),
    "square": ((), torch.square),
    "sqrt": ((), torch.sqrt),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation(kind, within):
    parameters, theirs = ACTIVATIONS[kind]
    random = np.random.default_rng(len(kind))
    x = (3 * random.standard_normal((33, 31))).astype(np.float32)
    x, dy = np.abs(x) if kind == "sqrt" else x, random.standard_normal(x.shape, dtype=np.float32)
    given = leaf(x)
    y = theirs(given)
    expected = y.detach().numpy()
    limit = 6 * reference.UNIT * (np.abs(expected) + 1)
    bound(kind, functional.activation(x, kind, *parameters), expected, limit, within)
    expected = gradients(y, dy, given)[0]
    limit = 16 * reference.UNIT * (np.abs(expected) + np.abs(dy))
    bound(f"{kind} dx", functional.activation_backward(dy, x, kind, *parameters), expected, limit, within)


def test_gather_channels(within):
    random, table = np.random.default_rng(0), [3, 0, 3, 1, 3]
    x, dy = (random.standard_normal((5, C, 4, 3), dtype=np.float32) for C in (4, 5))
    given = leaf(x)
    y = given[:, table]
    bound("gather channels", functional.gather_channels(x, table), y.detach().numpy(), 0.0, within)
    limit = 4 * reference.UNIT * gradients(given[:, table], abs(dy), given)[0]
    dx = functional.gather_channels_backward(dy, table, 4)
    bound("gather channels dx", dx, gradients(y, dy, given)[0], limit, within)


def test_joins(within):
    random, coefficients = np.random.default_rng(0), [0.5, -2.0, 0.75]
    *xs, dy = (random.standard_normal((5, 40), dtype=np.float32) for _ in range(4))
    leaves = [leaf(x) for x in xs]
    total = sum(c * x for c, x in zip(coefficients, leaves, strict=True))
    largest = torch.stack(leaves).amax(0)  # without ties, of which each input would get a share
    limit = 8 * reference.UNIT * sum(abs(c * x) for c, x in zip(coefficients, xs, strict=True))
    bound("weighted sum", functional.weighted_sum(xs, coefficients), total.detach().numpy(), limit, within)
    bound("maximum", functional.elementwise_max(xs), largest.detach().numpy(), 0.0, within)
    found = functional.weighted_sum_backward(dy, coefficients)
    for actual, expected in zip(found, gradients(total, dy, *leaves), strict=True):
        bound("weighted sum dx", actual, expected, reference.UNIT * abs(expected), within)
    found = functional.elementwise_max_backward(dy, xs)
    for actual, expected in zip(found, gradients(largest, dy, *leaves), strict=True):
        bound("maximum dx", actual, expected, 0.0, within)


@pytest.mark.parametrize("kind", COSTS)
def test_costs(kind, within):
    random = np.random.default_rng(0)
    x, labels = 4 * random.standard_normal((9, 30), dtype=np.float32), random.integers(0, 30, 9)
    if kind == "cross-entropy":
        x = random.uniform(0.01, 0.99, x.shape).astype(np.float32)
    given, t = leaf(x), F.one_hot(torch.tensor(labels), 30).double()
    expected = {
        "squares": lambda: given**2,
        "squared-error": lambda: F.mse_loss(given, t, reduction="none"),
        "log-squared-error": lambda: torch.log1p((given - t) ** 2),
        "cross-entropy": lambda: F.binary_cross_entropy(given, t, reduction="none"),
        "logistic-cross-entropy": lambda: F.binary_cross_entropy_with_logits(given, t, reduction="none"),
    }[kind]().sum(1)
    losses, dx = functional.cost(x, kind, None if kind == "squares" else labels, coefficient=0.3)
    bound(kind, losses, expected.detach().numpy(), reference.sum_limit(expected.detach().numpy(), 34), within)
    slope = gradients(0.3 * expected.mean(), 1.0, given)[0]
    bound(f"{kind} dx", dx, slope, 8 * reference.UNIT * (np.abs(slope) + 0.3 / 9), within)


@pytest.mark.parametrize("case", cases.LRN, ids=lambda case: case.id)
def test_lrn(case, within):
    """PyTorch divides alpha by the size of the window; the paper does not. Even windows lie alike."""
    x, dy = case.inputs()
    leaves = [leaf(x)]
    y = F.local_response_norm(leaves[0], case.size, case.alpha * case.size, case.beta, case.k)
    _, magnitude = reference.lrn_backward(dy, x, **case.constants)
    d = reference.lrn_denominator(x, case.size, case.alpha, case.k)
    units = (case.beta + 1) * (case.size + 3 + 2 * np.abs(np.log2(d)).max()) + 10 + case.size
    actual = functional.local_response_norm(x, **case.constants)
    expected = y.detach().numpy()
    bound("lrn forward", actual, expected, units * reference.UNIT * np.abs(expected), within)
    dx = functional.local_response_norm_backward(dy, x, **case.constants)
    bound("lrn dx", dx, gradients(y, dy, *leaves)[0], units * reference.UNIT * magnitude, within)


@pytest.mark.parametrize("case", cases.SOFTMAX, ids=lambda case: case.id)
def test_softmax_cross_entropy(case, within):
    logits, labels = case.inputs()
    x, target = leaf(logits), torch.tensor(labels)
    losses, dlogits, probs = functional.softmax_cross_entropy(logits, labels)
    spread = np.ptp(logits, axis=1, keepdims=True).astype(np.float64)
    limit = 4 * reference.UNIT * (2 * spread + np.sqrt(case.K) + np.log(case.K) + 4)
    expected = F.cross_entropy(x, target, reduction="none").detach().numpy()
    bound("softmax losses", losses, expected, limit[:, 0], within)
    expected = F.softmax(x, dim=1).detach().numpy()
    bound("softmax probs", probs, expected, limit * expected + 4e-38, within)
    right = gradients(F.cross_entropy(x, target), 1.0, x)[0]
    bound("softmax dlogits", dlogits, right, limit * (expected + np.abs(right)) + 4e-38, within)


def test_sgd_with_constant_rate():
    """With a constant learning rate PyTorch's velocity is ours divided by -lr."""
    random = np.random.default_rng(0)
    weight, velocity = random.standard_normal(50, dtype=np.float32), np.zeros(50, np.float32)
    parameter = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    theirs = torch.optim.SGD([parameter], lr=0.05, momentum=0.9, weight_decay=1e-2)
    for _ in range(20):
        gradient = random.standard_normal(50, dtype=np.float32)
        weight, velocity = functional.sgd(weight, velocity, gradient, lr=0.05, momentum=0.9, weight_decay=1e-2)
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        theirs.step()
    np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=0, atol=20 * 8 * 2.0**-24 * 10)
