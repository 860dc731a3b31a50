"""What products are made of: IEEE float32, or operands for tensor cores.

"fp32" and "tf32" keep activations in float32; "tf32" rounds the operands of products to 10 bits of mantissa on their
way in. "bf16" keeps activations, their gradients and a copy of the weights in bfloat16, the upper half of a float32:
NumPy has no such type, so that an array of them has the dtype uint16. Parameters, their gradients and sums are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

PRECISIONS = ("fp32", "tf32", "bf16")
BF16 = np.dtype(np.uint16)
COPY_MULTIPLE = 8  # rows of a bfloat16 copy of weights are padded with zeros to a multiple of it: 16 bytes


def activation_dtype(precision: str) -> np.dtype[Any]:
    """Of activations and their gradients on a device."""
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be "fp32", "tf32" or "bf16", got {precision!r}')
    return BF16 if precision == "bf16" else np.dtype(np.float32)


def copy_columns(columns: int) -> int:
    """Length of a row of a bfloat16 weight copy."""
    return -(-columns // COPY_MULTIPLE) * COPY_MULTIPLE


def dtype_name(dtype: Any) -> str:
    """As users know it."""
    return "bfloat16 (uint16)" if np.dtype(dtype) == BF16 else np.dtype(dtype).name
