"""The sizes of what layers yield, and of their weights, from the definition alone."""

from __future__ import annotations

import math

from .ini import DefinitionError, error
from .nodes import (
    Blur,
    Concat,
    Conv,
    Cost,
    Data,
    Definition,
    EltMax,
    EltSum,
    FullyConnected,
    Href,
    Kernel,
    Local,
    Nailbed,
    Node,
    Norm,
    Pool,
    TreeFC,
    Unknown,
    Weighted,
)

COLOURS = 3
MOST_FEATURES = 2**31

Shape = tuple[int, ...] | None  # (channels, rows, columns), (features,), or None: the data says


def sizes(definition: Definition, side: int) -> dict[str, Shape]:
    """What every node but costs yields for a picture of 3 x ``side`` x ``side``: (C, H, W), or (features,).

    None for labels and for a tree of classes, whose sizes the data says. Raises ``DefinitionError`` where ``channels``
    are others than there are, windows do not fit, inputs that are added are not alike, and for unknown types.
    """
    found: dict[str, Shape] = {}
    for node in definition.nodes:
        if not isinstance(node, Cost):
            shape = _shape(node, [found[name] for name in node.inputs], side, definition.file)
            if shape is not None and not 0 < math.prod(shape) <= MOST_FEATURES:
                raise _wrong(definition.file, node, f"yields {math.prod(shape):.3g} numbers a picture: too many")
            found[node.name] = shape
    for node in definition.nodes:
        if isinstance(node, Weighted) and any(node.weight_sources):
            _check_sources(definition, node, found)
    return found


def weight_shapes(node: Weighted, found: dict[str, Shape]) -> list[tuple[int, ...]]:
    """Of the matrix of every input, its own or not: conv (K, C/groups, R, S), local (P, Q, K, C/groups, R, S), fc
    (outputs, features). ``found`` is from ``sizes``. Raises ``ValueError`` for a tree, which only the data knows.
    """
    if isinstance(node, Conv):
        places = tuple((found[node.name] or ())[1:]) if isinstance(node, Local) else ()
        return [(*places, node.filters, kernel.filter_channels, kernel.size, kernel.size) for kernel in node.kernels]
    if isinstance(node, FullyConnected):
        return [(node.outputs, math.prod(found[name] or ())) for name in node.inputs]
    raise ValueError(f"{node.name}: the weights of a tree of classes are as many as the data says")


def parameters(definition: Definition, found: dict[str, Shape]) -> int:
    """How many weights and biases the network has; shared weights count once. ``found`` is from ``sizes``.

    Raises ``DefinitionError`` for a tree of classes, which only the data knows.
    """
    count = 0
    for node in definition.nodes:
        if isinstance(node, TreeFC):
            raise _wrong(definition.file, node, "has as many weights as the data's tree of classes has nodes")
        if isinstance(node, Weighted):
            shapes = zip(weight_shapes(node, found), node.weight_sources, strict=True)
            count += sum(math.prod(shape) for shape, source in shapes if source is None)
            shape = found[node.name] or ()
            count += math.prod(shape[:1] if isinstance(node, Conv) and node.tied else shape)
    return count


def _wrong(file: str, node: Node, text: str) -> DefinitionError:
    return error(file, node.line, f"[{node.name}] {text}")


def _shape(node: Node, inputs: list[Shape], side: int, file: str) -> Shape:
    if isinstance(node, Data):
        return _data(node, side, file)
    if isinstance(node, Unknown):
        raise _wrong(file, node, f"type={node.type}: nothing is known about what such a layer yields")
    if isinstance(node, TreeFC):
        return None
    if isinstance(node, Conv):
        sides = {_conv(node, kernel, shape, file) for kernel, shape in zip(node.kernels, inputs, strict=True)}
        if len(sides) > 1:
            raise _wrong(file, node, f"its inputs make pictures of sides {', '.join(map(str, sorted(sides)))}")
        (out,) = sides
        return node.filters, out, out
    if isinstance(node, FullyConnected):
        for name, shape in zip(node.inputs, inputs, strict=True):
            if shape is None:
                raise _wrong(file, node, f"reads {name}, whose size only the data says")
        return (node.outputs,)
    if isinstance(node, (Pool, Norm, Blur, Nailbed, Href)):
        return _windows(node, inputs[0], file)
    if isinstance(node, (EltSum, EltMax)):
        known = [shape for shape in inputs if shape is not None]
        if len(set(map(math.prod, known))) > 1:
            texts = ", ".join(f"{name} {_text(shape)}" for name, shape in zip(node.inputs, inputs, strict=True))
            raise _wrong(file, node, f"its inputs differ in size: {texts}")
        return known[0] if known else None
    if isinstance(node, Concat):
        return _concat(inputs)
    return inputs[0]


def _text(shape: Shape) -> str:
    return "of the data's size" if shape is None else " x ".join(map(str, shape))


def _data(node: Data, side: int, file: str) -> Shape:
    if node.index != 0:
        return None
    rows = COLOURS * side * side
    if node.start == 0 and node.end in (None, rows):
        return COLOURS, side, side
    if node.start >= rows or (node.end or rows) > rows:
        raise _wrong(file, node, f"rows {node.start} to {node.end or 'the last'} of {rows}")
    return ((node.end or rows) - node.start,)


def _side(node: Node, channels: int, shape: Shape, file: str) -> int:
    """Of the pictures that a layer reads. Features without a form become as many channels as the layer declares."""
    if shape is None:
        raise _wrong(file, node, "reads what has the data's size, and needs pictures")
    if len(shape) == 3:
        if shape[0] != channels:
            raise _wrong(file, node, f"channels={channels}, and its input {_text(shape)} has {shape[0]}")
        return shape[1]
    side = math.isqrt(shape[0] // channels)
    if side == 0 or channels * side * side != shape[0]:
        raise _wrong(file, node, f"channels={channels}: {shape[0]} features are no square pictures of so many")
    return side


def _conv(node: Conv, kernel: Kernel, shape: Shape, file: str) -> int:
    side = _side(node, kernel.channels, shape, file)
    reach = side + 2 * kernel.padding
    if kernel.size > reach:
        text = f"filterSize={kernel.size} is larger than {side} pixels with padding={kernel.padding}"
        raise _wrong(file, node, text)
    out = 1 + -(-(reach - kernel.size) // kernel.stride)
    if node.modules and (node.modules - 1) * kernel.stride + kernel.size < side + kernel.padding:
        raise _wrong(file, node, f"modulesX={node.modules} do not cover {side} pixels; {out} would")
    return node.modules or out


def _windows(node: Pool | Norm | Blur | Nailbed | Href, shape: Shape, file: str) -> Shape:
    side = _side(node, node.channels, shape, file)
    if isinstance(node, Nailbed):
        return node.channels, -(-side // node.stride), -(-side // node.stride)
    if isinstance(node, Norm) and node.kind != "cmrnorm" and node.size > side:
        raise _wrong(file, node, f"size={node.size} is larger than its pictures of {side} pixels")
    if not isinstance(node, Pool):
        return node.channels, side, side
    if node.size > side:
        raise _wrong(file, node, f"sizeX={node.size} is larger than its pictures of {side} pixels")
    out = node.outputs or 1 + -(-(side - node.start - node.size) // node.stride)
    last = node.start + (out - 1) * node.stride
    if out < 1 or node.start + node.size <= 0 or last >= side:
        text = f"start={node.start}, sizeX={node.size}, stride={node.stride}, outputsX={node.outputs}"
        raise _wrong(file, node, f"{text}: a window lies outside of pictures of {side} pixels")
    return node.channels, out, out


def _concat(inputs: list[Shape]) -> Shape:
    known = [shape for shape in inputs if shape is not None]
    if len(known) < len(inputs):
        return None
    if all(len(shape) == 3 for shape in known) and len({shape[1:] for shape in known}) == 1:
        return sum(shape[0] for shape in known), *known[0][1:]
    return (sum(map(math.prod, known)),)


def _check_sources(definition: Definition, node: Weighted, found: dict[str, Shape]) -> None:
    """Weights are shared with those that are like them and come earlier."""
    nodes = {other.name: other for other in definition.nodes}
    for index, source in enumerate(node.weight_sources):
        if source is None:
            continue
        owner = nodes[source.layer]
        assert isinstance(owner, Weighted)
        if owner is node and source.index >= index:
            raise _wrong(definition.file, node, f"weightSource of input {index} is not above it")
        if isinstance(node, TreeFC) or isinstance(owner, TreeFC):
            raise _wrong(definition.file, node, "weightSource: a tree of classes shares no weights")
        mine, other = weight_shapes(node, found)[index], weight_shapes(owner, found)[source.index]
        if mine != other:
            texts = f"{_text(mine)} against {_text(other)} of {source.layer}[{source.index}]"
            raise _wrong(definition.file, node, f"weightSource of input {index}: {texts}")
