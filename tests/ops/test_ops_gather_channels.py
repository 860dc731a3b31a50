"""Channels picked by a table, and the sums that go back to them, on every device."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.shapes import GatherShape
from convnet.ops import ops
from convnet.ops.layout import places_of_channels

# N, C, H, W and the table
PROBLEMS = {
    "one": (1, 1, 1, 1, [0]),
    "all-once": (3, 5, 3, 2, [4, 2, 0, 1, 3]),
    "often-and-never": (9, 4, 5, 3, [3, 0, 3, 3, 0, 3, 1]),
    "oversampled": (65, 8, 3, 3, [7, 1, 5, 3, 0, 2, 6, 4, 2, 6, 0, 4, 3, 5, 1, 7]),
    "few": (5, 12, 2, 7, [11]),
    "large-N8": (8, 3, 37, 29, [2, 2, 0]),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_gather_channels(device, precision, name):
    """Copies are exact; sums are to the bit in ascending order, in float32, rounded once."""
    N, C, H, W, table = PROBLEMS[name]
    random = np.random.default_rng(N)
    options = {"device": device, "precision": precision}
    x = reference.held(random.standard_normal((N, C, H, W), dtype=np.float32), precision)
    dy = reference.held(random.standard_normal((N, len(table), H, W), dtype=np.float32), precision)
    np.testing.assert_array_equal(functional.gather_channels(x, table, **options), x[:, table])
    expected = np.zeros((N, C, H, W), np.float32)
    for i, c in enumerate(table):
        expected[:, c] += dy[:, i]
    dx = functional.gather_channels_backward(dy, np.array(table), C, **options)
    np.testing.assert_array_equal(dx, reference.held(expected, precision))


def test_the_order_of_the_sums_shows():
    dy = np.array([1e8, 1.0, -1e8], np.float32).reshape(1, 3, 1, 1)
    assert functional.gather_channels_backward(dy, [0, 0, 0], 1).item() == 0
    assert functional.gather_channels_backward(dy[:, [0, 2, 1]], [0, 0, 0], 1).item() == 1


def test_places_of_channels():
    starts, places = places_of_channels(np.array([2, 0, 2, 4, 0]), 6)
    assert starts.tolist() == [0, 2, 2, 4, 4, 5, 5]
    assert places.tolist() == [1, 4, 0, 2, 3]


@pytest.mark.parametrize("lanes", [8, 24, 104])
@pytest.mark.parametrize("device", ["emu", "cuda"], indirect=True)
def test_blocks_of_any_size(machine, lanes):
    N, C, H, W, table = 2 * lanes, 3, 2, 5, [2, 0, 2, 1]
    shape = GatherShape(N, C, H, W, len(table), lanes)
    x = np.random.default_rng(lanes).standard_normal(shape.x, dtype=np.float32)
    y = machine.empty(shape.y)
    ops.gather_channels(machine.stream, shape, "fp32", machine.put(x), machine.put(np.array(table, np.int32)), y)
    np.testing.assert_array_equal(y.download(), x[:, table])


X, DY = np.ones((2, 3, 2, 2), np.float32), np.ones((2, 2, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: functional.gather_channels(X, [0, 3]),
            r"gather_channels: table must lie in 0..2, the channels, got 0..3",
        ),
        (
            lambda: functional.gather_channels(X, [-1]),
            r"gather_channels: table must lie in 0..2, the channels, got -1..-1",
        ),
        (lambda: functional.gather_channels(X, [0.5]), r"table must be whole numbers of shape \(K,\), got float64"),
        (lambda: functional.gather_channels(X, []), r"table must be whole numbers of shape \(K,\)"),
        (lambda: functional.gather_channels(X[0], [0]), r"gather_channels: x must have shape \(N, C, H, W\)"),
        (
            lambda: functional.gather_channels_backward(DY, [0], 3),
            "dy must have a channel for each entry of table, got 2 and 1",
        ),
        (
            lambda: functional.gather_channels_backward(DY, [0, 3], 3),
            r"gather_channels_backward: table must lie in 0..2",
        ),
        (lambda: functional.gather_channels_backward(DY, [0, 1], 0), "channels must lie between 1 and"),
    ],
)
def test_wrong_calls(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 3, 5, 4), (9, 2, 1, 7), (65, 3, 4, 9), (130, 1, 3, 2)], ids=str)
def test_mirror(device, precision, size):
    x = reference.held(np.random.default_rng(size).standard_normal(size, dtype=np.float32), precision)
    y = functional.mirror2d(x, device=device, precision=precision)
    np.testing.assert_array_equal(y, x[..., ::-1])


def test_what_cannot_be_mirrored():
    with pytest.raises(ValueError, match=r"mirror2d: x must have shape \(N, C, H, W\)"):
        functional.mirror2d(np.ones((2, 3), np.float32))
