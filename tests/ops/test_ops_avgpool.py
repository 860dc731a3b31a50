"""Average pooling on every device against float64 and PyTorch, and references that are wrong."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.ops import ops

BACKWARD_KEYS = ("size", "stride", "top", "left")


def expected_backward(case, dy, **changes):
    geometry = {key: case.geometry[key] for key in BACKWARD_KEYS}
    return reference.avg_pool_backward(dy, case.H, case.W, **{**geometry, **changes})


def forward_ratio(case, y, x, expected=None, precision="fp32") -> float:
    """The sum, and one rounding for the division."""
    right, magnitude = (reference.avg_pool_forward(values, **case.geometry) for values in (x, np.abs(x)))
    limit = reference.sum_limit(magnitude, case.size**2) + reference.UNIT * np.abs(right)
    limit = reference.held_limit(limit, right, precision)
    return reference.ratio(y, right if expected is None else expected, limit)


def backward_ratio(case, dx, dy, expected=None, precision="fp32") -> float:
    """A rounding for the reciprocal of the divisor, one for the product, and the sum."""
    windows = (-(-case.size // case.stride)) ** 2  # that may share one pixel
    right, magnitude = expected_backward(case, dy), expected_backward(case, np.abs(dy))
    limit = reference.sum_limit(magnitude, windows) + 2 * reference.UNIT * magnitude
    limit = reference.held_limit(limit, right, precision)
    return reference.ratio(dx, right if expected is None else expected, limit)


@pytest.mark.parametrize("case", cases.POOL, ids=lambda case: case.id)
def test_forward_and_backward(device, precision, case, within):
    x, dy = (reference.held(values, precision) for values in case.inputs())
    options = {**case.options, "device": device, "precision": precision}
    y = functional.avg_pool2d(x, case.size, case.stride, **options)
    within("avg-pool forward", forward_ratio(case, y, x, precision=precision))
    dx = functional.avg_pool2d_backward(dy, x, case.size, case.stride, **options)
    within("avg-pool dx", backward_ratio(case, dx, dy, precision=precision))
    np.testing.assert_array_equal(functional.avg_pool2d(x, case.size, case.stride, **options), y)
    np.testing.assert_array_equal(functional.avg_pool2d_backward(dy, x, case.size, case.stride, **options), dx)


@pytest.mark.parametrize("case", cases.POOL, ids=lambda case: case.id)
def test_a_mean_of_equal_values_is_the_value(device, case):
    """The divisor is that of the window that is left: whole numbers are divided without rounding."""
    x = np.full((case.N, case.C, case.H, case.W), 3, np.float32)
    y = functional.avg_pool2d(x, case.size, case.stride, **case.options, device=device)
    np.testing.assert_array_equal(y, np.float32(3))


@pytest.mark.parametrize("case", [case for case in cases.POOL if case.N > 2], ids=lambda case: case.id)
def test_mask_drops_what_a_relu_would_drop(machine, precision, case):
    """In front of the ReLU: dx where its output is above 0; NaN is not."""
    x, dy = (reference.held(values, precision) for values in case.inputs())
    x = np.maximum(x, 0)
    x[0, 0, 0, 0] = np.nan
    assert (x <= 0).any()
    shape = machine.padded(case.shape(N=case.N))
    results = []
    for mask in (machine.put_images(x, precision), None):
        dx = machine.activations(shape.x, precision)
        ops.avg_pool_backward(machine.stream, shape, precision, machine.put_images(dy, precision), mask, dx)
        results.append(machine.images(dx, case.N))
    np.testing.assert_array_equal(results[0], np.where(x > 0, results[1], np.float32(0)))


def test_bf16_is_rounded_once():
    """Sums that are rounded after every addition would show."""
    case = cases.PoolCase("rounded", 2, 3, 11, 11, 3, 1)
    x, dy = (reference.held(values, "bf16") for values in case.inputs())
    y, dx = reference.avg_pool_forward(x, **case.geometry), expected_backward(case, dy)
    sums, gradient = np.zeros(y.shape), np.zeros(x.shape)
    for r, s in np.ndindex(3, 3):
        sums = reference.bf16(sums + x[:, :, r : r + 9, s : s + 9])
        share = gradient[:, :, r : r + 9, s : s + 9]
        share[...] = reference.bf16(share + dy / 9)
    assert forward_ratio(case, reference.bf16(y), x, precision="bf16") <= 1
    assert forward_ratio(case, reference.bf16(sums / 9), x, precision="bf16") > 1
    assert backward_ratio(case, reference.bf16(dx), dy, precision="bf16") <= 1
    assert backward_ratio(case, gradient, dy, precision="bf16") > 1


# torch pads both sides alike, by half a window at most
PYTORCH = [case for case in cases.POOL if isinstance(case.padding, int) and 2 * case.padding <= case.size]


@pytest.mark.parametrize("case", PYTORCH, ids=lambda case: case.id)
def test_as_pytorch(device, case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, dy = case.inputs()
    theirs = torch.tensor(x, requires_grad=True)
    options = {"padding": case.padding, "ceil_mode": case.ceil_mode, "count_include_pad": False}
    result = torch.nn.functional.avg_pool2d(theirs, case.size, case.stride, **options)
    result.backward(torch.tensor(dy))
    y = functional.avg_pool2d(x, case.size, case.stride, **case.options, device=device)
    assert forward_ratio(case, y, x, result.detach().numpy().astype(np.float64)) <= 2
    dx = functional.avg_pool2d_backward(dy, x, case.size, case.stride, **case.options, device=device)
    assert backward_ratio(case, dx, dy, theirs.grad.numpy().astype(np.float64)) <= 2


def test_windows_that_begin_in_front_of_the_image(device):
    """2012's "start" of -2 with windows of 4: the first has two rows and columns, and so has the last."""
    x = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    y = functional.avg_pool2d(x, 4, 4, padding=(2, 0, 2, 0), ceil_mode=True, device=device)
    corners = [[x[0, 0, rows, columns].mean() for columns in (slice(0, 2), slice(2, 6), slice(6, 8))]
               for rows in (slice(0, 2), slice(2, 6), slice(6, 8))]  # fmt: skip
    np.testing.assert_array_equal(y[0, 0], corners)


def test_padded_lanes_do_not_leak(device):
    case = next(case for case in cases.POOL if case.id == "batch-65-N65")
    x, dy = case.inputs()
    y = functional.avg_pool2d(x, case.size, case.stride, device=device)
    dx = functional.avg_pool2d_backward(dy, x, case.size, case.stride, device=device)
    for part in (slice(0, 64), slice(64, 65)):
        alone = functional.avg_pool2d(x[part], case.size, case.stride, device=device)
        np.testing.assert_array_equal(alone, y[part])
        alone = functional.avg_pool2d_backward(dy[part], x[part], case.size, case.stride, device=device)
        np.testing.assert_array_equal(alone, dx[part])


@pytest.mark.parametrize("case", cases.POOL, ids=lambda case: case.id)
def test_wrong_references_fail(case):
    x, dy = case.inputs()
    y = functional.avg_pool2d(x, case.size, case.stride, **case.options)
    dx = functional.avg_pool2d_backward(dy, x, case.size, case.stride, **case.options)
    geometry = case.geometry

    def noticed(**changes):
        expected = reference.avg_pool_forward(x, **{**geometry, **changes})
        forward = forward_ratio(case, y, x, expected) > 1
        assert forward == (backward_ratio(case, dx, dy, expected_backward(case, dy, **changes)) > 1)
        return forward

    assert not noticed()
    smallest = min(
        (rows.stop - rows.start) * (columns.stop - columns.start)
        for p, q in np.ndindex(geometry["P"], geometry["Q"])
        for rows, columns in [reference.pool_window(p, q, *[geometry[k] for k in BACKWARD_KEYS], case.H, case.W)]
    )
    assert noticed(whole=True) == (smallest < case.size**2)
    if case.H == 1:
        return  # one pixel: nothing to be wrong about
    assert noticed(size=case.size + 1) or case.size >= case.H
    if max(geometry["top"], geometry["left"]) + 2 <= case.size:  # otherwise a window would hold no pixel
        assert noticed(size=case.size - 1)
        assert noticed(top=geometry["top"] + 1)
        assert noticed(left=geometry["left"] + 1)
