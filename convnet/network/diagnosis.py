"""Where the numbers of a step stop being finite."""

from __future__ import annotations

import numpy as np

from ..devices.protocol import Array
from ..ops.layout import to_float32
from .wiring import Wiring


def first_not_finite(wiring: Wiring, labels: Array, n: int) -> str | None:
    """What of a step on the ``n`` images that the first layer reads is the first that is not finite, in words: weights,
    the input, then the layers forward, the loss, the gradients backward; None where all of it is finite.

    Computes forward and backward once, looking at every block's output before another one takes its memory.
    """
    for block in wiring.learning:
        for parameter in (parameter for layer in block for parameter in layer.parameters):
            if not _finite(parameter.value):
                return parameter.name
    if not all(_finite(read.x) for _, read in wiring.images):
        return "the input"
    for group, block in zip(wiring.groups, wiring.forward_by_block(train=True), strict=True):
        if not all(_finite(layer.y) for layer in block):
            return f"the output of {' and '.join(placed.layer.name for placed in group.layers)}"
    wiring.backward(labels, n)
    if not np.isfinite(wiring.losses.download()[:n]).all():
        return "the loss"
    for block in reversed(wiring.learning):
        for parameter in (parameter for layer in block if not layer.frozen for parameter in layer.parameters):
            if not _finite(parameter.gradient):
                return f"the gradient of {parameter.name}"
    return None


def _finite(array: Array) -> bool:
    return bool(np.isfinite(to_float32(array.download())).all())
