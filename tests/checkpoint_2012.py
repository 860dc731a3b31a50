"""A small checkpoint as the 2012 program and its relatives wrote them, object by object."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from data_files import Instance, python2_pickle


def arrays(seed: int, *shapes: tuple[int, ...], fortran: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return [np.asfortranarray(values) for values in drawn] if fortran else drawn


def windowed(
    name: str, kind: str, seed: int, inputs: int, *, sparse: bool = False, shared: bool = True
) -> dict[str, Any]:
    """A convolution or a local layer: 8 filters in 2 groups of 3 x 3, over 5 x 5 places; C = 3 and side - k of input
    k, so that all extents differ. ``sparse``: the first input's channels are drawn."""
    K, P = 8, 5
    channels, sides = [3 + k for k in range(inputs)], [3 - k for k in range(inputs)]
    places = P * P if kind == "local" else 1
    shapes = [(places * c * s * s, K) for c, s in zip(channels, sides, strict=True)]
    bias = (K if kind == "conv" and shared else K * P * P, 1)
    return {
        "name": name, "type": kind, "filters": K, "filterChannels": channels, "filterSize": sides,
        "groups": [2] * inputs, "filterPixels": [s * s for s in sides], "channels": [2 * c for c in channels],
        "modules": P * P, "modulesX": P, "padding": [-1] * inputs, "sharedBiases": int(shared), "partialSum": 1,
        "initW": [0.01] * inputs, "wc": [0.0] * inputs,
        "weights": arrays(seed, *shapes), "weightsInc": arrays(seed + 1, *shapes),
        "biases": arrays(seed + 2, bias)[0], "biasesInc": arrays(seed + 3, bias)[0],
        "randSparse": [int(sparse and k == 0) for k in range(inputs)],
        "filterConns": [[0, 2, 4, 1, 3, 5] if sparse and k == 0 else None for k in range(inputs)],
    }  # fmt: skip


def full(name: str, seed: int, inputs: tuple[int, ...], outputs: int) -> dict[str, Any]:
    shapes = [(n, outputs) for n in inputs]
    return {
        "name": name, "type": "fc", "outputs": outputs, "numInputs": list(inputs), "initW": [0.01],
        "weights": arrays(seed, *shapes, fortran=True), "weightsInc": arrays(seed + 1, *shapes, fortran=True),
        "biases": arrays(seed + 2, (1, outputs))[0], "biasesInc": arrays(seed + 3, (1, outputs))[0],
    }  # fmt: skip


def checkpoint(named: bool = True, **more: Any) -> dict[str, Any]:
    """``named``: layers in a dict, as from 2012 on; else in a list. Layers refer to those in front and behind."""
    data = {"name": "data", "type": "data", "dataIdx": 0, "inputs": [], "inputLayers": []}
    layers = [data, windowed("conv1", "conv", 10, 1), windowed("conv2", "conv", 20, 2, sparse=True)]
    layers += [windowed("conv3", "conv", 30, 1, shared=False), windowed("local1", "local", 40, 2)]
    layers += [
        full("fc10", 50, (6, 4), 3),
        {"name": "probs", "type": "softmax", "inputs": [5]},
        *more.pop("layers", []),
    ]
    for before, layer in pairwise(layers):
        layer["inputLayers"], before["outputLayers"] = [before], [layer]
    parser = Instance("options", "IntegerOptionParser", {})
    option = Instance("options", "Option", {"letter": "a", "value": 1, "parser": parser, "excuses": ["b"]})
    expression = Instance("options", "OptionExpression", {"options": (option,), "bare": parser})
    options = {"a": option, "b": option, "when": expression}
    state = {
        "layers": {layer["name"]: layer for layer in layers} if named else layers, "epoch": 12, "batchnum": 3,
        "train_outputs": [({"logprob": [2.25, np.float32(0.5), np.float64(0.25)]}, 128)] * 3, "test_outputs": [],
        "rng": np.arange(4, dtype=np.int64), "use": np.array([True, False]), **more,
    }  # fmt: skip
    return {"model_state": state, "op": Instance("options", "OptionsParser", {"options": options})}


def written(**options: Any) -> bytes:
    return python2_pickle(checkpoint(**options))
