"""From the layers of a specification to layers on devices: which of them run as one, and each side's share of them."""

from __future__ import annotations

from ..kernels.shapes import ConvShape, DropoutShape, LinearShape, LrnShape, PoolShape
from . import spec
from .layers import ConvLayer, DropoutLayer, Fusion, LayerOnDevice, LinearLayer, LrnLayer, LrnPoolLayer, PoolLayer, Side


def input_fold(network: spec.NetworkSpec, precision: str) -> int:
    """How many rows and columns of the images become channels of one, so that the first layer has stride 1."""
    first = network.layers[0]
    if precision == "bf16" and isinstance(first, spec.Conv) and not first.padding and not network.crop % first.stride:
        return first.stride
    return 1


def conv_shape(placed: spec.Placed, share: int, N: int, lanes: int) -> ConvShape:
    """What one of ``share`` sides computes of a convolution."""
    layer = placed.layer
    assert isinstance(layer, spec.Conv)
    whole = layer.joins or placed.groups == 1
    return ConvShape.of(
        N,
        placed.C if whole else placed.C // share,
        placed.H,
        placed.W,
        placed.K // share,
        layer.size,
        layer.size,
        stride=layer.stride,
        padding=layer.padding,
        groups=1 if whole else placed.groups // share,
        ceil_mode=layer.ceil_mode,
        lanes=lanes,
    )


def linear_shape(placed: spec.Placed, share: int, N: int, lanes: int) -> LinearShape:
    """What one of ``share`` sides computes of a fully-connected layer, where it has a part in it."""
    layer = placed.layer
    assert isinstance(layer, spec.Linear)
    return LinearShape(N, placed.C * placed.H * placed.W, placed.K // share if layer.split else placed.K, lanes)


def fuse(placed: list[spec.Placed], fused: bool) -> list[list[spec.Placed]]:
    """The layers in order, those together that run as one: normalisation with the pooling behind it, and a linear layer
    with the dropout behind its ReLU, unless that is scaled in training, which its product does not know.
    """
    groups: list[list[spec.Placed]] = []
    for layer in placed:
        before = groups[-1][-1].layer if groups else None
        pair = (isinstance(before, spec.Lrn) and isinstance(layer.layer, spec.Pool)) or (
            isinstance(before, spec.Linear)
            and before.activation == "relu"
            and isinstance(layer.layer, spec.Dropout)
            and not layer.layer.scaled
        )
        if fused and pair:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def masks(group: list[spec.Placed]) -> bool:
    """Whether what runs ``group`` can apply the derivative of a ReLU in front of it."""
    return not isinstance(group[0].layer, spec.Dropout) and not (
        isinstance(group[0].layer, spec.Lrn) and len(group) == 1
    )


def build(
    group: list[spec.Placed], side: Side, fusion: Fusion, N: int, lanes: int, network: spec.NetworkSpec, seed: int
) -> LayerOnDevice:
    """This side's share of what runs as one."""
    first, last = group[0], group[-1]
    layer, name, share = first.layer, first.layer.name, side.count
    if isinstance(layer, spec.Conv):
        folds = first.index == 0 and input_fold(network, side.precision) > 1
        shape = conv_shape(first, share, N, lanes)
        return ConvLayer(name, side, fusion, shape, layer.activation, folds, first=first.index == 0)
    if isinstance(layer, spec.Linear):
        drop = dropout_shape(last, side, N, lanes, seed) if isinstance(last.layer, spec.Dropout) else None
        return LinearLayer(name, side, fusion, linear_shape(first, share, N, lanes), layer.activation, drop)
    if isinstance(layer, spec.Dropout):
        drop = dropout_shape(first, side, N, lanes, seed)
        like: tuple[int, ...] = (N // lanes, drop.features, lanes)
        if first.H > 1:
            like = (N // lanes, first.C // share, first.H, first.W, lanes)
        return DropoutLayer(name, side, fusion, drop, like, layer.scaled)
    if isinstance(layer, spec.Pool):
        return PoolLayer(name, side, fusion, pool_shape(first, share, N, lanes))
    lrn = LrnShape(
        N,
        first.C // share,
        first.H,
        first.W,
        1 if layer.across else network.towers // share,
        lanes,
        layer.size,
        layer.alpha,
        layer.beta,
        layer.k,
    )
    if isinstance(last.layer, spec.Pool):
        return LrnPoolLayer(name, side, fusion, lrn, pool_shape(last, share, N, lanes))
    return LrnLayer(name, side, fusion, lrn)


def pool_shape(placed: spec.Placed, share: int, N: int, lanes: int) -> PoolShape:
    """What one of ``share`` sides computes of a pooling layer."""
    layer = placed.layer
    assert isinstance(layer, spec.Pool)
    C = placed.C // share
    return PoolShape.of(N, C, placed.H, placed.W, layer.size, layer.stride, ceil_mode=layer.ceil_mode, lanes=lanes)


def dropout_shape(placed: spec.Placed, side: Side, N: int, lanes: int, seed: int) -> DropoutShape:
    """What one side drops of a layer; masks of different layers differ."""
    layer = placed.layer
    assert isinstance(layer, spec.Dropout)
    features = placed.C * placed.H * placed.W // side.count
    offset = side.index * features
    return DropoutShape(N, features, lanes, offset, side.count * features, layer.p, seed, placed.index)
