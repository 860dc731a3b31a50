"""The weights a network starts with: Box and Muller on words of NumPy's Philox generator, whose stream is stable."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.rng import WEIGHTS
from .spec import NetworkSpec, Weighted, placed_layers

Values = np.ndarray[Any, Any]


def initial_weights(spec: NetworkSpec, seed: int) -> dict[str, Values]:
    """Normal weights, constant biases, in the shapes users see."""
    weights: dict[str, Values] = {}
    for placed in placed_layers(spec):
        layer, shapes = placed.layer, placed.shapes
        if not isinstance(layer, Weighted):
            continue
        for i, (name, term) in enumerate(zip(placed.weight_names, placed.terms, strict=True)):
            std = term.layer.std  # type: ignore[union-attr]
            counter = np.array([0, i, placed.index, WEIGHTS], np.uint64)
            weights[f"{layer.name}.{name}"] = _normal(shapes[name], std, np.random.Philox(key=seed, counter=counter))
        weights[f"{layer.name}.bias"] = np.full(shapes["bias"], layer.bias, np.float32)
    return weights


def _normal(shape: tuple[int, ...], std: float | None, stream: np.random.Philox) -> Values:
    """``std`` None: sqrt(2 / fan-in), of a layer with weights for every pixel the fan-in of one."""
    if std is None:
        std = float(np.sqrt(2.0 / np.prod(shape[-3:] if len(shape) > 2 else shape[1:])))
    count = int(np.prod(shape))
    u = (stream.random_raw(-(-count // 2)).view(np.uint32).astype(np.float32) + 0.5) * np.float32(2.0**-32)
    u = np.maximum(u.reshape(2, -1), np.float32(2.0**-33))
    radius, angle = np.sqrt(-2.0 * np.log(u[0])), np.float32(2.0 * np.pi) * u[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return (np.float32(std) * normal).reshape(shape)
