"""Networks as data: their layers, sizes, parameters and FLOPs, and which layers see all towers.

A network is a sequence of layers. A layer reads the one in front of it, or those that its ``inputs`` name, which stand
above it; "images" are the network's. Layers whose windows would be cut round up to whole ones where they say so.

A network of T towers has channels that are cut into T equal parts. A layer that does not ``join`` reads its own tower's
part only (a grouped convolution); one that joins reads the parts of all. Where the towers live is not said here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ..kernels.costs import COSTS
from ..kernels.shapes import output_size

ACTIVATIONS = ("relu", "tanh")
SOFTMAX, SQUARES = "softmax", "squares"  # costs; the other ones are in kernels/costs.py
IMAGES = "images"  # the input of a network, among the inputs of a layer


@dataclass(frozen=True)
class Pace:
    """How fast one tensor learns: factors on the learning rate, the weight decay and the momentum of a step.

    A rate of 0 keeps the tensor and its velocity as they are. ``schedule`` is one of the 2012 program's, such as
    "dexp[tgtFactor=250,numSteps=4]": see ``convnet.training.schedule``.
    """

    lr: float = 1.0
    decay: float = 1.0
    momentum: float = 1.0
    schedule: str | None = None


BIAS = Pace(decay=0.0)


@dataclass(frozen=True)
class Term:
    """A further input of a layer of weights, with weights of its own: the products of all inputs are summed up, and one
    bias is added. ``size`` to ``connections`` are a convolution's, see ``Conv``.
    """

    input: str
    size: int = 1
    stride: int = 1
    padding: int = 0
    joins: bool = False
    groups: int = 1
    connections: tuple[int, ...] = ()
    std: float | None = 0.01
    pace: Pace = Pace()


@dataclass(frozen=True)
class Conv:
    """Convolution with bias and activation: "relu", "tanh" or none. ``std`` None: sqrt(2 / fan-in) (He et al. 2015).

    ``groups``: into how many parts the maps that it reads are cut, within a tower. With ``connections`` the maps it
    reads are those, by number, in this order, and it is they that are cut. ``tied`` False: a bias for every map and
    pixel.
    """

    name: str
    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    joins: bool = False
    ceil_mode: bool = False
    std: float | None = 0.01
    bias: float = 0.0
    activation: str | None = "relu"
    inputs: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()
    groups: int = 1
    connections: tuple[int, ...] = ()
    tied: bool = True
    pace: Pace = Pace()
    bias_pace: Pace = BIAS


@dataclass(frozen=True)
class Local:
    """As a convolution, but with weights and biases of their own for every pixel of the output; it never joins."""

    name: str
    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    std: float | None = 0.01
    bias: float = 0.0
    activation: str | None = "relu"
    inputs: tuple[str, ...] = ()
    groups: int = 1
    connections: tuple[int, ...] = ()
    pace: Pace = Pace()
    bias_pace: Pace = BIAS


@dataclass(frozen=True)
class Linear:
    """Fully-connected layer; it always joins. ``split`` False: not cut into towers, lives on the first device."""

    name: str
    features: int
    activation: str | None = "relu"
    split: bool = True
    std: float | None = 0.01
    bias: float = 0.0
    inputs: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()
    pace: Pace = Pace()
    bias_pace: Pace = BIAS


@dataclass(frozen=True)
class Lrn:
    """Local response normalisation across the maps of one tower, or with ``across`` of all of them."""

    name: str
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    across: bool = False
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpatialNorm:
    """Response normalisation over ``size`` x ``size`` pixels of the same map: x (k + alpha sum x^2)^-beta."""

    name: str
    size: int
    alpha: float
    beta: float
    k: float = 1.0
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContrastNorm:
    """The same with deviations from the means of such windows in the sum."""

    name: str
    size: int
    alpha: float
    beta: float
    k: float = 1.0
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Max-pooling; windows overlap where stride < size. Rounds up, as cuda-convnet does, unless told otherwise."""

    name: str
    size: int = 3
    stride: int = 2
    ceil_mode: bool = True
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class AvgPool:
    """Average pooling: the mean of those pixels of a window that exist; ``padding`` says how far in front of the image
    the first window begins.
    """

    name: str
    size: int = 3
    stride: int = 2
    padding: int = 0
    ceil_mode: bool = True
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class RandPool:
    """Stochastic pooling (Zeiler and Fergus 2013): in training a value of each window is drawn with a probability
    proportional to max(x, 0), at test the output is the mean of what would be drawn. Rounds up as ``Pool`` does.
    """

    name: str
    size: int = 3
    stride: int = 2
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Activation:
    """What is done to every value alone, as a layer of its own; ``a`` and ``b`` as in ``functional.activation``."""

    name: str
    kind: str = "relu"
    a: float = 1.0
    b: float = 1.0
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dropout:
    """Zeroes maps' values or features with probability ``p`` in training, multiplies by 1 - p at test; ``scaled`` ones
    are divided by 1 - p in training instead, and left alone at test.
    """

    name: str
    p: float = 0.5
    scaled: bool = False
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """Multiplies by a number, in training and at test."""

    name: str
    factor: float
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Concat:
    """The maps or features of its inputs, one behind the other."""

    name: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sum:
    """The sum of its inputs, each times its coefficient; 1 where there are none."""

    name: str
    inputs: tuple[str, ...] = ()
    coefficients: tuple[float, ...] = ()


@dataclass(frozen=True)
class Max:
    """The largest value of its inputs; all that are as large get the gradient."""

    name: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blur:
    """A Gaussian of ``size`` x ``size`` pixels and this standard deviation."""

    name: str
    size: int
    std: float
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Nailbed:
    """Every ``stride``-th pixel of every ``stride``-th row, in the middle of the image."""

    name: str
    stride: int
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mirror:
    """Its maps with their columns in reverse."""

    name: str
    inputs: tuple[str, ...] = ()


Layer = (
    Conv
    | Local
    | Linear
    | Lrn
    | SpatialNorm
    | ContrastNorm
    | Pool
    | AvgPool
    | RandPool
    | Activation
    | Dropout
    | Scale
    | Concat
    | Sum
    | Max
    | Blur
    | Nailbed
    | Mirror
)
Weighted = (Conv, Local, Linear)  # the layers that have weights and a bias


@dataclass(frozen=True)
class Cost:
    """What training makes small: ``coefficient`` times the mean over the images of one of

    - "softmax": the cross-entropy of the softmax of the output;
    - "squares": the sum of the squares of the output, of features or maps of any layer;
    - "squared-error", "log-squared-error", "cross-entropy": the sum over the features y of (y - t)^2, of
      log(1 + (y - t)^2), of -t log y - (1 - t) log(1 - y), with t 1 for the true class and 0 for the others;
    - "logistic-cross-entropy": the last one of y = 1 / (1 + e^-x), x being the output.

    All but "squares" read a feature for each class. Logarithms are at least -50, as in the 2012 program, and the
    gradient of "cross-entropy" is 0 there; but where y is the output of a logistic ``Activation``, what that reads gets
    y - t, the gradient of logarithms without a limit, which is right where y has been rounded to 0 or 1, too.
    """

    kind: str
    input: str
    coefficient: float = 1.0

    @property
    def knows_classes(self) -> bool:
        return self.kind != SQUARES


@dataclass(frozen=True)
class TrainDefaults:
    """What ``convnet-train`` uses where the user says nothing: it is to learn from any pictures at once.

    The paper's own recipe is in ``configs/alexnet-paper.toml``.
    """

    batch_size: int
    epochs: int
    lr: float  # of steps of batch_size images
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "flat-cosine"
    patience: int = 3
    init: str = "he"
    normalisation: str = "mean-image"


@dataclass(frozen=True)
class NetworkSpec:
    """A network: ``crop`` x ``crop`` images with 3 channels in, ``classes`` logits out: what the last layer computes.

    ``input_scale`` multiplies pixels (0..255, mean subtracted) on their way in. ``surround``: the side of the stored
    images over that of the crops. ``costs``: none is the softmax's cross-entropy of the last layer.
    """

    name: str
    crop: int
    towers: int
    layers: tuple[Layer, ...]
    defaults: TrainDefaults
    input_scale: float = 1.0
    surround: float = 256 / 224
    costs: tuple[Cost, ...] = ()

    @property
    def image_size(self) -> int:
        """Side of the stored images that crops are taken from: 256 for crops of 224."""
        return round(self.crop * self.surround)

    @property
    def parts(self) -> int:
        """Into how many equal parts it can be cut, for a device each: its towers, or 1 where ``undivided`` says why."""
        return 1 if self.undivided else self.towers

    @property
    def undivided(self) -> str:
        """Why its towers must lie on one device, as "normalises across its towers"; empty where they need not."""
        if self.towers == 1:
            return ""
        first, *others = placed_layers(self)
        if any(isinstance(layer, Lrn) and layer.across for layer in self.layers):
            return "normalises across its towers"
        if any(isinstance(layer, (Conv, Local)) and layer.connections for layer in self.layers):
            return "has a layer that reads drawn maps"
        if not self.is_chain:
            return "has layers with several inputs, or several readers"
        if placed_layers(self)[-1].cut:
            return "ends in a layer that is cut into towers"
        whole = [] if isinstance(first.layer, Weighted) else [first]
        whole += [placed for placed in others if not placed_layers(self)[placed.index - 1].cut]
        return f"has a layer, {whole[0].layer.name}, whose input is not cut into towers" if whole else ""

    @property
    def is_chain(self) -> bool:
        """Every layer reads the one in front of it, and nothing else does, and there is one cost."""
        return not self.costs and all(p.inputs == (p.index - 1,) and len(p.terms) < 2 for p in placed_layers(self))

    @property
    def classes(self) -> int:
        return placed_layers(self)[-1].K

    @property
    def features_layer(self) -> str:
        """The layer whose activations tell likeness: what the last one reads, in front of dropout; fc7 in the paper."""
        layers = placed_layers(self)
        place = layers[-1].inputs[0]
        while place >= 0 and isinstance(layers[place].layer, Dropout):
            place = layers[place].inputs[0]
        return layers[max(place, 0)].layer.name

    @property
    def first_filters(self) -> str | None:
        """The weights of the first convolution that reads the images, by name, (K, 3, R, S): filters that can be looked
        at. None where there is none."""
        for placed in placed_layers(self):
            for name, term in zip(placed.weight_names, placed.terms, strict=False):
                if term.inputs == (-1,) and isinstance(term.layer, Conv) and _weight_shape(term)[1] == 3:
                    return f"{placed.layer.name}.{name}"
        return None


@dataclass(frozen=True)
class Placed:
    """A layer with the sizes of its whole input and output, all towers together; H = W = 1 for features. ``cut``: its
    output is in towers.

    ``inputs`` are places in the network, -1 that of the images; C, H and W are the first one's. ``terms``: of a layer
    of weights what it does with each of its inputs, as layers with one input.
    """

    layer: Layer
    index: int
    C: int
    H: int
    W: int
    K: int
    P: int
    Q: int
    groups: int = field(default=1)  # of a convolution, all towers on one device
    gathers: bool = field(default=False)  # reads the parts of all towers, and its input is cut into parts
    inputs: tuple[int, ...] = field(default=())
    terms: tuple[Placed, ...] = field(default=())
    cut: bool = field(default=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of weights and bias, as users see them: "weight", or of several inputs "weight0", "weight1", ..., "bias"."""
        if not self.terms:
            return {}
        layer = self.layer
        found = {name: _weight_shape(term) for name, term in zip(self.weight_names, self.terms, strict=True)}
        untied = isinstance(layer, Local) or (isinstance(layer, Conv) and not layer.tied)
        return {**found, "bias": (self.K, self.P, self.Q) if untied else (self.K,)}

    @property
    def weight_names(self) -> list[str]:
        return ["weight"] if len(self.terms) == 1 else [f"weight{i}" for i in range(len(self.terms))]

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass over one image."""
        pixels = 1 if isinstance(self.layer, Local) else self.P * self.Q
        return sum(math.prod(_weight_shape(term)) for term in self.terms) * pixels


def _weight_shape(term: Placed) -> tuple[int, ...]:
    layer = term.layer
    if isinstance(layer, Linear):
        return (term.K, term.C * term.H * term.W)
    assert isinstance(layer, (Conv, Local))
    C = len(layer.connections) or term.C
    shape = (term.K, C // term.groups, layer.size, layer.size)
    return (term.P, term.Q, *shape) if isinstance(layer, Local) else shape


@dataclass(frozen=True)
class _Maps:
    """What a layer reads. ``split``: it is cut into towers."""

    C: int
    H: int
    W: int
    split: bool


@cache
def placed_layers(spec: NetworkSpec) -> tuple[Placed, ...]:
    """The layers in order, each with its sizes. Raises ``ValueError`` where the sizes do not work out, naming the
    layer.
    """
    places = {IMAGES: -1}
    maps = {-1: _Maps(3, spec.crop, spec.crop, False)}
    found: list[Placed] = []
    for index, layer in enumerate(spec.layers):
        try:
            names = layer.inputs or (spec.layers[index - 1].name if index else IMAGES,)
            if isinstance(layer, (Conv, Linear)):
                names += tuple(term.input for term in layer.terms)
            if missing := [name for name in names if name not in places]:
                raise ValueError(f'its input "{missing[0]}" is no layer in front of it')
            if layer.name in places:
                raise ValueError("two layers have this name")
            inputs = tuple(places[name] for name in names)
            placed = _place(spec.towers, layer, index, inputs, [maps[place] for place in inputs])
        except ValueError as error:
            raise ValueError(f'network "{spec.name}" with crop {spec.crop}, layer {layer.name}: {error}') from None
        found.append(placed)
        places[layer.name], maps[index] = index, _Maps(placed.K, placed.P, placed.Q, placed.cut)
    read = {place for placed in found for place in placed.inputs} | {places.get(cost.input) for cost in spec.costs}
    for placed in found[:-1]:
        if placed.index not in read:
            raise ValueError(f'network "{spec.name}", layer {placed.layer.name}: neither a layer nor a cost reads it')
    for cost in spec.costs:
        what = f'network "{spec.name}": cost "{cost.kind}" of {cost.input}'
        if cost.kind not in (SOFTMAX, *COSTS):
            raise ValueError(f"{what}: there are {', '.join((SOFTMAX, *COSTS))}")
        if cost.input not in places or cost.input == IMAGES:
            raise ValueError(f"{what}: no layer is called so")
        of, classes = found[places[cost.input]], found[-1].K
        outputs = of.K, of.P, of.Q
        if cost.knows_classes and outputs != (classes, 1, 1):
            got = " x ".join(map(str, outputs))
            raise ValueError(f"{what}: it reads a feature for each of the {classes} classes, got {got}")
    if found and not spec.costs and (found[-1].P, found[-1].Q) != (1, 1):
        raise ValueError(
            f'network "{spec.name}" with crop {spec.crop}, layer {found[-1].layer.name}: the last one computes logits, '
            f"of one pixel each, not {found[-1].P} x {found[-1].Q}"
        )
    return tuple(found)


def _place(towers: int, layer: Layer, index: int, inputs: tuple[int, ...], reads: list[_Maps]) -> Placed:
    """The layer with its sizes."""
    first = reads[0]
    several = isinstance(layer, (Concat, Sum, Max, Conv, Linear))
    if not several and len(reads) > 1:
        raise ValueError(f"it reads one layer, got {len(reads)}")
    at = Placed(layer, index, first.C, first.H, first.W, first.C, first.H, first.W, inputs=inputs, cut=first.split)
    if isinstance(layer, Weighted) and layer.activation not in (*ACTIVATIONS, None):
        raise ValueError(f'activation must be {" or ".join(ACTIVATIONS)}, got "{layer.activation}"')
    if isinstance(layer, (Conv, Local, Linear)):
        alone = _alone(layer)
        terms = [
            _term(towers, one, index, (place,), read) for one, place, read in zip(alone, inputs, reads, strict=True)
        ]
        top, *others = terms
        for term in others:
            if (term.P, term.Q) != (top.P, top.Q):
                raise ValueError(f"its inputs give {top.P} x {top.Q} and {term.P} x {term.Q} pixels: they must agree")
        return replace(top, layer=layer, inputs=inputs, terms=tuple(terms))
    if isinstance(layer, Pool):
        side = output_size(first.H, layer.size, layer.stride, 0, 0, layer.ceil_mode)
        return replace(at, P=side, Q=side)
    if isinstance(layer, AvgPool):
        side = output_size(first.H, layer.size, layer.stride, layer.padding, 0, layer.ceil_mode)
        return replace(at, P=side, Q=side)
    if isinstance(layer, RandPool):
        side = output_size(first.H, layer.size, layer.stride, 0, 0, True)
        return replace(at, P=side, Q=side)
    if isinstance(layer, Nailbed):
        side = -(-first.H // layer.stride)
        return replace(at, P=side, Q=side)
    if isinstance(layer, Concat):
        if any((m.H, m.W) != (first.H, first.W) for m in reads):
            raise ValueError(f"its inputs have {', '.join(f'{m.H} x {m.W}' for m in reads)} pixels: they must agree")
        # of layers that are cut into towers the parts would have to be put in another order: it reads all of them
        gathers = any(m.split for m in reads)
        if len(reads) > 1 and gathers:
            raise ValueError("layers that are cut into towers cannot be put one behind the other")
        return replace(at, K=sum(m.C for m in reads), gathers=gathers, cut=False)
    if isinstance(layer, (Sum, Max)):
        if any((m.C, m.H, m.W) != (first.C, first.H, first.W) for m in reads):
            raise ValueError(
                f"its inputs have shapes {', '.join(f'{m.C} x {m.H} x {m.W}' for m in reads)}: not the same"
            )
        if isinstance(layer, Sum) and len(layer.coefficients) not in (0, len(reads)):
            raise ValueError(f"it has {len(reads)} inputs and {len(layer.coefficients)} coefficients")
    return at


def _alone(layer: Conv | Local | Linear) -> list[Conv | Local | Linear]:
    """What the layer does with each of its inputs, as layers with one."""
    if isinstance(layer, Local) or not layer.terms:
        return [layer]
    found: list[Conv | Local | Linear] = [replace(layer, terms=())]
    for term in layer.terms:
        own: dict[str, Any] = {"std": term.std, "pace": term.pace, "inputs": (term.input,), "terms": ()}
        if isinstance(layer, Conv):
            own |= {
                "size": term.size,
                "stride": term.stride,
                "padding": term.padding,
                "joins": term.joins,
                "groups": term.groups,
                "connections": term.connections,
            }
        found.append(replace(layer, **own))
    return found


def _term(towers: int, layer: Conv | Local | Linear, index: int, inputs: tuple[int, ...], read: _Maps) -> Placed:
    """A layer of weights with one input."""
    if isinstance(layer, Linear):
        split = layer.split and towers > 1
        K, P, Q, groups, gathers = layer.features, 1, 1, 1, read.split
    else:
        split = towers > 1
        whole = (isinstance(layer, Conv) and layer.joins) or not read.split
        gathers = isinstance(layer, Conv) and layer.joins and read.split
        groups = layer.groups * (1 if whole else towers)
        ceil_mode = layer.ceil_mode if isinstance(layer, Conv) else True
        K, P = layer.filters, output_size(read.H, layer.size, layer.stride, layer.padding, layer.padding, ceil_mode)
        Q = P
        C = len(layer.connections) or read.C
        if layer.connections and not (min(layer.connections) >= 0 and max(layer.connections) < read.C and groups > 1):
            raise ValueError(f"connections are numbers of the {read.C} maps that it reads, of several groups")
        if layer.groups > 1 and towers > 1 and whole:
            raise ValueError(f"a layer of {towers} towers that reads all of them cannot be in {layer.groups} groups")
        if C % groups or K % groups:
            what = "towers" if layer.groups == 1 else "groups"
            raise ValueError(f"{K} outputs of {C} inputs cannot be cut into {groups} {what}")
    if split and K % towers:
        raise ValueError(f"{K} outputs of {read.C} inputs cannot be cut into {towers} towers")
    at = Placed(layer, index, read.C, read.H, read.W, K, P, Q, groups, gathers, inputs, cut=split)
    return replace(at, terms=(at,))


def parameter_count(spec: NetworkSpec) -> int:
    """Weights and biases of the whole network."""
    return sum(placed.parameters for placed in placed_layers(spec))


def parameter_shapes(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Of all weights and biases, by name, as users see them."""
    return {
        f"{placed.layer.name}.{name}": shape for placed in placed_layers(spec) for name, shape in placed.shapes.items()
    }


def paces(spec: NetworkSpec) -> Iterator[tuple[str, Pace]]:
    """How fast every tensor learns, by name."""
    for placed in placed_layers(spec):
        layer = placed.layer
        if isinstance(layer, Weighted):
            for name, term in zip(placed.weight_names, placed.terms, strict=True):
                assert isinstance(term.layer, Weighted)
                yield f"{layer.name}.{name}", term.layer.pace
            yield f"{layer.name}.bias", layer.bias_pace
