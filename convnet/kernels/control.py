"""What changes from step to step, in device memory: the twin of ``src/kernels/control.hpp``."""

from __future__ import annotations

from typing import Any

import numpy as np

WORDS = 8
STEP, LR, MOMENTUM, WEIGHT_DECAY, STOPPED, SPOILED, FIRST, IMAGES = range(WORDS)

U32 = np.ndarray[Any, np.dtype[np.uint32]]


def control_words(
    step: int = 0,
    lr: float = 0.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    *,
    first: int = 0,
    images: int = 0,
) -> U32:
    """The control block at the start of a step: uint32 (8,), of which three are the bits of float32 numbers. Of a step
    that is shared out ``first`` is the place of the first image here, and ``images`` how many all are."""
    words = np.zeros(WORDS, np.uint32)
    words[STEP], words[FIRST], words[IMAGES] = step, first, images
    words[LR : WEIGHT_DECAY + 1] = np.array([lr, momentum, weight_decay], np.float32).view(np.uint32)
    return words
