"""What changes from step to step, in device memory: the twin of ``src/kernels/control.hpp``."""

from __future__ import annotations

from typing import Any

import numpy as np

WORDS = 8
STEP, LR, MOMENTUM, WEIGHT_DECAY, STOPPED, SPOILED = range(6)

U32 = np.ndarray[Any, np.dtype[np.uint32]]


def control_words(step: int = 0, lr: float = 0.0, momentum: float = 0.0, weight_decay: float = 0.0) -> U32:
    """The control block at the start of a step: uint32 (8,), of which three are the bits of float32 numbers."""
    words = np.zeros(WORDS, np.uint32)
    words[STEP] = step
    words[LR : WEIGHT_DECAY + 1] = np.array([lr, momentum, weight_decay], np.float32).view(np.uint32)
    return words
