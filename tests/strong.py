"""Weights for tests, stronger than those that a network begins with."""

from __future__ import annotations

import numpy as np


def strong_weights(net, seed: int = 1) -> dict[str, np.ndarray]:
    """Random weights that keep the size of activations and gradients (He et al. 2015) and random biases.

    With the paper's own initial weights most gradients are so small that errors would drown. Products of several inputs
    are added up: each has its share.
    """
    random = np.random.default_rng(seed)
    weights = {}
    for name, value in net.weights().items():
        layer, _, kind = name.partition(".")
        terms = sum(other.startswith(f"{layer}.weight") for other in net.weights())
        fan_in = np.prod(value.shape[-3:] if value.ndim > 2 else value.shape[1:]) * terms
        fan_in = 100 if kind == "bias" else fan_in
        weights[name] = random.standard_normal(value.shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
    return weights
