"""Philox4x32-10, the counter-based generator behind every random decision; the kernels use the same one.

A word depends on (counter, key) alone, so that masks, crops and noise do not change with placement, workers or a
resume. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np

# The last counter word says what a draw is for, so that no two uses ever share one.
DROPOUT, AUGMENT, NOISE, WEIGHTS, SHUFFLE, SHAPES, RATES, POOLING = range(8)

U32 = np.ndarray[Any, np.dtype[np.uint32]]


def philox(c0: Any, c1: Any, c2: Any, c3: Any, seed: int) -> U32:
    """Four random words for every counter: broadcasts the counter words, returns uint32 of shape (4, ...)."""
    c = [np.asarray(word, np.uint64) & np.uint64(0xFFFFFFFF) for word in (c0, c1, c2, c3)]
    x0, x1, x2, x3 = (np.array(word) for word in np.broadcast_arrays(*c))
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            (b >> np.uint64(32)) ^ x1 ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ x3 ^ np.uint64(k1),
            a & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3]).astype(np.uint32)


def uniform(words: U32) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Words as numbers in (0, 1), never 0 or 1."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def normal(words: U32) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Standard normal numbers from words of shape (4, ...), by Box and Muller: shape (4, ...)."""
    u = uniform(words)
    radius, angle = np.sqrt(-2.0 * np.log(u[0::2])), 2.0 * np.pi * u[1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
