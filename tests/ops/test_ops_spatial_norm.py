"""Normalisation over pixels of a map, rnorm and cnorm, on every device against float64; references that are wrong."""

from __future__ import annotations

from dataclasses import replace

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.shapes import SpatialNormShape

FORWARD = {"rnorm": functional.spatial_response_norm, "cnorm": functional.local_contrast_norm}
BACKWARD = {"rnorm": functional.spatial_response_norm_backward, "cnorm": functional.local_contrast_norm_backward}


@pytest.fixture(params=["rnorm", "cnorm"])
def kind(request) -> str:
    return request.param


def centred(kind, x, size):
    """That of which squares are summed."""
    x = x.astype(np.float64)
    return x if kind == "rnorm" else x - reference.square_means(x, size)


def expected(kind, dy, x, size, alpha, beta, k):
    """y and dx."""
    u, constants = centred(kind, x, size), (size, alpha, beta, k)
    return reference.spatial_forward(x, u, *constants), reference.spatial_backward(dy, x, u, *constants)[0]


def terms(case) -> int:
    return min(case.size, case.H) * min(case.size, case.W)


def divisor_limit(kind, case, x):
    """d, its relative rounding and the rounding of u, in units of 2^-24.

    That of d is that of a sum of so many squares. In cnorm u is rounded, too: its error is that of the mean, a sum of
    as many values, and of the division and the difference.
    """
    n, (size, alpha, _, k) = terms(case), case.constants.values()
    u = centred(kind, x, size)
    d = k + alpha * reference.square_sums(u**2, size)
    if kind == "rnorm":
        return d, n + 3, 0.0
    error = reference.sum_limit(reference.square_means(np.abs(x), size), n) / reference.UNIT + np.abs(x) + np.abs(u)
    return d, n + 3 + alpha * reference.square_sums(2 * np.abs(u) * error, size) / d, error


def power_limit(case, d, relative):
    """As in test_ops_lrn.py."""
    return case.beta * relative + 2 + 2 * case.beta * np.abs(np.log2(d))


def forward_ratio(kind, case, y, x, wrong=None, precision="fp32") -> float:
    right = reference.spatial_forward(x, centred(kind, x, case.size), **case.constants)
    d, relative, _ = divisor_limit(kind, case, x)
    limit = reference.UNIT * (2 + power_limit(case, d, relative)) * np.abs(right)
    limit = reference.held_limit(limit, right, precision)
    return reference.ratio(y, right if wrong is None else wrong, limit)


def backward_ratio(kind, case, dx, dy, x, wrong=None, precision="fp32") -> float:
    u = centred(kind, x, case.size)
    right, magnitude = reference.spatial_backward(dy, x, u, **case.constants)
    d, relative, error = divisor_limit(kind, case, x)
    # every term of the sum has a power of its own; the largest neighbour's decides
    limit = (8 + terms(case) + (power_limit(replace(case, beta=case.beta + 1), d, relative)).max()) * magnitude
    shared = reference.spatial_backward(np.abs(dy), np.abs(x), np.ones_like(u), **case.constants)[1]
    limit = reference.UNIT * (limit + error * shared)
    limit = reference.held_limit(limit, right, precision)
    return reference.ratio(dx, right if wrong is None else wrong, limit)


@pytest.mark.parametrize("case", cases.SPATIAL, ids=lambda case: case.id)
def test_forward_and_backward(device, precision, kind, case, within):
    x, dy = (reference.held(values, precision) for values in case.inputs())
    options = {**case.constants, "device": device, "precision": precision}
    y = FORWARD[kind](x, **options)
    within(f"{kind} forward", forward_ratio(kind, case, y, x, precision=precision))
    dx = BACKWARD[kind](dy, x, **options)
    within(f"{kind} dx", backward_ratio(kind, case, dx, dy, x, precision=precision))
    np.testing.assert_array_equal(FORWARD[kind](x, **options), y)
    np.testing.assert_array_equal(BACKWARD[kind](dy, x, **options), dx)


@pytest.mark.parametrize("precision", ["tf32"])
@pytest.mark.parametrize("device", ["emu", "cuda"], indirect=True)
def test_tf32_is_float32_here(device, precision, kind):
    case = cases.SPATIAL[1]
    x, dy = case.inputs()
    for function, operands in ((FORWARD[kind], (x,)), (BACKWARD[kind], (dy, x))):
        plain, other = (function(*operands, **case.constants, device=device, precision=p) for p in ("fp32", precision))
        np.testing.assert_array_equal(other, plain)


def test_rnorm_as_pytorch(device):
    """In odd windows, as a mean of squares; its gradient by autograd, in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for case in cases.SPATIAL:
        if case.size % 2 == 0 or case.size >= 2 * min(case.H, case.W):
            continue
        x, dy = case.inputs()
        theirs, n, half = torch.tensor(x, dtype=torch.float64, requires_grad=True), case.size, case.size // 2
        means = torch.nn.functional.avg_pool2d(theirs**2, n, 1, padding=half, count_include_pad=True)
        y = theirs * (case.k + case.alpha * n * n * means) ** -case.beta
        y.backward(torch.tensor(dy, dtype=torch.float64))
        ours = functional.spatial_response_norm(x, **case.constants, device=device)
        assert forward_ratio("rnorm", case, ours, x, y.detach().numpy()) <= 1, case.id
        dx = functional.spatial_response_norm_backward(dy, x, **case.constants, device=device)
        assert backward_ratio("rnorm", case, dx, dy, x, theirs.grad.numpy()) <= 1, case.id


def test_cnorm_of_equal_pixels_divides_by_k(device):
    """They do not differ from their means: alpha counts for nothing."""
    x = np.full((2, 3, 5, 6), 3, np.float32)
    y = functional.local_contrast_norm(x, 3, 10.0, 1.0, 2.0, device=device)
    np.testing.assert_allclose(y, x / 2, rtol=1e-6)


def test_the_gradient_of_cnorm_is_the_approximate_one(device):
    """Near the true one where alpha is small, and not where it is large."""
    for alpha, low, high in ((1e-3, 0.0, 5e-3), (1.0, 0.02, 0.3)):
        case = cases.SpatialCase("approximate", 2, 2, 6, 7, alpha=alpha / 9)
        x, dy = case.inputs()
        step, true = 1e-5, np.zeros(x.shape)
        for place in np.ndindex(x.shape):
            values = []
            for sign in (1, -1):
                moved = x.astype(np.float64)
                moved[place] += sign * step
                u = centred("cnorm", moved, case.size)
                values.append((dy * reference.spatial_forward(moved, u, **case.constants)).sum())
            true[place] = (values[0] - values[1]) / (2 * step)
        dx = functional.local_contrast_norm_backward(dy, x, **case.constants, device=device)
        assert low <= np.linalg.norm(dx - true) / np.linalg.norm(true) <= high


@pytest.mark.parametrize("case", cases.SPATIAL, ids=lambda case: case.id)
def test_bf16_is_rounded_once(case):
    """A d^-beta that is rounded as well would show, and so would terms of the sum."""
    x, dy = (reference.held(values, "bf16") for values in case.inputs())
    y, dx = expected("rnorm", dy, x, **case.constants)
    assert forward_ratio("rnorm", case, reference.bf16(y), x, precision="bf16") <= 1
    assert backward_ratio("rnorm", case, reference.bf16(dx), dy, x, precision="bf16") <= 1
    if x.size < 100 or case.alpha == 0:
        return
    power = (case.k + case.alpha * reference.square_sums(x.astype(np.float64) ** 2, case.size)) ** -case.beta
    assert forward_ratio("rnorm", case, reference.bf16(x * reference.bf16(power)), x, precision="bf16") > 1
    twice = reference.bf16(reference.bf16(dy * power) + reference.bf16(dx - dy * power))
    assert backward_ratio("rnorm", case, twice, dy, x, precision="bf16") > 1


def test_zero_images_stay_zero(device, precision, kind):
    zeros, options = np.zeros((3, 2, 4, 5), np.float32), {"device": device, "precision": precision}
    constants = (3, 0.1, 0.75, 1.0)
    np.testing.assert_array_equal(FORWARD[kind](zeros, *constants, **options), zeros)
    np.testing.assert_array_equal(BACKWARD[kind](zeros, zeros, *constants, **options), zeros)


@pytest.mark.parametrize("id", ["batch-65-N65", "wide-N65"])
def test_padded_lanes_do_not_leak(device, kind, id):
    case = next(case for case in cases.SPATIAL if case.id == id)
    x, dy = case.inputs()
    options = {**case.constants, "device": device}
    y, dx = FORWARD[kind](x, **options), BACKWARD[kind](dy, x, **options)
    for part in (slice(0, 64), slice(64, 65)):
        np.testing.assert_array_equal(FORWARD[kind](x[part], **options), y[part])
        np.testing.assert_array_equal(BACKWARD[kind](dy[part], x[part], **options), dx[part])


@pytest.mark.parametrize("case", cases.SPATIAL, ids=lambda case: case.id)
def test_wrong_references_fail(kind, case):
    x, dy = case.inputs()
    y, dx = FORWARD[kind](x, **case.constants), BACKWARD[kind](dy, x, **case.constants)
    wrong = {"k": {"k": case.k * 1.01}, "beta": {"beta": case.beta * 1.01}}
    if case.alpha > 0 and case.H * case.W > 1:
        if kind == "rnorm" or case.size > 1:
            wrong["alpha dropped"] = {"alpha": 0.0}
        if case.size > 1:
            wrong["alpha divided by the pixels"] = {"alpha": case.alpha / case.size**2}
            wrong["window one less"] = {"size": case.size - 1}
        wrong["window one more"] = {"size": case.size + 1}
    for name, constants in wrong.items():
        if name == "beta" and case.k == 1 and (case.alpha == 0 or (kind == "cnorm" and case.size == 1)):
            continue  # a power of 1
        theirs = expected(kind, dy, x, **{**case.constants, **constants})
        assert forward_ratio(kind, case, y, x, theirs[0]) > 1, f"forward does not notice: {name}"
        assert backward_ratio(kind, case, dx, dy, x, theirs[1]) > 1, f"backward does not notice: {name}"
    if case.alpha > 0 and case.size % 2 == 0:
        mirrored = [v[:, :, ::-1, ::-1] for v in expected(kind, dy[:, :, ::-1, ::-1], x[:, :, ::-1, ::-1],
                                                          **case.constants)]  # fmt: skip
        assert forward_ratio(kind, case, y, x, mirrored[0]) > 1, "forward does not notice a mirrored window"
        assert backward_ratio(kind, case, dx, dy, x, mirrored[1]) > 1, "backward does not notice a mirrored window"


def test_the_two_are_not_the_same():
    case = cases.SPATIAL[1]
    x, dy = case.inputs()
    assert forward_ratio("rnorm", case, functional.local_contrast_norm(x, **case.constants), x) > 1
    theirs = functional.local_contrast_norm_backward(dy, x, **case.constants)
    assert backward_ratio("rnorm", case, theirs, dy, x) > 1


def test_a_workspace_is_needed():
    from convnet.kernels import _emu

    shape = SpatialNormShape(8, 1, 4, 4, 8, 3, 0.1, 0.75, 1.0)
    assert _emu.rnorm_workspace(shape, "bf16") == 4 * 8 * 16
    assert _emu.cnorm_workspace(shape, "bf16") == 2 * 4 * 8 * 16
    for name, arrays in (("rnorm_backward", 3), ("cnorm_forward", 2), ("cnorm_backward", 3)):
        with pytest.raises(ValueError, match=f"{name}: needs a workspace, got a null address"):
            getattr(_emu, name)(shape, "fp32", *[16] * arrays, None, 0)
