"""The layers that have weights: convolutions, shared over the image or not, and fully-connected layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..devices.protocol import Array
from ..kernels.precision import BF16
from ..kernels.shapes import ConvShape, DropoutShape, GatherShape, LinearShape, LocalShape
from ..ops import ops
from ..ops.layout import places_of_channels
from .layers import Folded, LayerOnDevice, Parameter, Side
from .spec import Pace


@dataclass(frozen=True)
class Paces:
    """How fast the weights of each input learn, by their names, and the bias."""

    weights: dict[str, Pace]
    bias: Pace


Table = tuple[int, tuple[int, ...]]  # how many maps an input has, and which of them are read; none: all of them


class Connections:
    """The maps that a layer reads of those that its input has, by a table; of another input that is its own."""

    picked: Array
    dpicked: Array

    def __init__(self, layer: LayerOnDevice, shape: GatherShape, table: tuple[int, ...]):
        self.layer, self.shape = layer, shape
        side, fusion = layer.side, layer.fusion
        picked = np.asarray(table, np.int32)
        self.table, self.starts, self.places = (
            self._there(values) for values in (picked, *places_of_channels(picked, shape.C))
        )
        side.plan.want(self, "picked", shape.y, side.dtype, fusion.index, fusion.backward)
        side.plan.want(self, "dpicked", shape.y, side.dtype, fusion.backward, fusion.backward)

    def _there(self, values: np.ndarray[Any, Any]) -> Array:
        array = self.layer.side.device.empty(values.shape, np.int32)
        self.layer.stream.upload(array, values)
        return array

    def pick(self, x: Array) -> Array:
        """The maps of ``x`` in the order of the table."""
        ops.gather_channels(self.layer.stream, self.shape, self.layer.precision, x, self.table, self.picked)
        return self.picked

    def put_back(self, dx: Array) -> None:
        """Makes ``dx`` what ``dpicked`` is for the input."""
        operands = self.dpicked, self.starts, self.places, dx
        ops.gather_channels_backward(self.layer.stream, self.shape, self.layer.precision, *operands)


def connections(layer: LayerOnDevice, product: ConvShape, table: Table) -> Connections | None:
    """What picks the maps that ``product`` reads, where it does not read all of them."""
    C, picked = table
    if not picked:
        return None
    return Connections(layer, GatherShape(product.N, C, product.H, product.W, product.C, product.lanes), picked)


@dataclass
class ConvLayer(LayerOnDevice):
    """Convolution with bias and activation; of several inputs the products are added up, in their order.

    Where its input lies folded, products are those of ``shape.folded``, which have more terms for the tensor cores to
    work on at a time; the parameters keep their shape, and only what the products read and write is folded. A step
    takes it as it lies; for whoever asks for gradients they are unfolded.
    """

    shapes: tuple[ConvShape, ...]
    tables: tuple[Table, ...]
    paces: Paces
    activation: str | None
    folds: bool
    tied: bool

    def __post_init__(self) -> None:
        self.products = [shape.folded if self.folds else shape for shape in self.shapes]
        self._want_output(self.shapes[0].y, read_backward=self.activation == "tanh" or not self.fusion.masked)
        self.picks = [connections(self, *pair) for pair in zip(self.products, self.tables, strict=True)]
        self._reads(*(p.shape.x if p else s.x for p, s in zip(self.picks, self.products, strict=True)))
        self.weights = [
            self._parameter(name, shape.weight, pace)
            for (name, pace), shape in zip(self.paces.weights.items(), self.shapes, strict=True)
        ]
        bias = (self.shapes[0].K,) if self.tied else self.shapes[0].position_bias
        self.bias = self._parameter("bias", bias, self.paces.bias)
        self.filters = [w.value for w in self.weights]  # what products read
        self.dfilters: list[Array] = []  # and write
        empty, kernels = self.side.device.empty, self.side.device.kernels
        for i, (weight, shape, product) in enumerate(zip(self.weights, self.shapes, self.products, strict=True)):
            if self.precision == "bf16":
                self.filters[i] = empty(product.weight_copy, BF16)
            elif self.folds:
                self.filters[i] = empty(product.weight)
            self.dfilters.append(empty(product.weight) if self.folds else weight.gradient)
            if self.folds:
                weight.folded = Folded(shape, self.dfilters[i], self.filters[i])
            elif self.precision == "bf16":
                weight.copy = self.filters[i]
            self.side.needs_workspace(kernels.conv_backward_filter_workspace(product, self.precision))

    def forward(self, train: bool) -> None:
        last = len(self.products) - 1
        for i, (read, product, filters) in enumerate(zip(self.inputs, self.products, self.filters, strict=True)):
            bias = self.bias.value if i == 0 and self.tied else None
            relu = self.activation == "relu" and i == last and self.tied
            pick = self.picks[i]
            operands = pick.pick(read.x) if pick else read.x, filters, bias
            ops.conv_forward(self.stream, product, self.precision, *operands, self.y, relu, i > 0)
        if not self.tied:
            ops.add_position_bias(self.stream, self.shapes[0], self.precision, self.y, self.bias.value, self.y)
            if self.activation == "relu":
                ops.relu_forward(self.stream, self.precision, self.y, self.y)
        activate(self)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        activate_backward(self, dy)
        found: list[Array | None] = [None] * len(wanted)
        for i, read in enumerate(self.inputs):
            if wanted[i]:
                pick = self.picks[i]
                operands = (
                    (dy, self.filters[i], pick.dpicked, None) if pick else (dy, self.filters[i], read.dx, read.mask)
                )
                ops.conv_backward_data(self.stream, self.products[i], self.precision, *operands)
                if pick:
                    pick.put_back(read.dx)
                found[i] = read.dx
        return found

    def backward_weights(self, dy: Array, rates: Mapping[str, float] | None) -> None:
        if self.frozen:
            return
        if not self.tied:
            ops.add_position_bias_backward(self.stream, self.shapes[0], self.precision, dy, self.bias.gradient)
        for i, read in enumerate(self.inputs):
            dbias = self.bias.gradient if i == 0 and self.tied else None
            pick = self.picks[i]
            operands = dy, pick.picked if pick else read.x, self.dfilters[i], dbias, self.side.workspace
            ops.conv_backward_filter(self.stream, self.products[i], self.precision, *operands)
            if self.folds and rates is None:
                ops.unfold_gradient(self.stream, self.shapes[i], self.dfilters[i], self.weights[i].gradient)

    def copy_weights(self) -> None:
        super().copy_weights()
        self.fold_weights()

    def fold_weights(self) -> None:
        """Makes the folded copy anew, where no update has written it."""
        if self.folds:
            ops.fold_weight(self.stream, self.shapes[0], self.precision, self.weights[0].value, self.filters[0])


@dataclass
class LinearLayer(LayerOnDevice):
    """Fully-connected layer with bias, activation, and the dropout behind a ReLU; of several inputs the products are
    added up, in their order.

    Of ReLU and dropout together the derivative is 1 where y is positive. With ``rates``, ``backward_weights`` updates
    the weights while it computes their gradient, which then never exists in memory; ``backward_data`` comes first and
    reads the weights that were.
    """

    shapes: tuple[LinearShape, ...]
    paces: Paces
    activation: str | None
    dropout: DropoutShape | None
    steps_backward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._want_output(self.shapes[0].y, read_backward=self.activation == "tanh" or not self.fusion.masked)
        self._reads(*(shape.x for shape in self.shapes))  # maps are flattened in the order channel, row, column
        self.weights = [
            self._parameter(name, shape.weight, pace)
            for (name, pace), shape in zip(self.paces.weights.items(), self.shapes, strict=True)
        ]
        self.bias = self._parameter("bias", (self.shapes[0].K,), self.paces.bias)
        for weight, shape in zip(self.weights, self.shapes, strict=True):
            if self.precision == "bf16":
                weight.copy = self.side.device.empty(shape.weight_copy, BF16)
            self.side.needs_workspace(self.side.device.kernels.linear_workspace(shape, self.precision))
        self.matrices = [weight.copy or weight.value for weight in self.weights]  # what products read

    def forward(self, train: bool) -> None:
        last = len(self.shapes) - 1
        for i, (read, shape, matrix) in enumerate(zip(self.inputs, self.shapes, self.matrices, strict=True)):
            operands = read.x, matrix, self.bias.value if i == 0 else None
            relu = self.activation == "relu" and i == last
            drop = self.dropout if i == last else None
            dropping = drop, self.side.control if drop and train else None
            work = self.side.workspace
            ops.linear_forward(self.stream, shape, self.precision, *operands, self.y, relu, *dropping, work, i > 0)
        activate(self)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        activate_backward(self, dy)
        found: list[Array | None] = [None] * len(wanted)
        for i, read in enumerate(self.inputs):
            if wanted[i]:
                operands = dy, self.matrices[i], read.dx, read.mask, self.side.workspace
                ops.linear_backward_data(self.stream, self.shapes[i], self.precision, *operands)
                found[i] = read.dx
        return found

    def backward_weights(self, dy: Array, rates: Mapping[str, float] | None) -> None:
        if self.frozen:
            return
        for i, (read, shape, w) in enumerate(zip(self.inputs, self.shapes, self.weights, strict=True)):
            learn_linear(self.side, shape, dy, read.x, w, self.bias.gradient if i == 0 else None, rates)


def learn_linear(
    side: Side,
    shape: LinearShape,
    dy: Array,
    x: Array,
    weight: Parameter,
    dbias: Array | None,
    rates: Mapping[str, float] | None,
) -> None:
    """The gradients of a weight and a bias; with ``rates`` the weight takes its step, and its gradient never exists."""
    problem, workspace = (side.stream, shape, side.precision, dy, x), side.workspace
    rate = weight.rate(rates) if rates is not None else 0.0
    if rate:
        pace = rate, weight.pace.decay, weight.pace.momentum
        updated = weight.value, weight.velocity, weight.copy, dbias, side.control
        ops.linear_backward_filter_update(*problem, *updated, *pace, workspace)
    elif rates is None or dbias is not None:  # nobody asks for that of one that stays, but the bias may have its own
        ops.linear_backward_filter(*problem, weight.gradient, dbias, workspace)


@dataclass
class LocalLayer(LayerOnDevice):
    """Convolution with weights and biases of its own for every pixel."""

    shape: LocalShape
    table: Table
    paces: Paces
    activation: str | None

    def __post_init__(self) -> None:
        self._want_output(self.shape.y, read_backward=self.activation == "tanh" or not self.fusion.masked)
        self.pick = connections(self, self.shape, self.table)
        self._reads(self.pick.shape.x if self.pick else self.shape.x)
        self.weight = self._parameter("weight", self.shape.weight, self.paces.weights["weight"])
        self.bias = self._parameter("bias", self.shape.position_bias, self.paces.bias)
        if self.precision == "bf16":
            self.weight.copy = self.side.device.empty(self.shape.weight_copy, BF16)
        self.filters = self.weight.copy or self.weight.value  # what products read

    def forward(self, train: bool) -> None:
        x = self.pick.pick(self.x) if self.pick else self.x
        operands = x, self.filters, self.bias.value
        ops.local_forward(self.stream, self.shape, self.precision, *operands, self.y, self.activation == "relu")
        activate(self)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        activate_backward(self, dy)
        if not wanted[0]:
            return [None]
        (read,) = self.inputs
        dx, mask = (self.pick.dpicked, None) if self.pick else (read.dx, read.mask)
        ops.local_backward_data(self.stream, self.shape, self.precision, dy, self.filters, dx, mask)
        if self.pick:
            self.pick.put_back(read.dx)
        return [read.dx]

    def backward_weights(self, dy: Array, rates: Mapping[str, float] | None) -> None:
        if not self.frozen:
            gradients = self.weight.gradient, self.bias.gradient
            x = self.pick.picked if self.pick else self.x
            ops.local_backward_filter(self.stream, self.shape, self.precision, dy, x, *gradients)


def activate(layer: ConvLayer | LinearLayer | LocalLayer) -> None:
    """What of the activation is not part of the product, in place."""
    if layer.activation == "tanh":
        ops.activation_forward(layer.stream, layer.precision, "tanh", 1.0, 1.0, layer.y, layer.y)


def activate_backward(layer: ConvLayer | LinearLayer | LocalLayer, dy: Array) -> None:
    """Makes ``dy`` the gradient with respect to what the activation was applied to, unless it is that already."""
    if layer.activation == "tanh":
        ops.activation_backward(layer.stream, layer.precision, "tanh", 1.0, 1.0, dy, layer.y, dy)
    elif layer.activation == "relu" and not layer.fusion.masked:
        ops.relu_backward(layer.stream, layer.precision, dy, layer.y, dy)
