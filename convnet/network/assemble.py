"""From the layers of a specification to layers on devices: which of them run as one, and each side's share of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.shapes import (
    BlurShape,
    ConvShape,
    DropoutShape,
    GatherShape,
    LinearShape,
    LocalShape,
    LrnShape,
    NailbedShape,
    PoolShape,
    SpatialNormShape,
)
from . import spec
from .layers import Fusion, LayerOnDevice, Side
from .maps import (
    ActivationLayer,
    AvgPoolLayer,
    BlurLayer,
    ConcatLayer,
    DropoutLayer,
    LrnLayer,
    LrnPoolLayer,
    MaxLayer,
    MirrorLayer,
    NailbedLayer,
    PoolLayer,
    RandPoolLayer,
    ScaleLayer,
    SpatialNormLayer,
    SumLayer,
)
from .products import ConvLayer, LinearLayer, LocalLayer, Paces, Table


@dataclass(frozen=True)
class Group:
    """Layers that run as one, one behind the other. ``inputs``: the indices of the groups that they read, -1 for the
    images; ``learns``: it has weights, or something that it reads does.
    """

    layers: tuple[spec.Placed, ...]
    inputs: tuple[int, ...]
    learns: bool

    @property
    def first(self) -> spec.Placed:
        return self.layers[0]

    @property
    def ends_in_relu(self) -> bool:
        """A dropout behind it included."""
        layer = self.first.layer
        return isinstance(layer, spec.Weighted) and layer.activation == "relu"

    @property
    def masks(self) -> bool:
        """Whether it can apply the derivative of a ReLU in front of it."""
        layer = self.first.layer
        if any(isinstance(t.layer, (spec.Conv, spec.Local)) and t.layer.connections for t in self.first.terms):
            return False  # its gradients are those of picked maps
        return isinstance(layer, (*spec.Weighted, spec.Pool, spec.AvgPool)) or len(self.layers) > 1


def input_fold(network: spec.NetworkSpec, precision: str) -> int:
    """How many rows and columns of the images become channels of one, so that the first layer has stride 1."""
    first, *others = spec.placed_layers(network)
    alone = len(first.terms) == 1 and all(-1 not in placed.inputs for placed in others)
    layer = first.layer
    if (
        precision in ("bf16", "tf32")
        and alone
        and isinstance(layer, spec.Conv)
        and layer.tied
        and not (layer.padding or layer.connections)
    ):
        return layer.stride if not network.crop % layer.stride else 1
    return 1


def conv_shape(placed: spec.Placed, share: int, N: int, lanes: int) -> ConvShape:
    """What one of ``share`` sides computes of a convolution of one input."""
    layer = placed.layer
    assert isinstance(layer, spec.Conv)
    part = share if placed.groups > 1 and not layer.joins else 1
    return ConvShape.of(
        N,
        (len(layer.connections) or placed.C) // part,
        placed.H,
        placed.W,
        placed.K // share,
        layer.size,
        layer.size,
        stride=layer.stride,
        padding=layer.padding,
        groups=placed.groups // part,
        ceil_mode=layer.ceil_mode,
        lanes=lanes,
    )


def local_shape(placed: spec.Placed, share: int, N: int, lanes: int) -> LocalShape:
    """What one of ``share`` sides computes of a local layer."""
    layer = placed.layer
    assert isinstance(layer, spec.Local)
    part = share if placed.groups > 1 else 1
    C, K, size = (len(layer.connections) or placed.C) // part, placed.K // share, layer.size
    options = {"stride": layer.stride, "padding": layer.padding, "groups": placed.groups // part, "lanes": lanes}
    return LocalShape.of(N, C, placed.H, placed.W, K, size, size, **options)


def linear_shape(placed: spec.Placed, share: int, N: int, lanes: int) -> LinearShape:
    """What one of ``share`` sides computes of a fully-connected layer of one input, where it has a part in it."""
    layer = placed.layer
    assert isinstance(layer, spec.Linear)
    return LinearShape(N, placed.C * placed.H * placed.W, placed.K // share if layer.split else placed.K, lanes)


def groups(network: spec.NetworkSpec, fused: bool) -> list[Group]:
    """What runs as one, in order: normalisation with the pooling behind it, and a linear layer with the dropout behind
    its ReLU, unless that is scaled in training, which its product does not know; where nothing else reads what lies
    between the two.
    """
    placed = spec.placed_layers(network)
    costed = {cost.input for cost in network.costs}
    readers = [[other for other in placed if one.index in other.inputs] for one in placed]
    found: list[Group] = []
    of_layer = {-1: -1}
    for one in placed:
        if one.index in of_layer:
            continue
        behind = readers[one.index]
        pair = fused and len(behind) == 1 and one.layer.name not in costed and _pair(one.layer, behind[0].layer)
        layers = (one, behind[0]) if pair else (one,)
        inputs = tuple(of_layer[place] for place in one.inputs)
        learns = bool(one.terms) or any(found[i].learns for i in inputs if i >= 0)
        of_layer |= {layer.index: len(found) for layer in layers}
        found.append(Group(layers, inputs, learns))
    return found


def _pair(layer: spec.Layer, behind: spec.Layer) -> bool:
    if isinstance(behind, spec.Dropout):
        return isinstance(layer, spec.Linear) and layer.activation == "relu" and not behind.scaled
    return isinstance(layer, spec.Lrn) and isinstance(behind, spec.Pool)


def fusions(found: list[Group], network: spec.NetworkSpec, fused: bool) -> list[Fusion]:
    """How the groups fit together."""
    readers = [[j for j, other in enumerate(found) if i in other.inputs] for i in range(len(found))]
    costed = {cost.input for cost in network.costs}
    masked = [
        fused
        and group.ends_in_relu
        and bool(readers[i])
        and all(found[j].masks for j in readers[i])
        and group.layers[-1].layer.name not in costed
        for i, group in enumerate(found)
    ]
    return [
        Fusion(
            index,
            len(found),
            inputs=tuple(i if i >= 0 and found[i].learns else None for i in group.inputs),
            reader=min(readers[index], default=len(found)),
            masks=tuple(i >= 0 and masked[i] for i in group.inputs),
            masked=masked[index],
        )
        for index, group in enumerate(found)
    ]


def build(
    group: Group, side: Side, fusion: Fusion, N: int, lanes: int, network: spec.NetworkSpec, seed: int
) -> LayerOnDevice:
    """This side's share of what runs as one."""
    first, last = group.first, group.layers[-1]
    layer, share = first.layer, side.count
    at = layer.name, side, fusion
    C, H, W = first.C // share, first.H, first.W
    like = _like(C, H, W, N, lanes)  # what it reads
    if isinstance(layer, spec.Conv):
        folds = first.index == 0 and input_fold(network, side.precision) > 1
        shapes = tuple(conv_shape(term, share, N, lanes) for term in first.terms)
        tables = tuple(_table(term) for term in first.terms)
        return ConvLayer(*at, shapes, tables, _paces(first), layer.activation, folds, layer.tied)
    if isinstance(layer, spec.Linear):
        drop = dropout_shape(last, side, N, lanes, seed) if isinstance(last.layer, spec.Dropout) else None
        linear = tuple(linear_shape(term, share, N, lanes) for term in first.terms)
        return LinearLayer(*at, linear, _paces(first), layer.activation, drop)
    if isinstance(layer, spec.Lrn):
        lrn = lrn_shape(first, share, N, lanes, network)
        if isinstance(last.layer, spec.Pool):
            return LrnPoolLayer(*at, lrn, pool_shape(last, share, N, lanes))
        return LrnLayer(*at, lrn)
    if isinstance(layer, spec.Pool):
        return PoolLayer(*at, pool_shape(first, share, N, lanes))
    if isinstance(layer, spec.Dropout):
        return DropoutLayer(*at, dropout_shape(first, side, N, lanes, seed), like, layer.scaled)
    if isinstance(layer, spec.Scale):
        return ScaleLayer(*at, like, layer.factor)
    if isinstance(layer, spec.Concat):
        return ConcatLayer(*at, tuple(_like(*_maps(network, place), N, lanes) for place in first.inputs))
    if isinstance(layer, spec.Sum):
        coefficients = layer.coefficients or (1.0,) * len(first.inputs)
        return SumLayer(*at, like, coefficients)
    if isinstance(layer, spec.Local):
        return LocalLayer(*at, local_shape(first, share, N, lanes), _table(first), _paces(first), layer.activation)
    if isinstance(layer, spec.AvgPool):
        return AvgPoolLayer(*at, pool_shape(first, share, N, lanes))
    if isinstance(layer, spec.RandPool):
        drawn = pool_shape(first, share, N, lanes)
        return RandPoolLayer(*at, drawn, draw_shape(first, side, N, lanes, seed, drawn.C * drawn.P * drawn.Q))
    if isinstance(layer, (spec.SpatialNorm, spec.ContrastNorm)):
        norm = SpatialNormShape(N, C, H, W, lanes, layer.size, layer.alpha, layer.beta, layer.k)
        return SpatialNormLayer(*at, norm, isinstance(layer, spec.ContrastNorm))
    if isinstance(layer, spec.Activation):
        return ActivationLayer(*at, like, layer.kind, layer.a, layer.b)
    if isinstance(layer, spec.Blur):
        return BlurLayer(*at, BlurShape(N, C, H, W, lanes, layer.size, layer.std))
    if isinstance(layer, spec.Nailbed):
        return NailbedLayer(*at, NailbedShape.of(N, C, H, W, layer.stride, lanes=lanes))
    if isinstance(layer, spec.Mirror):
        return MirrorLayer(*at, like, GatherShape.mirror(N, C, H, W, lanes))
    if isinstance(layer, spec.Max):
        return MaxLayer(*at, like, len(first.inputs))
    raise ValueError(f"layer {layer.name}: {type(layer).__name__} is not built")


def _table(placed: spec.Placed) -> Table:
    layer = placed.layer
    assert isinstance(layer, (spec.Conv, spec.Local))
    return placed.C, layer.connections


def _paces(placed: spec.Placed) -> Paces:
    layer = placed.layer
    assert isinstance(layer, spec.Weighted)
    weights = zip(placed.weight_names, placed.terms, strict=True)
    return Paces({name: term.layer.pace for name, term in weights}, layer.bias_pace)  # type: ignore[union-attr]


def _maps(network: spec.NetworkSpec, place: int) -> tuple[int, int, int]:
    """The maps that a layer writes, or those of the images: how many, and their sides."""
    if place < 0:
        return 3, network.crop, network.crop
    placed = spec.placed_layers(network)[place]
    return placed.K, placed.P, placed.Q


def _like(C: int, H: int, W: int, N: int, lanes: int) -> tuple[int, ...]:
    """The shape of so many maps, or features."""
    return (N // lanes, C, H, W, lanes) if H > 1 else (N // lanes, C, lanes)


def lrn_shape(placed: spec.Placed, share: int, N: int, lanes: int, network: spec.NetworkSpec) -> LrnShape:
    """What one of ``share`` sides computes of a normalisation layer."""
    layer = placed.layer
    assert isinstance(layer, spec.Lrn)
    C, towers = placed.C // share, 1 if layer.across else network.towers // share
    return LrnShape(N, C, placed.H, placed.W, towers, lanes, layer.size, layer.alpha, layer.beta, layer.k)


def pool_shape(placed: spec.Placed, share: int, N: int, lanes: int) -> PoolShape:
    """What one of ``share`` sides computes of a pooling layer."""
    layer = placed.layer
    assert isinstance(layer, (spec.Pool, spec.AvgPool, spec.RandPool))
    front = layer.padding if isinstance(layer, spec.AvgPool) else 0
    padding, ceil_mode = (front, 0, front, 0), isinstance(layer, spec.RandPool) or layer.ceil_mode
    C, size, stride = placed.C // share, layer.size, layer.stride
    return PoolShape.of(N, C, placed.H, placed.W, size, stride, padding=padding, ceil_mode=ceil_mode, lanes=lanes)


def dropout_shape(placed: spec.Placed, side: Side, N: int, lanes: int, seed: int) -> DropoutShape:
    """What one side drops of a layer; masks of different layers differ."""
    layer = placed.layer
    assert isinstance(layer, spec.Dropout)
    features = placed.C * placed.H * placed.W // side.count
    return draw_shape(placed, side, N, lanes, seed, features, layer.p)


def draw_shape(
    placed: spec.Placed, side: Side, N: int, lanes: int, seed: int, features: int, p: float = 0.0
) -> DropoutShape:
    """What one side draws for a layer, of which it has so many features."""
    offset = side.index * features
    return DropoutShape(N, features, lanes, offset, side.count * features, p, seed, placed.index)
