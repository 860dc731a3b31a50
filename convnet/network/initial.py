"""The weights a network starts with: Box and Muller on words of NumPy's Philox generator, whose stream is stable."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.rng import WEIGHTS
from .spec import Conv, Linear, NetworkSpec, parameter_shapes, placed_layers

Values = np.ndarray[Any, Any]


def initial_weights(spec: NetworkSpec, seed: int) -> dict[str, Values]:
    """Normal weights, constant biases, in the shapes users see."""
    weights: dict[str, Values] = {}
    shapes = parameter_shapes(spec)
    for placed in placed_layers(spec):
        layer = placed.layer
        if not isinstance(layer, (Conv, Linear)):
            continue
        shape = shapes[f"{layer.name}.weight"]
        std = layer.std if layer.std is not None else float(np.sqrt(2.0 / np.prod(shape[1:])))
        count = int(np.prod(shape))
        stream = np.random.Philox(key=seed, counter=np.array([0, 0, placed.index, WEIGHTS], np.uint64))
        u = (stream.random_raw(-(-count // 2)).view(np.uint32).astype(np.float32) + 0.5) * np.float32(2.0**-32)
        u = np.maximum(u.reshape(2, -1), np.float32(2.0**-33))
        radius, angle = np.sqrt(-2.0 * np.log(u[0])), np.float32(2.0 * np.pi) * u[1]
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
        weights[f"{layer.name}.weight"] = (np.float32(std) * normal).reshape(shape)
        weights[f"{layer.name}.bias"] = np.full(placed.K, layer.bias, np.float32)
    return weights
