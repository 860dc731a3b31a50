"""Ingest from images kept as luma and halved chroma, on every device: what ``ingest`` makes of their colours."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet.kernels.shapes import IngestShape
from convnet.ops import ops

SCALE = (1 / 64, 1 / 58.4, 1 / 57.1)


def stored(count, H, W, seed=0):
    """luma, cb, cr: all values there are, so that colours reach both ends."""
    random = np.random.default_rng(seed)
    half = ((H + 1) // 2, (W + 1) // 2)
    return tuple(random.integers(0, 256, (count, *size), dtype=np.uint8) for size in ((H, W), half, half))


def batch(n, count, H, W, crop):
    """index, windows, noise, mean."""
    random = np.random.default_rng(n)
    index = random.integers(0, count, n).astype(np.int32)
    windows = np.stack([random.integers(0, H - crop + 1, n), random.integers(0, W - crop + 1, n), np.arange(n) % 2], 1)
    windows[0, :2] = H - crop, W - crop  # the last place there is
    mean = random.uniform(90, 150, (3, crop, crop)).astype(np.float32)
    return index, windows.astype(np.int32), random.normal(0, 20, (n, 3)).astype(np.float32), mean


def run(machine, precision, op, operands, n, H, W, crop, fold):
    shape = machine.padded(IngestShape(n, n, H, W, crop, 1, SCALE, fold))
    y = machine.activations(shape.y, precision)
    op(machine.stream, shape, precision, *map(machine.put, operands), y)
    return machine.images(y, shape.N)


@pytest.mark.parametrize(
    ("n", "H", "W", "crop", "fold"),
    [(1, 8, 8, 8, 1), (3, 13, 11, 7, 1), (9, 40, 44, 37, 1), (65, 9, 10, 7, 1), (3, 15, 14, 12, 4)],
)
def test_ingest_planar(machine, precision, n, H, W, crop, fold):
    """To the bit, odd sizes, images taken twice and the empty places of a batch included."""
    if fold > 1 and machine.device.name == "cpu":
        pytest.skip("cpu does not fold images")
    count = 4
    planes, (index, *rest) = stored(count, H, W), batch(n, count, H, W, crop)
    y = run(machine, precision, ops.ingest_planar, (*planes, index, *rest), n, H, W, crop, fold)

    def expected(planes, index):
        images = reference.planar_colours(*planes)[index]
        return run(machine, precision, ops.ingest, (images, *rest), n, H, W, crop, fold)

    np.testing.assert_array_equal(y, expected(planes, index))
    assert (y[n:] == 0).all()
    luma, cb, cr = planes
    for wrong in ((luma, cr, cb), (luma, np.roll(cb, 1, 2), cr), (luma, cb, np.roll(cr, 1, 1)), (luma ^ 1, cb, cr)):
        assert (y != expected(wrong, index)).any()
    assert (y != expected(planes, (index + 1) % count)).any()


def test_colours_are_those_of_jfif():
    """Every luma and chroma: the fixed point is within half a level, and a little, of the formulas."""
    cb, cr = (plane.reshape(-1, 1, 1).astype(np.uint8) for plane in np.divmod(np.arange(65536), 256))
    for luma in (0, 1, 128, 255):
        found = reference.planar_colours(np.full_like(cb, luma), cb, cr)[:, 0, 0]
        blue, red = (plane.reshape(-1) - 128.0 for plane in (cb, cr))
        real = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], -1)
        assert np.abs(found - np.clip(real, 0, 255)).max() < 0.51


def test_planes_that_do_not_fit_together_are_refused(machine):
    index, *rest = batch(2, 4, 9, 9, 7)
    luma, cb, cr = stored(4, 9, 9)
    for planes, name in (((luma, cb[:, 1:], cr), "cb"), ((luma, cb, cr[:3]), "cr"), ((luma[:, :, 1:], cb, cr), "luma")):
        with pytest.raises(ValueError, match=f"ingest_planar: {name} must have shape"):
            run(machine, "fp32", ops.ingest_planar, (*planes, index, *rest), 2, 9, 9, 7, 1)
