"""A small checkpoint as the 2012 program and its relatives wrote them, object by object."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from data_files import Instance, python2_pickle

from convnet.definitions.geometry import sizes, weight_shapes
from convnet.definitions.nodes import Conv, Definition, Local, Weighted


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


def of_definition(definition: Definition, side: int, seed: int = 0) -> dict[str, Any]:
    """As their program would have written the network of a definition file for images of ``side`` pixels, with random
    weights, velocities, and channels where these are drawn."""
    found = sizes(definition, side)
    rng = np.random.default_rng(seed)
    layers = []
    for node in definition.nodes:
        if not isinstance(node, Weighted):
            continue
        shapes = weight_shapes(node, found)
        if not isinstance(node, Conv):
            layers.append(full(node.name, int(rng.integers(1000)), tuple(s[1] for s in shapes), node.outputs))
            continue
        kernels = node.kernels
        K, P = node.filters, found[node.name][1]
        places = P * P if isinstance(node, Local) else 1
        matrices = [(places * k.filter_channels * k.size**2, K) for k in kernels]
        bias = (K if node.tied else K * P * P, 1)
        drawn = [
            [int(c) for _ in range(k.groups * k.filter_channels // k.channels) for c in rng.permutation(k.channels)]
            if k.sparse
            else None
            for k in kernels
        ]
        layers.append({
            "name": node.name, "type": "local" if isinstance(node, Local) else "conv", "filters": K,
            "filterChannels": [k.filter_channels for k in kernels], "filterSize": [k.size for k in kernels],
            "groups": [k.groups for k in kernels], "channels": [k.channels for k in kernels], "modulesX": P,
            "sharedBiases": int(node.tied), "randSparse": [int(k.sparse) for k in kernels], "filterConns": drawn,
            "weights": arrays(int(rng.integers(1000)), *matrices),
            "weightsInc": arrays(int(rng.integers(1000)), *matrices),
            "biases": arrays(int(rng.integers(1000)), bias)[0], "biasesInc": arrays(int(rng.integers(1000)), bias)[0],
        })  # fmt: skip
    state = {"layers": {layer["name"]: layer for layer in layers}, "epoch": 3, "batchnum": 1}
    return {"model_state": state, "op": {}}
