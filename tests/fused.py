"""Products that do what follows them on the way to memory, beside the same done by kernels of its own."""

from __future__ import annotations

import cases
import numpy as np

from convnet.kernels.control import control_words
from convnet.kernels.shapes import LinearShape
from convnet.ops import ops
from convnet.ops.layout import pack_local_weight, pack_weight, weight_copy


def put_weight(machine, packed, precision):
    return machine.put(weight_copy(packed) if precision == "bf16" else packed)


def conv_backward_data(machine, precision, case: cases.ConvCase, dy, weight, x):
    """dx twice: from the product with x as its mask, and from the product and ``relu_backward``. Also for a
    ``LocalCase``.
    """
    local = isinstance(case, cases.LocalCase)
    pack, backward_data = (
        (pack_local_weight, ops.local_backward_data) if local else (pack_weight, ops.conv_backward_data)
    )
    shape, stream = machine.padded(case.shape(N=case.N)), machine.stream
    x, dy = (machine.put_images(values, precision) for values in (x, dy))
    weight = put_weight(machine, pack(weight, case.groups), precision)
    fused, parts = (machine.activations(shape.x, precision) for _ in range(2))
    backward_data(stream, shape, precision, dy, weight, fused, x)
    backward_data(stream, shape, precision, dy, weight, parts, None)
    ops.relu_backward(stream, precision, parts, x, parts)
    return fused, parts


def linear_backward_data(machine, precision, case: cases.LinearCase, dy, weight, x):
    """The same."""
    shape, stream = machine.padded(LinearShape(case.N, case.C, case.K, 1)), machine.stream
    x, dy = (machine.put_images(values, precision) for values in (x, dy))
    weight = put_weight(machine, weight.T.copy(), precision)
    workspace = machine.workspace(machine.device.kernels.linear_workspace(shape, precision))
    fused, parts = (machine.activations(shape.x, precision) for _ in range(2))
    ops.linear_backward_data(stream, shape, precision, dy, weight, fused, x, workspace)
    ops.linear_backward_data(stream, shape, precision, dy, weight, parts, None, workspace)
    ops.relu_backward(stream, precision, parts, x, parts)
    return fused, parts


def linear_forward(machine, precision, case: cases.LinearCase, x, weight, bias, dropout, step):
    """y twice: from the product with dropout, and from the product and ``dropout_forward``; at test (``step`` None)
    ``scale``.
    """
    shape, stream = machine.padded(LinearShape(case.N, case.C, case.K, 1)), machine.stream
    dropout = machine.padded(dropout)
    operands = machine.put_images(x, precision), put_weight(machine, weight.T.copy(), precision), machine.put(bias)
    workspace = machine.workspace(machine.device.kernels.linear_workspace(shape, precision))
    control = None if step is None else machine.put(control_words(step))
    fused, parts = (machine.activations(shape.y, precision) for _ in range(2))
    ops.linear_forward(stream, shape, precision, *operands, fused, case.relu, dropout, control, workspace)
    ops.linear_forward(stream, shape, precision, *operands, parts, case.relu, None, None, workspace)
    if control is None:
        factor = np.float32(1) - np.float32(dropout.p)
        ops.scale(stream, precision, parts, factor.item(), parts)
    else:
        mask = machine.empty(shape.y, np.uint8)
        ops.dropout_forward(stream, dropout, precision, parts, parts, mask, control)
    return fused, parts


def assert_same_bits(actual, expected):
    np.testing.assert_array_equal(actual.download().view(np.uint8), expected.download().view(np.uint8))
