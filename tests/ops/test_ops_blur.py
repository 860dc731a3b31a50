"""What shrinks pictures, blur and nailbed, on every device against float64, and references that are wrong."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference

from convnet import functional


def blur_ratio(case, y, x, wrong=None, precision="fp32") -> float:
    """Two sums of ``size`` products, of taps that are rounded."""
    right, magnitude = (reference.blur(values, case.size, case.std) for values in (x, np.abs(x)))
    limit = 2 * reference.sum_limit(magnitude, case.size) + 4 * reference.UNIT * magnitude
    limit = reference.held_limit(limit, right, precision)
    return reference.ratio(y, right if wrong is None else wrong, limit)


@pytest.mark.parametrize("case", cases.BLUR, ids=lambda case: case.id)
def test_blur(device, precision, case, within):
    x, dy = (reference.held(values, precision) for values in case.inputs())
    options = {"device": device, "precision": precision}
    y = functional.blur2d(x, case.size, case.std, **options)
    within("blur", blur_ratio(case, y, x, precision=precision))
    dx = functional.blur2d_backward(dy, case.size, case.std, **options)
    within("blur dx", blur_ratio(case, dx, dy, precision=precision))
    np.testing.assert_array_equal(functional.blur2d(x, case.size, case.std, **options), y)


@pytest.mark.parametrize("case", cases.BLUR, ids=lambda case: case.id)
def test_the_gradient_of_blur_is_its_transpose(device, case):
    """<dy, blur(x)> = <blur(dy), x>."""
    x, dy = case.inputs()
    y = functional.blur2d(x, case.size, case.std, device=device).astype(np.float64)
    dx = functional.blur2d_backward(dy, case.size, case.std, device=device).astype(np.float64)
    scale = np.linalg.norm(dy) * np.linalg.norm(x)
    assert abs((dy * y).sum() - (dx * x).sum()) <= 32 * reference.UNIT * scale


@pytest.mark.parametrize("case", cases.BLUR, ids=lambda case: case.id)
def test_blur_as_pytorch(device, case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, dy = case.inputs()
    taps = torch.tensor(reference.blur_taps(case.size, case.std))[None, None]
    theirs = torch.tensor(x, dtype=torch.float64).reshape(-1, 1, case.H, case.W).requires_grad_()
    y = torch.nn.functional.conv2d(theirs, taps, padding=case.size // 2)
    y.backward(torch.tensor(dy, dtype=torch.float64).reshape(y.shape))
    ours = functional.blur2d(x, case.size, case.std, device=device)
    assert blur_ratio(case, ours, x, y.detach().numpy().reshape(x.shape)) <= 1
    dx = functional.blur2d_backward(dy, case.size, case.std, device=device)
    assert blur_ratio(case, dx, dy, theirs.grad.numpy().reshape(x.shape)) <= 1


@pytest.mark.parametrize("case", cases.BLUR, ids=lambda case: case.id)
def test_wrong_blurs_are_noticed(case):
    x, _ = case.inputs()
    y = functional.blur2d(x, case.size, case.std)
    if case.std > 0.5 and (case.std < 10 or case.H > 1):
        assert blur_ratio(case, y, x, reference.blur(x, case.size, case.std * 1.1)) > 1 or case.std > 10
    if case.std > 0.5 and case.size < 9 and case.H * case.W > 1:
        assert blur_ratio(case, y, x, reference.blur(x, case.size + 2, case.std)) > 1
    if case.std > 0.5:  # the rim reads zeros, and not what lies nearest
        half = case.size // 2
        framed = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)), mode="edge")
        near = reference.blur(framed, case.size, case.std)[:, :, half:-half, half:-half]
        assert blur_ratio(case, y, x, near) > 1


@pytest.mark.parametrize("case", cases.NAILBED, ids=lambda case: case.id)
def test_nailbed(device, precision, case):
    """Both exact."""
    x, dy = (reference.held(values, precision) for values in case.inputs())
    options = {"device": device, "precision": precision}
    rows, columns = (reference.nailbed_pixels(side, case.stride) for side in (case.H, case.W))
    y = functional.nailbed2d(x, case.stride, **options)
    np.testing.assert_array_equal(y, x[:, :, rows][:, :, :, columns])
    assert y.shape == dy.shape
    expected = np.zeros_like(x)
    expected[:, :, np.array(rows)[:, None], columns] = dy
    np.testing.assert_array_equal(functional.nailbed2d_backward(dy, x, case.stride, **options), expected)


def test_nailbed_of_2012(device):
    """224 pixels and a stride of 4: 56, of which the first is pixel 2."""
    x = np.arange(224, dtype=np.float32).reshape(1, 1, 1, 224)
    y = functional.nailbed2d(x, 4, device=device)
    np.testing.assert_array_equal(y[0, 0, 0], 2 + 4 * np.arange(56))
