"""Layers at work: each owns its buffers on one device and runs its kernels forward and backward.

``forward(train)`` fills ``y`` from ``x``. ``backward(dy)`` takes the gradient of the loss with respect to ``y``, which
it may overwrite, computes the gradients of the parameters unless the layer is ``frozen``, and returns the gradient with
respect to ``x`` where a layer ``below`` needs it, else None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from . import ops, spec
from .backend import Array, Device, Stream
from .precision import BF16, activation_dtype
from .shapes import ConvShape, DropoutShape, LinearShape, LrnShape, PoolShape


class Side:
    """What the layers of one device share: stream, precision, scratch memory, and the two buffers that gradients travel
    through.

    A layer's backward reads dy from one of the two and writes dx into the other, so that two buffers of the largest
    activation's size serve the whole network.
    """

    def __init__(self, device: Device, precision: str, index: int, count: int):
        device.check_precision(precision)
        self.device, self.precision, self.index, self.count = device, precision, index, count
        self.stream: Stream = device.stream()
        self.workspace: Array | None = None
        self._gradients: list[Array] = []
        self._current = 0
        self._wanted = {"workspace": 0, "gradient": 0}

    def activations(self, shape: tuple[int, ...]) -> Array:
        """Memory for activations or their gradients."""
        return self.device.empty(shape, activation_dtype(self.precision))

    def needs(self, *, workspace: int = 0, gradient: int = 0) -> None:
        """Notes bytes of workspace and elements of gradient that some layer will use."""
        self._wanted["workspace"] = max(self._wanted["workspace"], workspace)
        self._wanted["gradient"] = max(self._wanted["gradient"], gradient)

    def allocate(self) -> None:
        """Allocates what was noted, once all layers exist."""
        if self._wanted["workspace"]:
            self.workspace = self.device.empty((-(-self._wanted["workspace"] // 4),))
        self._gradients = [self.activations((self._wanted["gradient"],)) for _ in range(2)]

    def gradient(self, shape: tuple[int, ...]) -> Array:
        """The gradient buffer that the last call did not return."""
        self._current ^= 1
        return self._gradients[self._current].view(shape)


@dataclass
class Parameter:
    """A weight or bias with its gradient and velocity, all float32. ``decays``: takes part in weight decay. ``copy``:
    of a weight in bfloat16, where products read that.
    """

    name: str
    value: Array
    gradient: Array
    velocity: Array
    decays: bool
    copy: Array | None = None


@dataclass
class LayerOnDevice(ABC):
    """One layer's share on one device."""

    name: str
    side: Side
    x: Array
    y: Array = field(init=False)
    parameters: list[Parameter] = field(init=False, default_factory=list)
    frozen: bool = field(init=False, default=False)

    @abstractmethod
    def forward(self, train: bool) -> None: ...

    @abstractmethod
    def backward(self, dy: Array, below: bool) -> Array | None: ...

    def update(self, lr: float, momentum: float, weight_decay: float, rates: Mapping[str, float]) -> None:
        """The step of all parameters, their copies included. A frozen layer stays as it is, its velocity too."""
        for p in () if self.frozen else self.parameters:
            rate, decay = lr * rates.get(p.name, 1.0), weight_decay if p.decays else 0.0
            ops.sgd(self.stream, p.value, p.velocity, p.gradient, p.copy, rate, momentum, decay)

    def copy_weights(self) -> None:
        """Makes the copies anew, after the weights were replaced."""
        for p in self.parameters:
            if p.copy is not None:
                ops.cast_weight(self.stream, p.value, p.copy)

    @property
    def stream(self) -> Stream:
        return self.side.stream

    @property
    def precision(self) -> str:
        return self.side.precision

    def _parameter(self, kind: str, shape: tuple[int, ...]) -> Parameter:
        value, gradient, velocity = (self.side.device.empty(shape) for _ in range(3))
        parameter = Parameter(f"{self.name}.{kind}", value, gradient, velocity, decays=kind == "weight")
        self.parameters.append(parameter)
        return parameter


@dataclass
class ConvLayer(LayerOnDevice):
    """Convolution with bias and activation.

    Where its input lies folded, products are those of ``shape.folded``, which have more terms for the tensor cores to
    work on at a time; the parameters keep their shape, and only what the products read and write is folded.
    """

    shape: ConvShape
    activation: str | None
    first: bool  # nobody ever needs the gradient with respect to the images

    def __post_init__(self) -> None:
        self.folds = self.x.shape != self.shape.x
        self.product = self.shape.folded if self.folds else self.shape
        self.y = self.side.activations(self.shape.y)
        self.weight = self._parameter("weight", self.shape.weight)
        self.bias = self._parameter("bias", (self.shape.K,))
        self.filters, self.dfilters = self.weight.value, self.weight.gradient  # what products read and write
        if self.precision == "bf16":
            self.filters = self.side.device.empty(self.product.weight_copy, BF16)
        if self.folds:
            self.dfilters = self.side.device.empty(self.product.weight)
        elif self.precision == "bf16":
            self.weight.copy = self.filters
        self.side.needs(
            workspace=self.side.device.kernels.conv_backward_filter_workspace(self.product, self.precision),
            gradient=max(self.y.size, 0 if self.first else self.x.size),
        )

    def forward(self, train: bool) -> None:
        operands = self.x, self.filters, self.bias.value
        ops.conv_forward(self.stream, self.product, self.precision, *operands, self.y, self.activation == "relu")
        activate(self)

    def backward(self, dy: Array, below: bool) -> Array | None:
        problem = self.stream, self.product, self.precision
        activate_backward(self, dy)
        if not self.frozen:
            ops.conv_backward_filter(*problem, dy, self.x, self.dfilters, self.bias.gradient, self.side.workspace)
            if self.folds:
                ops.unfold_gradient(self.stream, self.shape, self.dfilters, self.weight.gradient)
        if not below:
            return None
        dx = self.side.gradient(self.shape.x)
        ops.conv_backward_data(*problem, dy, self.filters, dx)
        return dx

    def update(self, lr: float, momentum: float, weight_decay: float, rates: Mapping[str, float]) -> None:
        super().update(lr, momentum, weight_decay, rates)
        self._fold()

    def copy_weights(self) -> None:
        super().copy_weights()
        self._fold()

    def _fold(self) -> None:
        if self.folds:
            ops.fold_weight(self.stream, self.shape, self.weight.value, self.filters)


@dataclass
class LinearLayer(LayerOnDevice):
    """Fully-connected layer with bias and activation."""

    shape: LinearShape
    activation: str | None

    def __post_init__(self) -> None:
        self.x = self.x.view(self.shape.x)  # maps are flattened in the order channel, row, column
        self.y = self.side.activations(self.shape.y)
        self.weight = self._parameter("weight", self.shape.weight)
        self.bias = self._parameter("bias", (self.shape.K,))
        if self.precision == "bf16":
            self.weight.copy = self.side.device.empty(self.shape.weight_copy, BF16)
        self.matrix = self.weight.copy or self.weight.value  # what products read
        self.side.needs(
            workspace=self.side.device.kernels.linear_workspace(self.shape, self.precision),
            gradient=max(self.x.size, self.y.size),
        )

    def forward(self, train: bool) -> None:
        operands = self.x, self.matrix, self.bias.value
        relu, workspace = self.activation == "relu", self.side.workspace
        ops.linear_forward(self.stream, self.shape, self.precision, *operands, self.y, relu, workspace)
        activate(self)

    def backward(self, dy: Array, below: bool) -> Array | None:
        problem, workspace = (self.stream, self.shape, self.precision), self.side.workspace
        activate_backward(self, dy)
        if not self.frozen:
            ops.linear_backward_filter(*problem, dy, self.x, self.weight.gradient, self.bias.gradient, workspace)
        if not below:
            return None
        dx = self.side.gradient(self.shape.x)
        ops.linear_backward_data(*problem, dy, self.matrix, dx, workspace)
        return dx


def activate(layer: ConvLayer | LinearLayer) -> None:
    """What of the activation is not part of the product, in place."""
    if layer.activation == "tanh":
        ops.tanh_forward(layer.stream, layer.precision, layer.y, layer.y)


def activate_backward(layer: ConvLayer | LinearLayer, dy: Array) -> None:
    """Makes ``dy`` the gradient with respect to what the activation was applied to."""
    if layer.activation == "relu":
        ops.relu_backward(layer.stream, layer.precision, dy, layer.y, dy)
    elif layer.activation == "tanh":
        ops.tanh_backward(layer.stream, layer.precision, dy, layer.y, dy)


@dataclass
class PoolLayer(LayerOnDevice):
    """Max-pooling."""

    shape: PoolShape

    def __post_init__(self) -> None:
        self.y = self.side.activations(self.shape.y)
        self.argmax = self.side.device.empty(self.shape.y, np.uint8)
        self.side.needs(gradient=self.x.size)

    def forward(self, train: bool) -> None:
        argmax = self.argmax if train else None
        ops.max_pool_forward(self.stream, self.shape, self.precision, self.x, self.y, argmax)

    def backward(self, dy: Array, below: bool) -> Array:
        dx = self.side.gradient(self.shape.x)
        ops.max_pool_backward(self.stream, self.shape, self.precision, dy, self.argmax, None, dx)
        return dx


@dataclass
class LrnLayer(LayerOnDevice):
    """Local response normalisation inside each tower."""

    shape: LrnShape

    def __post_init__(self) -> None:
        self.y = self.side.activations(self.shape.x)
        self.side.needs(gradient=self.x.size)

    def forward(self, train: bool) -> None:
        ops.lrn_forward(self.stream, self.shape, self.precision, self.x, self.y)

    def backward(self, dy: Array, below: bool) -> Array:
        dx = self.side.gradient(self.shape.x)
        ops.lrn_backward(self.stream, self.shape, self.precision, dy, self.x, dx)
        return dx


@dataclass
class DropoutLayer(LayerOnDevice):
    """Dropout without scaling in training; at test the features are multiplied by 1 - p."""

    p: float
    seed: int
    index: int  # of the layer in the network: masks of different layers differ
    step: int = 0

    def __post_init__(self) -> None:
        self.y = self.side.activations(self.x.shape)
        self.mask = self.side.device.empty(self.x.shape, np.uint8)

    def forward(self, train: bool) -> None:
        if not train:
            ops.scale(self.stream, self.precision, self.x, 1.0 - self.p, self.y)
            return
        blocks, lanes = self.x.shape[0], self.x.shape[-1]
        features = self.x.size // (blocks * lanes)
        shape = DropoutShape(
            blocks * lanes,
            features,
            lanes,
            self.side.index * features,
            self.side.count * features,
            self.p,
            self.seed,
            self.step,
            self.index,
        )
        arrays = (array.view(shape.x) for array in (self.x, self.y, self.mask))
        ops.dropout_forward(self.stream, shape, self.precision, *arrays)

    def backward(self, dy: Array, below: bool) -> Array:
        ops.dropout_backward(self.stream, self.precision, dy, self.mask, dy)
        return dy


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


def build(placed: spec.Placed, side: Side, x: Array, N: int, lanes: int, towers: int, seed: int) -> LayerOnDevice:
    """This side's share of a layer, reading ``x``: the parts of all towers where the layer gathers, else this side's
    part.
    """
    layer, name, share = placed.layer, placed.layer.name, side.count
    if isinstance(layer, spec.Conv):
        shape = conv_shape(placed, share, N, lanes)
        return ConvLayer(name, side, x, shape, layer.activation, first=placed.index == 0)
    if isinstance(layer, spec.Linear):
        return LinearLayer(name, side, x, linear_shape(placed, share, N, lanes), layer.activation)
    if isinstance(layer, spec.Pool):
        C = placed.C // share
        pool = PoolShape.of(N, C, placed.H, placed.W, layer.size, layer.stride, ceil_mode=True, lanes=lanes)
        return PoolLayer(name, side, x, pool)
    if isinstance(layer, spec.Lrn):
        groups = towers // share
        lrn = LrnShape(
            N, placed.C // share, placed.H, placed.W, groups, lanes, layer.size, layer.alpha, layer.beta, layer.k
        )
        return LrnLayer(name, side, x, lrn)
    return DropoutLayer(name, side, x, layer.p, seed, placed.index)
