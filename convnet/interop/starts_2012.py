"""Weights of a checkpoint of the 2012 program for the network that its definition file becomes here.

Layers of equal columns are one layer with towers here, and what reads several columns has their matrices side by side:
``Defined.slices`` says where each lies. Everything has the file's names and shapes on the one side, and ours on the
other; nothing is changed but the places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..definitions import nodes
from ..network.defined import Defined, Slice
from ..network.spec import Conv, Local, parameter_shapes, placed_layers
from .checkpoints_2012 import Layer, read_checkpoint
from .files import WeightsError

Values = np.ndarray[Any, Any]
Layers = Mapping[str, Layer]  # of a checkpoint, by name
Sources = dict[str, Sequence[Values | None]]  # by a file's layer, matrices of its inputs, and last its bias


def weights_of_checkpoint(path: str | Path, defined: Defined) -> dict[str, Values]:
    """Weights and biases for the network ``defined``, by our names, from the checkpoint at ``path``: where the
    definition says what layers begin as (``initWFunc``, ``initBFunc``), those tensors alone, else all of them.

    Where channels were drawn (``randSparse``), ``connected`` is to be asked for the network first. Raises
    ``WeightsError`` for what is no checkpoint of it.
    """
    layers = read_checkpoint(path).layers
    return initial_from(defined, layers) if _begins(defined) else all_weights(defined, layers)


def all_weights(defined: Defined, layers: Layers) -> dict[str, Values]:
    """All weights and biases of the network, of a checkpoint's layers of the same names. Raises ``WeightsError`` where
    one is missing, is not in the definition file, or has other shapes than that says.
    """
    return _all_of(defined, layers, "weights", "biases")


def all_velocities(defined: Defined, layers: Layers) -> dict[str, Values]:
    """Their momentum terms, as ``Network.load_velocity`` takes them."""
    return _all_of(defined, layers, "weightsInc", "biasesInc")


def initial_from(defined: Defined, layers: Layers) -> dict[str, Values]:
    """The tensors that the definition file wants to begin as a checkpoint's, of the layers that it names. Raises
    ``WeightsError`` as ``all_weights`` does, and where it says so of a part of one of our tensors alone.
    """
    sources: Sources = {}
    for node in _weighted(defined):
        weights: Sequence[Values | None] = [None] * len(node.inputs)
        bias: Values | None = None
        if node.weights_from:
            source = _layer(defined, layers, node.weights_from)
            _check_connections(defined, node, source)
            weights = source["weights"]
        if node.bias_from:
            bias = _layer(defined, layers, node.bias_from)["biases"]
        sources[node.name] = [*weights, bias]
    return _placed(defined, sources)


def connected(defined: Defined, layers: Layers, own: bool = False) -> Defined:
    """The same network with the channels that a checkpoint's layers drew (``filterConns``), in place of those that
    were drawn here: of the layers that ``initCFunc`` names, or where the definition says nothing of what layers begin
    as, or with ``own``, of those of the same names. Raises ``WeightsError``.
    """
    changed = {layer.name: layer for layer in defined.spec.layers}
    for node in _weighted(defined):
        if not isinstance(node, nodes.Conv) or not any(kernel.sparse for kernel in node.kernels):
            continue
        name = node.name if own or not _begins(defined) else node.connections_from
        if name is None:
            continue
        drawn = _layer(defined, layers, name)["filterConns"]
        for i in (i for i, kernel in enumerate(node.kernels) if kernel.sparse):
            name_here, now, begin, end, first = _drawn(defined, node, i)
            theirs = drawn[i] if i < len(drawn) else None
            if theirs is None or len(theirs) != end - begin or max(theirs) >= node.kernels[i].channels:
                raise WeightsError(
                    f"the checkpoint's layer {name} has no channels drawn for input {i} of {node.name} that are "
                    f"{end - begin} numbers below {node.kernels[i].channels}, as {defined.definition.file} says"
                )
            table = (*now[:begin], *(first + c for c in theirs), *now[end:])
            changed[name_here] = _with_table(changed[name_here], _number(defined, node, i), table)
        defined = replace(defined, spec=replace(defined.spec, layers=tuple(changed.values())))
    return defined


# ---- of one layer


def _weighted(defined: Defined) -> list[nodes.Weighted]:
    return [node for node in defined.definition.nodes if isinstance(node, nodes.Weighted)]


def _begins(defined: Defined) -> bool:
    """Whether the definition says of any layer what it begins as."""
    return any(
        node.weights_from or node.bias_from or (isinstance(node, nodes.Conv) and node.connections_from)
        for node in _weighted(defined)
    )


def _layer(defined: Defined, layers: Layers, name: str) -> Layer:
    if name not in layers:
        raise WeightsError(
            f"the checkpoint has no layer {name}, which {defined.definition.file} asks for; it has "
            f"{', '.join(layers):.200}"
        )
    return layers[name]


def _all_of(defined: Defined, layers: Layers, weights: str, biases: str) -> dict[str, Values]:
    known = {node.name for node in _weighted(defined)}
    if extra := [name for name in layers if name not in known]:
        raise WeightsError(f"the checkpoint has weights of {extra[0]}, which {defined.definition.file} does not have")
    sources: Sources = {}
    for node in _weighted(defined):
        layer: Any = _layer(defined, layers, node.name)
        _check_connections(defined, node, layer)
        sources[node.name] = [*layer[weights], layer[biases]]
    return _placed(defined, sources)


# ---- places


def _placed(defined: Defined, sources: Sources) -> dict[str, Values]:
    """Our tensors that ``sources`` have all of."""
    shapes = parameter_shapes(defined.spec)
    found: dict[str, Values] = {}
    parts: dict[str, dict[str, bool]] = {}  # by tensor, whether each of the file's layers in it is there
    for name, matrices in sources.items():
        places = defined.slices[name]
        if len(matrices) != len(places):
            raise WeightsError(
                f"the checkpoint's {name} has {len(matrices) - 1} inputs, and {len(places) - 1} in "
                f"{defined.definition.file}"
            )
        for i, (pieces, matrix) in enumerate(zip(places, matrices, strict=True)):
            what = "bias" if i == len(places) - 1 else "weights" if len(places) == 2 else f"weights of input {i}"
            for piece in pieces:
                parts.setdefault(piece.tensor, {})[f"{what} of {name}"] = matrix is not None
            if matrix is not None:
                _put(found, shapes, pieces, matrix, f"the checkpoint's {what} for {name} of {defined.definition.file}")
    for tensor, there in parts.items():
        if any(there.values()) and not all(there.values()):
            taken = next(name for name, is_there in there.items() if is_there)
            other = next(name for name, is_there in there.items() if not is_there)
            raise WeightsError(
                f"{defined.definition.file} takes the {taken} from a checkpoint, and the {other} not; both are in "
                f"{tensor} here, which begins as one"
            )
    return found


def _put(
    found: dict[str, Values], shapes: Mapping[str, tuple[int, ...]], pieces: list[Slice], matrix: Values, told: str
) -> None:
    """Writes a matrix of the checkpoint to where its pieces lie."""
    shape = shapes[pieces[0].tensor]
    of_outputs = 2 if len(shape) == 6 else 0  # local weights are (P, Q, K, C, R, S)
    outputs = pieces[0].outputs[1] - pieces[0].outputs[0]
    widths = [piece.inputs[1] - piece.inputs[0] for piece in pieces if piece.inputs]
    wanted = list(shape)
    wanted[of_outputs] = outputs
    if widths:
        wanted[of_outputs + 1] = sum(widths)
    if matrix.shape != tuple(wanted):
        raise WeightsError(
            f"{told}: found {_text(matrix.shape)} where {_text(wanted)} is needed; the checkpoint is of another "
            "network, or for images of another size (--crop)"
        )
    read = 0
    for piece in pieces:
        target = found.setdefault(piece.tensor, np.zeros(shapes[piece.tensor], np.float32))
        there: list[slice] = [slice(None)] * len(shape)
        here: list[slice] = [slice(None)] * len(shape)
        there[of_outputs] = slice(*piece.outputs)
        if piece.inputs:
            there[of_outputs + 1] = slice(*piece.inputs)
            width = piece.inputs[1] - piece.inputs[0]
            here[of_outputs + 1] = slice(read, read + width)
            read += width
        target[tuple(there)] = matrix[tuple(here)]


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# ---- channels that were drawn


def _number(defined: Defined, node: nodes.Conv, i: int) -> int:
    """Which of our layer's inputs the node's input ``i`` is part of."""
    return int(defined.slices[node.name][i][0].tensor.rpartition(".weight")[2] or 0)


def _drawn(defined: Defined, node: nodes.Conv, i: int) -> tuple[str, tuple[int, ...], int, int, int]:
    """Our layer and its connections to what the node's input ``i`` is, from where to where the node's are in these, and
    the first of the channels that its column reads."""
    piece = defined.slices[node.name][i][0]
    name = piece.tensor.partition(".")[0]
    placed = next(one for one in placed_layers(defined.spec) if one.layer.name == name)
    term = placed.terms[_number(defined, node, i)]
    assert isinstance(term.layer, (Conv, Local))
    first, last = piece.outputs
    width = placed.K // (last - first)
    length = len(term.layer.connections) // width
    column = first // (last - first)
    own_part = node.kernels[i].channels < term.C
    first_channel = column * node.kernels[i].channels if own_part else 0
    return name, term.layer.connections, column * length, (column + 1) * length, first_channel


def _with_table(layer: Any, number: int, table: tuple[int, ...]) -> Any:
    if number == 0:
        return replace(layer, connections=table)
    terms = list(layer.terms)
    terms[number - 1] = replace(terms[number - 1], connections=table)
    return replace(layer, terms=tuple(terms))


def _check_connections(defined: Defined, node: nodes.Weighted, layer: Layer) -> None:
    """Weights are of the channels that the checkpoint's layer drew, and of no others."""
    for i, kernel in enumerate(node.kernels if isinstance(node, nodes.Conv) else ()):
        theirs = layer["filterConns"][i] if i < len(layer["filterConns"]) else None
        if not kernel.sparse and theirs is None:
            continue
        own: list[int] | None = None
        if kernel.sparse and isinstance(node, nodes.Conv):
            _, table, begin, end, first = _drawn(defined, node, i)
            own = [c - first for c in table[begin:end]]
        if own != theirs:
            raise WeightsError(
                f"{node.name}: the weights of input {i} are for other channels than those that the network reads; "
                "take the checkpoint's channels, too (initCFunc)"
            )
