"""Images of others into lanes: the kernel against NumPy's own order, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference

from convnet.devices.protocol import padded
from convnet.kernels.shapes import PackShape
from convnet.ops import layout, ops

# valid images, their sizes, and how they lie: contiguous, channels last, every second, from the second value on
CASES = [
    (5, (3, 7, 6), "contiguous"),
    (65, (2, 3, 5), "contiguous"),
    (130, (1, 1, 1), "contiguous"),
    (8, (3, 8, 8), "channels last"),
    (3, (2, 5, 4), "every second"),
    (9, (4, 3, 3), "one further on"),
    (4, (2, 3, 3), "the same ones"),
]


def laid_out(values: np.ndarray, how: str) -> np.ndarray:
    """The same values, lying differently."""
    if how == "channels last":
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if how == "every second":
        return np.repeat(values, 2, axis=3)[..., ::2]
    if how == "the same ones":
        return np.broadcast_to(values[:1], values.shape)
    return values


def memory(values: np.ndarray, front: int) -> np.ndarray:
    """All that lies between the first and the last of ``values``, behind ``front`` more."""
    last = sum((size - 1) * stride for size, stride in zip(values.shape, values.strides, strict=True))
    inner = np.lib.stride_tricks.as_strided(values, (last // 4 + 1,), (4,))
    return np.concatenate([np.full(front, np.nan, np.float32), inner])


@pytest.mark.parametrize("fold", [1, 2, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2].replace(' ', '-')}")
def test_pack(machine, precision, case, fold):
    n, sizes, how = case
    values = laid_out(np.random.default_rng(0).standard_normal((n, *sizes), dtype=np.float32), how)
    front = 1 if how == "one further on" else 0
    lanes = machine.device.lanes(n)
    N = padded(n, lanes)
    steps = [stride // 4 for stride in values.strides]
    shape = PackShape(N, n, *sizes, lanes, fold, front, *steps)
    x, y = machine.put(memory(values, front)), machine.activations(shape.y, precision)
    if machine.device.name == "cpu" and fold > 1:
        with pytest.raises(ValueError, match="pack: images are not folded on a CPU, got fold="):
            ops.pack(machine.stream, shape, precision, x, y)
        return
    ops.pack(machine.stream, shape, precision, x, y)
    expected = layout.pack_activations(layout.fold_images(np.ascontiguousarray(values), fold), lanes, N)
    np.testing.assert_array_equal(layout.to_float32(y.download()), reference.rounded(expected, precision))


def test_filters_are_images_of_their_group(machine):
    weight = np.random.default_rng(0).standard_normal((134, 3, 2, 5), dtype=np.float32)
    shape = PackShape(134, 134, 3, 2, 5, 67, 1, 0, 30, 10, 5, 1)
    y = machine.activations(shape.y, "fp32")
    ops.pack(machine.stream, shape, "fp32", machine.put(weight.reshape(-1)), y)
    np.testing.assert_array_equal(y.download(), layout.pack_weight(weight, 2))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"valid": 0}, "pack: valid must be 1 to N, got valid=0 N=8"),
        ({"valid": 9}, "pack: valid must be 1 to N"),
        ({"C": 0}, "pack: every size must be at least 1"),
        ({"fold": 0}, "pack: (fold|every size)"),
        ({"N": 9}, "pack: "),
        ({"step_n": 2**31 - 1, "valid": 8, "N": 8, "lanes": 8}, None),
    ],
)
def test_shapes_that_are_none(machine, changes, text):
    """The kernel itself: what Python would refuse before."""
    shape = replace(PackShape(8, 8, 1, 2, 2, 8, 1, 0, 4, 4, 2, 1), **changes)
    x, y = machine.empty((64,)), machine.empty((64,))
    if text is None:  # the memory that it needs is not there
        with pytest.raises(ValueError, match="pack: x must have 15032385533 elements"):
            ops.pack(machine.stream, shape, "fp32", x, y.view(shape.y))
        return

    def run():
        machine.stream.launch(machine.device.kernels.pack, shape, "fp32", x, y)
        machine.device.synchronize()

    with pytest.raises(ValueError, match=text):
        run()
