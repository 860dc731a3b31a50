"""From definition files of 2012 to a ``NetworkSpec``: what their layers are here, where their weights lie in ours.

Layers of equal columns become layers of a network with towers (``columns.py``); what is in no such columns stays a
graph of layers with one tower. A ReLU behind a layer of weights becomes its activation, and one behind a maximum of
such a layer's output moves in front of the maximum, with which it commutes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..definitions import geometry, nodes, start
from ..definitions.definition import described
from ..definitions.ini import DefinitionError, error, parse
from ..definitions.nodes import Definition, Node, Rate
from .columns import Part, Read, in_columns
from .spec import (
    BIAS,
    IMAGES,
    Activation,
    AvgPool,
    Blur,
    Concat,
    ContrastNorm,
    Conv,
    Cost,
    Dropout,
    Layer,
    Linear,
    Local,
    Lrn,
    Max,
    Mirror,
    Nailbed,
    NetworkSpec,
    Pace,
    Placed,
    Pool,
    RandPool,
    Scale,
    SpatialNorm,
    Sum,
    Term,
    TrainDefaults,
    placed_layers,
)

LARGE, SMALL = 224, 32  # sides of images that files are for: the first convolution takes strides on the large ones
CONNECTIONS = 2012  # decides the connections that are drawn
MOST_DRAWN = 2**20  # of a layer's input
NEURONS = ("relu", "tanh", "logistic", "linear", "softrelu", "brelu", "abs", "square", "sqrt")  # that are built
COSTS = {"sum2": "squares", "crossent2": "cross-entropy", "rflickr": "log-squared-error"}


@dataclass(frozen=True)
class Slice:
    """Where a matrix of a file's layer lies in ours: outputs and inputs from, to."""

    tensor: str
    outputs: tuple[int, int]
    inputs: tuple[int, int] | None = None  # None: of a bias


@dataclass(frozen=True)
class Defined:
    """``slices``: for every layer with weights of the file, by name, where the matrix of each input lies, in pieces, in
    the order in which they stand in that matrix; the last one is the bias. ``layers``: our layer that each of the
    file's is part of, and its column there; those that only say what is data, output or cost are none.
    """

    definition: Definition
    spec: NetworkSpec
    slices: dict[str, list[list[Slice]]]
    layers: dict[str, tuple[str, int]]


def defined_by(definition: Mapping[str, Any], crop: int | None = None) -> Defined:
    """The network of what ``definition_of`` gave. Raises ``ValueError``, also for anything else."""
    told = definition_read(definition)
    return defined(start.from_start(told) if definition.get("from_start") else told, crop)


def definition_read(definition: Mapping[str, Any]) -> Definition:
    """What the files say, their rates as they are. Raises ``ValueError``."""
    kinds = {"name": str, "layers": str, "params": str, "from_start": bool}
    if not {"name", "layers"} <= definition.keys() or any(
        name not in kinds or not isinstance(value, kinds[name]) for name, value in definition.items()
    ):
        raise ValueError(f"definition: has name, layers, params and from_start, got {', '.join(map(str, definition))}")
    name, params = definition["name"], definition.get("params")
    layers = parse(definition["layers"], f"{name}.cfg")
    return described(layers, None if params is None else parse(params, f"{name}'s parameters"))


def defined(definition: Definition, crop: int | None = None) -> Defined:
    """The network and how the file's layers lie in it. Raises ``DefinitionError``."""
    for sentence in not_built(definition):
        raise DefinitionError(sentence)
    side = crop or usual_crop(definition)
    geometry.sizes(definition, side)
    translation = _Translation(definition, side)
    return translation.result(translation.costs_of_layers())


def as_far_as_built(definition: Definition, crop: int | None = None) -> Defined:
    """The same without layers that are not built, and without those that read such; its costs are the squares of what
    no other layer reads. Raises ``DefinitionError`` for what no layer can be.
    """
    known = {node.name: node for node in definition.nodes}
    left: dict[str, Node] = {}
    for node in definition.nodes:
        whole = all(name in left for name in node.inputs) and not isinstance(node, nodes.Cost)
        if whole and _unbuilt(node, known) is None:
            left[node.name] = node
    rest = replace(definition, nodes=tuple(left.values()))
    side = crop or usual_crop(definition)
    geometry.sizes(rest, side)
    translation = _Translation(rest, side)
    read = {one.part for part in translation.parts for one in part.reads}
    ends = [name for i, name in enumerate(translation.names) if i not in read]
    return translation.result([Cost("squares", name) for name in reversed(ends)])  # the last layer's first


def not_built(definition: Definition) -> list[str]:
    """One sentence for every layer that is not built here, with its line, and why."""
    known = {node.name: node for node in definition.nodes}
    reasons = ((node, _unbuilt(node, known)) for node in definition.nodes)
    return [str(_refused(definition, node, text)) for node, text in reasons if text is not None]


def usual_crop(definition: Definition) -> int:
    """224 where the first convolution takes strides, else 32."""
    for node in definition.nodes:
        if isinstance(node, nodes.Conv):
            return LARGE if node.kernels[0].stride > 1 else SMALL
    return SMALL


def _refused(definition: Definition, node: Node, text: str) -> DefinitionError:
    return error(definition.file, node.line, f"[{node.name}] {text}")


def _unbuilt(node: Node, known: dict[str, Node]) -> str | None:
    """Why the node is not built; None where it is. ``known``: all nodes, by name."""
    if isinstance(node, nodes.Unknown):
        return f"type={node.type} is not built"
    if isinstance(node, nodes.TreeFC):
        return "type=treefc is not built: its tree of classes comes with the data"
    if isinstance(node, nodes.Weighted) and any(node.weight_sources):
        return "shares weights with another layer (weightSource): not built"
    if isinstance(node, nodes.Conv) and node.modules:
        return "modulesX is not built"
    if isinstance(node, nodes.Conv):
        drawn = max(kernel.groups * kernel.filter_channels if kernel.sparse else 0 for kernel in node.kernels)
        if drawn > MOST_DRAWN:
            return f"{drawn:,} drawn channels (randSparse), more than {MOST_DRAWN:,}, are not built"
    if isinstance(node, nodes.Local) and len(node.inputs) > 1:
        return "local layers with several inputs are not built"
    if isinstance(node, nodes.Pool):
        if node.kind not in ("max", "avg", "rand"):
            return f"pool={node.kind} is not built"
        if node.outputs:
            return "outputsX is not built"
        if node.start and node.kind != "avg":
            return f"start={node.start} of a {'maximum' if node.kind == 'max' else 'draw'} is not built"
        if node.start > 0:
            return f"start={node.start} leaves out pixels: not built"
    if isinstance(node, nodes.Norm) and node.blocked:
        return "blocked norms are not built"
    if isinstance(node, nodes.Neuron) and node.kind not in NEURONS:
        return f"the neuron {node.kind} is not built"
    if isinstance(node, nodes.Cost):
        return _unbuilt_cost(node, known)
    reads = node.inputs
    if _compares(node, known):
        if node.coeffs not in ((1.0, -1.0), (-1.0, 1.0), None) or len(node.inputs) != 2:
            return f"sums labels with the coefficients {node.coeffs}: not built"
        reads = tuple(name for name in node.inputs if not _labels(known[name]))
    for name in reads:
        other = known[name]
        if isinstance(other, nodes.Softmax) or _labels(other) or _compares(other, known):
            return f"reads {name}, which costs alone read here: not built"
    return None


def _unbuilt_cost(node: nodes.Cost, known: dict[str, Node]) -> str | None:
    last = known[node.inputs[-1]]
    softmax = isinstance(last, nodes.Softmax)
    if softmax != (node.kind == "logreg") or not (softmax or node.kind in COSTS):
        return f"cost.{node.kind} {'of a softmax ' if softmax else ''}is not built"
    if node.kind != "sum2":
        labelled = len(node.inputs) == 2 and _labels(known[node.inputs[0]])
        return None if labelled else f"cost.{node.kind} must read labels and a layer"
    if _compares(last, known):
        others = [name for name in last.inputs if not _labels(known[name])]
        if last.coeffs not in ((1.0, -1.0), (-1.0, 1.0), None) or len(others) != 1:
            return f"cost.sum2 of labels summed with the coefficients {last.coeffs} is not built"
    return None


def _labels(node: Node) -> bool:
    return isinstance(node, nodes.Data) and node.index > 0


def _compares(node: Node, known: dict[str, Node]) -> TypeGuard[nodes.EltSum]:
    """Whether it is the difference to the labels, of which a cost takes the squares."""
    return isinstance(node, nodes.EltSum) and any(_labels(known[name]) for name in node.inputs)


class _Translation:
    def __init__(self, definition: Definition, side: int):
        self.definition, self.side = definition, side
        self.known = {node.name: node for node in definition.nodes}
        self.base = _base(definition)
        self.images = ""
        self.costs: list[tuple[str, str, float]] = []  # kind, what it reads, coefficient
        self.nodes: list[Node] = []
        self.activations: dict[str, str] = {}  # by layer of weights
        self.inside: dict[str, str] = {}  # the layer of weights that an activation belongs to
        self._simplify()
        parts = in_columns(self.nodes, self.images)
        if parts and any(len({self.activations.get(node.name) for node in part.nodes}) > 1 for part in parts):
            parts = None
        self.towers = max((len(part.nodes) for part in parts), default=1) if parts else 1
        self.parts = parts or self._apart()
        self.names = self._named()

    # ---- to nodes that are layers here

    def _simplify(self) -> None:
        """Takes out data, softmax and costs, and moves ReLUs to where they belong."""
        same: dict[str, str] = {}  # nodes that do nothing, and what they read

        def read(name: str) -> str:
            while name in same:
                name = same[name]
            return name

        readers = Counter(name for node in self.definition.nodes for name in node.inputs)
        for node in self.definition.nodes:
            if isinstance(node, nodes.Data):
                if node.index == 0 and self.images:
                    same[node.name] = self.images
                elif node.index == 0:
                    self.images = node.name
            elif isinstance(node, nodes.Cost):
                self._cost(node)
            elif isinstance(node, nodes.Softmax):
                pass
            elif (isinstance(node, nodes.Concat) and len(node.inputs) == 1) or (
                isinstance(node, nodes.Dropout) and node.keep == 1
            ):
                same[node.name] = node.inputs[0]
            elif _compares(node, self.known):
                pass  # its cost says what it is for
            elif isinstance(node, nodes.Neuron) and (of := self._activates(node, readers)):
                self.activations[of], self.inside[node.name] = node.kind, of
                same[node.name] = node.inputs[0]
            else:
                self.nodes.append(replace(node, inputs=tuple(read(name) for name in node.inputs)))
        self.costs = [(kind, read(name), coefficient) for kind, name, coefficient in self.costs]

    def _activates(self, node: nodes.Neuron, readers: Counter[str]) -> str | None:
        """The layer of weights whose activation this is, if it is one's."""
        below = self.known[node.inputs[0]]
        plain = node.kind == "relu" or (node.kind == "tanh" and (node.a, node.b) == (1, 1))
        if not plain or readers[below.name] > 1:
            return None
        if isinstance(below, nodes.Weighted):
            return below.name
        if isinstance(below, nodes.Pool) and below.kind == "max" and node.kind == "relu":
            conv = self.known[below.inputs[0]]
            if isinstance(conv, nodes.Conv) and readers[conv.name] == 1:
                return conv.name
        return None

    def _cost(self, node: nodes.Cost) -> None:
        coefficient = 1.0 if node.coeff is None else node.coeff
        last = self.known[node.inputs[-1]]
        if isinstance(last, nodes.Softmax):
            self.costs.append(("softmax", last.inputs[0], coefficient))
        elif node.kind == "sum2" and _compares(last, self.known):
            compared = next(name for name in last.inputs if not _labels(self.known[name]))
            self.costs.append(("squared-error", compared, coefficient))
        else:
            self.costs.append((COSTS[node.kind], last.name, coefficient))

    def _apart(self) -> list[Part]:
        """Every node by itself."""
        place = {self.images: -1} | {node.name: i for i, node in enumerate(self.nodes)}
        return [
            Part((node,), tuple(Read(place[name], False, (((i, 0),),)) for i, name in enumerate(node.inputs)))
            for node in self.nodes
        ]

    def _named(self) -> list[str]:
        """A name for every part: what its nodes' names have in common."""
        found: list[str] = []
        for part in self.parts:
            of = [node.name for node in part.nodes]
            tail = "_neuron" if all(name.endswith("_neuron") for name in of) and len(of) > 1 else ""
            common = _common([name.removesuffix(tail) for name in of]).rstrip("-_")
            name = (common or of[0]) + tail if len(of) > 1 else of[0]
            found.append(name if name not in found and name != IMAGES else of[0])
            if "." in found[-1] or found[-1] == IMAGES:
                raise _refused(self.definition, part.nodes[0], "is a name that no layer can have here: rename it")
        return found

    # ---- to layers

    def costs_of_layers(self) -> list[Cost]:
        """What the file's costs are of, by our names."""
        place = {node.name: i for i, part in enumerate(self.parts) for node in part.nodes}
        simple = {node.name: node for node in self.nodes}
        costs = []
        for kind, reads, coefficient in self.costs:
            of = simple.get(reads, self.known[reads])
            if isinstance(of, nodes.Concat) and reads not in place:  # of all columns in their order
                place[reads] = place[of.inputs[0]]
            if reads not in place:
                raise _refused(self.definition, of, "is what a cost reads, and computes nothing")
            costs.append(Cost(kind, self.names[place[reads]], coefficient))
        if not costs:
            raise DefinitionError(f"{self.definition.file}: has no {'cost' if place else 'layer'}")
        return costs

    def result(self, costs: list[Cost]) -> Defined:
        layers = tuple(self._layer(i, part) for i, part in enumerate(self.parts))
        name = Path(self.definition.file).stem
        if costs:  # what the network computes is its last layer
            logits = next((c.input for c in costs if c.kind != "squares"), costs[0].input)
            layers = layers if logits == layers[-1].name else self._with_last(layers, logits)
            if isinstance(last := layers[-1], Linear):
                layers = (*layers[:-1], replace(last, split=False))
        alone = bool(costs) and costs == [Cost("softmax", layers[-1].name)]
        large = self.side > 64
        defaults = TrainDefaults(
            batch_size=128,
            epochs=90 if large else 100,
            lr=self.base.eps,
            momentum=self.base.momentum,
            weight_decay=self.base.decay,
            schedule="constant",
            init="paper",
        )
        surround = 256 / 224 if large else max(SMALL, self.side) / self.side
        spec = NetworkSpec(
            name, self.side, self.towers, layers, defaults, surround=surround, costs=() if alone else tuple(costs)
        )
        try:
            placed_layers(spec)
        except ValueError as wrong:
            raise DefinitionError(f"{self.definition.file}: {wrong}") from None
        of_node = {
            node.name: (self.names[i], column)
            for i, part in enumerate(self.parts)
            for column, node in enumerate(part.nodes)
        }
        of_node |= {activation: of_node[of] for activation, of in self.inside.items()}
        return Defined(self.definition, spec, self._slices(spec), of_node)

    def _with_last(self, layers: tuple[Layer, ...], name: str) -> tuple[Layer, ...]:
        """With that layer last: inputs are named, since the one in front may be another then."""
        by_name = [
            layer if layer.inputs else replace(layer, inputs=(layers[i - 1].name if i else IMAGES,))
            for i, layer in enumerate(layers)
        ]
        if any(name in layer.inputs for layer in by_name):
            raise DefinitionError(f"{self.definition.file}: {name} is read by a cost of classes and by other layers")
        return (*(layer for layer in by_name if layer.name != name), *(x for x in by_name if x.name == name))

    def _inputs(self, index: int, part: Part) -> tuple[str, ...]:
        """Names of what the part reads; none where that is the layer in front of it alone."""
        names = tuple(IMAGES if read.part < 0 else self.names[read.part] for read in part.reads)
        return () if len(names) == 1 and part.reads[0].part == index - 1 else names

    def _layer(self, index: int, part: Part) -> Layer:
        node, name, inputs = part.nodes[0], self.names[index], self._inputs(index, part)
        if isinstance(node, nodes.Weighted):
            return self._weighted(part, node, name, inputs)
        if isinstance(node, nodes.Pool):
            return self._pool(node, name, inputs)
        if isinstance(node, nodes.Norm):
            return self._norm(part, node, name, inputs)
        if isinstance(node, nodes.Neuron):
            return Activation(name, node.kind, node.a or 0.0, node.b or 0.0, inputs)
        if isinstance(node, nodes.Dropout):
            if not node.enabled and not node.scaled:
                return Scale(name, node.keep, inputs)
            return Dropout(name, 1 - node.keep if node.enabled else 0.0, node.scaled, inputs)
        if isinstance(node, nodes.EltSum):
            return Sum(name, inputs, node.coeffs or (1.0,) * len(inputs))
        if isinstance(node, nodes.EltMax):
            return Max(name, inputs)
        if isinstance(node, nodes.Concat):
            return Concat(name, inputs)
        if isinstance(node, nodes.Blur):
            return Blur(name, node.size, node.std, inputs)
        if isinstance(node, nodes.Href):
            return Mirror(name, inputs)
        assert isinstance(node, nodes.Nailbed)
        return Nailbed(name, node.stride, inputs)

    def _weighted(self, part: Part, node: nodes.Weighted, name: str, inputs: tuple[str, ...]) -> Layer:
        width = len(part.nodes)
        first, *others = (read.inputs[0][0][0] for read in part.reads)
        activation = self.activations.get(node.name)
        bias: dict[str, Any] = {
            "bias": node.init_b,
            "bias_pace": self._pace(node.bias) if node.bias else replace(BIAS, lr=2.0),
        }
        pace = self._pace(node.weights[first]) if node.weights else Pace()
        paces = [self._pace(node.weights[i]) if node.weights else Pace() for i in others]
        if isinstance(node, nodes.FullyConnected):
            terms = tuple(
                Term(other, std=node.std[i], pace=own) for other, i, own in zip(inputs[1:], others, paces, strict=True)
            )
            return Linear(
                name, node.outputs * width, activation, width > 1, node.std[first], inputs=inputs[:1], terms=terms,
                pace=pace, **bias,
            )  # fmt: skip
        assert isinstance(node, nodes.Conv)
        kernel, joins = node.kernels[first], [not read.own for read in part.reads]
        drawn = [self._connections(part, read, node.kernels[read.inputs[0][0][0]]) for read in part.reads]
        if isinstance(node, nodes.Local):
            return Local(
                name, node.filters * width, kernel.size, kernel.stride, kernel.padding, kernel.std,
                activation=activation, inputs=inputs, groups=kernel.groups, connections=drawn[0], pace=pace, **bias,
            )  # fmt: skip
        further = []
        for k, (other, i, own) in enumerate(zip(inputs[1:], others, paces, strict=True), 1):
            one = node.kernels[i]
            further.append(Term(other, one.size, one.stride, one.padding, joins[k], one.groups, drawn[k], one.std, own))
        return Conv(
            name, node.filters * width, kernel.size, kernel.stride, kernel.padding, joins[0], True, kernel.std,
            activation=activation, inputs=inputs[:1], terms=tuple(further), groups=kernel.groups, connections=drawn[0],
            tied=node.tied, pace=pace, **bias,
        )  # fmt: skip

    def _connections(self, part: Part, read: Read, kernel: nodes.Kernel) -> tuple[int, ...]:
        """For every column the maps that its groups read: runs of all maps, each in an order that is drawn."""
        if not kernel.sparse:
            return ()
        C, found = kernel.channels, []
        for column, node in enumerate(part.nodes):
            random = np.random.default_rng([CONNECTIONS, *node.name.encode(), read.inputs[column][0][0]])
            for _ in range(kernel.groups * kernel.filter_channels // C):
                found += [int(c) + (column * C if read.own else 0) for c in random.permutation(C)]
        return tuple(found)

    def _pool(self, node: nodes.Pool, name: str, inputs: tuple[str, ...]) -> Layer:
        if node.kind == "rand" and not node.do_max:
            return RandPool(name, node.size, node.stride, inputs)
        if node.kind != "avg":
            return Pool(name, node.size, node.stride, True, inputs)
        return AvgPool(name, node.size, node.stride, -node.start, True, inputs)

    def _norm(self, part: Part, node: nodes.Norm, name: str, inputs: tuple[str, ...]) -> Layer:
        scale = 1e-4 if node.scale is None else node.scale
        beta, k = 0.75 if node.pow is None else node.pow, 1.0 if node.min_div is None else node.min_div
        if node.kind == "cmrnorm":
            return Lrn(name, node.size, scale / node.size, beta, k, len(part.nodes) < self.towers, inputs)
        kind = SpatialNorm if node.kind == "rnorm" else ContrastNorm
        return kind(name, node.size, scale / node.size**2, beta, k, inputs)

    def _pace(self, rate: Rate) -> Pace:
        base = self.base
        schedule = None
        if (falling := rate.schedule) is not None:
            entries = [f"tgtFactor={falling.target_factor:g}", f"noiseStdev={falling.noise:g}"]
            entries += [f"numSteps={falling.steps}"] if falling.steps else []
            schedule = f"{falling.kind}[{','.join(entries)}]"
        decay = rate.decay / base.decay if base.decay else 0.0
        return Pace(rate.eps / base.eps, decay, rate.momentum / base.momentum if base.momentum else 0.0, schedule)

    # ---- where weights lie

    def _slices(self, spec: NetworkSpec) -> dict[str, list[list[Slice]]]:
        placed = {one.layer.name: one for one in placed_layers(spec)}
        found: dict[str, list[list[Slice]]] = {}
        for name, part in zip(self.names, self.parts, strict=True):
            if not isinstance(part.nodes[0], nodes.Weighted):
                continue
            one, width = placed[name], len(part.nodes)
            K = one.K // width
            for column, node in enumerate(part.nodes):
                outputs = column * K, (column + 1) * K
                pieces: list[list[Slice]] = [[] for _ in node.inputs]
                for term, weight, read in zip(one.terms, one.weight_names, part.reads, strict=True):
                    whole = math.prod(_input_of(term))
                    own = read.inputs[column]
                    for i, of in own:
                        share = whole // len(own)
                        inputs = (0, whole) if read.own or len(own) == 1 else (of * share, (of + 1) * share)
                        pieces[i].append(Slice(f"{name}.{weight}", outputs, inputs))
                found[node.name] = [*pieces, [Slice(f"{name}.bias", outputs)]]
        return found


def _common(names: list[str]) -> str:
    """How all of them begin."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike)


def _input_of(term: Placed) -> tuple[int, ...]:
    """Of the second axis of a weight: the features, or the maps that one filter reads."""
    if isinstance(term.layer, Linear):
        return (term.C, term.H, term.W)
    assert isinstance(term.layer, (Conv, Local))
    return ((len(term.layer.connections) or term.C) // term.groups,)


def _base(definition: Definition) -> Rate:
    """Rates that those of single tensors are multiples of: the largest of any weight, and the decay most have."""
    rates = [
        rate for node in definition.nodes if isinstance(node, nodes.Weighted) and node.weights for rate in node.weights
    ]
    if not rates:
        return Rate(0.01 if usual_crop(definition) == LARGE else 0.001, 0.9, 5e-4)
    decays = Counter(rate.decay for rate in rates if rate.decay > 0)
    eps = max(rate.eps for rate in rates) or 0.001
    momentum = max(rate.momentum for rate in rates)
    return Rate(eps, momentum if momentum < 1 else 0.9, max(decays, key=lambda d: (decays[d], d), default=0.0))
