"""Layers at work: each owns its tensors on one device and queues its kernels forward and backward.

``forward(train)`` fills ``y`` from ``x``. ``backward_data(dy)`` takes the gradient of the loss with respect to ``y``,
which it may overwrite, and returns the gradient with respect to ``x`` where a layer ``below`` needs it, else None.
``backward_weights(dy)`` then computes the gradients of the parameters, unless the layer is ``frozen``: two calls,
because the first result can already be on its way to another device meanwhile.

Where layers are fused, one of these stands for several layers of the specification, and the derivative of a ReLU is
applied by whoever writes the gradient with respect to its output: see ``Fusion``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..devices.protocol import Array, Device, Stream
from ..kernels.control import WORDS, control_words
from ..kernels.precision import BF16, activation_dtype
from ..kernels.shapes import ConvShape, DropoutShape, LinearShape, LrnShape, PoolShape
from ..ops import ops
from .plan import Plan


class Side:
    """What the layers of one device share: stream, precision, control block, scratch memory, and the plan of where
    activations and gradients lie.
    """

    def __init__(self, device: Device, precision: str, index: int, count: int, shared: bool):
        device.check_precision(precision)
        self.device, self.precision, self.index, self.count = device, precision, index, count
        self.stream: Stream = device.stream()
        self.control: Array = device.empty((WORDS,), np.uint32)
        self.stream.upload(self.control, control_words())
        self.workspace: Array | None = None
        self.plan = Plan(shared)
        self._workspace_bytes = 0

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """What activations and their gradients are made of."""
        return np.dtype(activation_dtype(self.precision))

    def needs_workspace(self, nbytes: int) -> None:
        """Notes scratch memory that some layer will use."""
        self._workspace_bytes = max(self._workspace_bytes, nbytes)

    def allocate(self) -> None:
        """Allocates what was noted, once all layers exist."""
        if self._workspace_bytes:
            self.workspace = self.device.empty((-(-self._workspace_bytes // 4),))
        self.plan.grant(self.device)


class Parameter:
    """A weight or bias with its gradient and velocity, all float32. ``decays``: takes part in weight decay. ``copy``:
    of a weight in bfloat16, where products read that.
    """

    def __init__(self, name: str, device: Device, shape: tuple[int, ...], decays: bool):
        self.name, self.decays = name, decays
        self.value, self.velocity = device.empty(shape), device.empty(shape)
        self.copy: Array | None = None
        self._gradient: Array | None = None

    @property
    def gradient(self) -> Array:
        """Memory for it comes with the first use: fused updates of linear layers never have any."""
        if self._gradient is None:
            self._gradient = self.value.device.empty(self.value.shape)
        return self._gradient


@dataclass(frozen=True)
class Fusion:
    """How a layer fits between its neighbours. ``index`` counts what stands in the network after fusing, ``count``
    of them; they are also the moments of ``plan.py``: forward at ``index``, the loss at ``count``, backward at
    2 ``count`` - ``index``.

    ``masks``: x is the output of a ReLU, and this layer's backward applies its derivative. ``masked``: whoever reads
    y does that for this layer.
    """

    index: int
    count: int
    masks: bool
    masked: bool

    @property
    def backward(self) -> int:
        return 2 * self.count - self.index


@dataclass
class LayerOnDevice(ABC):
    """One layer's share on one device. ``x`` is set once all layers have their memory."""

    name: str
    side: Side
    fusion: Fusion
    x: Array = field(init=False)
    y: Array = field(init=False)
    dx: Array = field(init=False)
    shape_in: tuple[int, ...] = field(init=False)
    shape_out: tuple[int, ...] = field(init=False)
    parameters: list[Parameter] = field(init=False, default_factory=list)  # the weight first
    frozen: bool = field(init=False, default=False)
    steps_backward: ClassVar[bool] = False  # does ``backward_weights`` update the weight, when it is given rates?

    @abstractmethod
    def forward(self, train: bool) -> None: ...

    @abstractmethod
    def backward_data(self, dy: Array, below: bool) -> Array | None: ...

    def backward_weights(self, dy: Array, rates: Mapping[str, float] | None) -> None:  # noqa: B027
        """With ``rates``, parameters whose gradients would be much traffic are updated at once: see ``LinearLayer``.
        ``dy`` is what ``backward_data`` left."""

    def updates(self, rates: Mapping[str, float], taken: bool) -> list[ops.Update]:
        """The step of all parameters, copies included; with ``taken``, of those that ``backward_weights`` left."""
        parameters = self.parameters[1:] if taken and self.steps_backward else self.parameters
        return [
            ops.Update(p.value, p.velocity, p.gradient, p.copy, rates.get(p.name, 1.0), float(p.decays), 1.0)
            for p in parameters
        ]

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

    @property
    def mask(self) -> Array | None:
        """What backward data masks its result by."""
        return self.x if self.fusion.masks else None

    def _parameter(self, kind: str, shape: tuple[int, ...]) -> Parameter:
        parameter = Parameter(f"{self.name}.{kind}", self.side.device, shape, decays=kind == "weight")
        self.parameters.append(parameter)
        return parameter

    def _want_output(self, shape: tuple[int, ...], read_backward: bool = False) -> None:
        """``y`` lives until the layer above has gone backward, or this one where it reads its own output then."""
        self.shape_out = shape
        last = self.fusion.backward - (0 if read_backward else 1)
        self.side.plan.want(self, "y", shape, self.side.dtype, self.fusion.index, last)

    def _want_gradient(self, shape: tuple[int, ...]) -> None:
        """``dx`` lives until the layer below has gone backward."""
        self.side.plan.want(self, "dx", shape, self.side.dtype, self.fusion.backward, self.fusion.backward + 1)

    def _want_bytes(self, name: str, shape: tuple[int, ...]) -> None:
        """One byte per element, from forward to backward."""
        self.side.plan.want(self, name, shape, np.uint8, self.fusion.index, self.fusion.backward)


@dataclass
class ConvLayer(LayerOnDevice):
    """Convolution with bias and activation.

    Where its input lies folded, products are those of ``shape.folded``, which have more terms for the tensor cores to
    work on at a time; the parameters keep their shape, and only what the products read and write is folded.
    """

    shape: ConvShape
    activation: str | None
    folds: bool
    first: bool  # nobody ever needs the gradient with respect to the images

    def __post_init__(self) -> None:
        self.product = self.shape.folded if self.folds else self.shape
        self.shape_in = self.product.x
        self._want_output(self.shape.y, read_backward=self.activation == "tanh" or not self.fusion.masked)
        if not self.first:
            self._want_gradient(self.shape.x)
        self.weight = self._parameter("weight", self.shape.weight)
        self.bias = self._parameter("bias", (self.shape.K,))
        self.filters, self.dfilters = self.weight.value, self.weight.gradient  # what products read and write
        if self.precision == "bf16":
            self.filters = self.side.device.empty(self.product.weight_copy, BF16)
        if self.folds:
            self.dfilters = self.side.device.empty(self.product.weight)
        elif self.precision == "bf16":
            self.weight.copy = self.filters
        kernels = self.side.device.kernels
        self.side.needs_workspace(kernels.conv_backward_filter_workspace(self.product, self.precision))

    def forward(self, train: bool) -> None:
        operands = self.x, self.filters, self.bias.value
        ops.conv_forward(self.stream, self.product, self.precision, *operands, self.y, self.activation == "relu")
        activate(self)

    def backward_data(self, dy: Array, below: bool) -> Array | None:
        activate_backward(self, dy)
        if not below:
            return None
        ops.conv_backward_data(self.stream, self.product, self.precision, dy, self.filters, self.dx, self.mask)
        return self.dx

    def backward_weights(self, dy: Array, rates: Mapping[str, float] | None) -> None:
        if self.frozen:
            return
        operands = dy, self.x, self.dfilters, self.bias.gradient, self.side.workspace
        ops.conv_backward_filter(self.stream, self.product, self.precision, *operands)
        if self.folds:
            ops.unfold_gradient(self.stream, self.shape, self.dfilters, self.weight.gradient)

    def copy_weights(self) -> None:
        super().copy_weights()
        self.fold_weights()

    def fold_weights(self) -> None:
        """Makes the folded copy anew: an update does not write it."""
        if self.folds:
            ops.fold_weight(self.stream, self.shape, self.weight.value, self.filters)


@dataclass
class LinearLayer(LayerOnDevice):
    """Fully-connected layer with bias, activation, and the dropout behind a ReLU.

    Of ReLU and dropout together the derivative is 1 where y is positive. With ``rates``, ``backward_weights`` updates
    the weights while it computes their gradient, which then never exists in memory; ``backward_data`` comes first and
    reads the weights that were.
    """

    shape: LinearShape
    activation: str | None
    dropout: DropoutShape | None
    steps_backward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.shape_in = self.shape.x  # maps are flattened in the order channel, row, column
        self._want_output(self.shape.y, read_backward=self.activation == "tanh" or not self.fusion.masked)
        self._want_gradient(self.shape.x)
        self.weight = self._parameter("weight", self.shape.weight)
        self.bias = self._parameter("bias", (self.shape.K,))
        if self.precision == "bf16":
            self.weight.copy = self.side.device.empty(self.shape.weight_copy, BF16)
        self.matrix = self.weight.copy or self.weight.value  # what products read
        self.side.needs_workspace(self.side.device.kernels.linear_workspace(self.shape, self.precision))

    def forward(self, train: bool) -> None:
        operands = self.x, self.matrix, self.bias.value
        relu, workspace = self.activation == "relu", self.side.workspace
        dropping = self.dropout, self.side.control if self.dropout and train else None
        ops.linear_forward(self.stream, self.shape, self.precision, *operands, self.y, relu, *dropping, workspace)
        activate(self)

    def backward_data(self, dy: Array, below: bool) -> Array | None:
        activate_backward(self, dy)
        if not below:
            return None
        operands = dy, self.matrix, self.dx, self.mask, self.side.workspace
        ops.linear_backward_data(self.stream, self.shape, self.precision, *operands)
        return self.dx

    def backward_weights(self, dy: Array, rates: Mapping[str, float] | None) -> None:
        problem = self.stream, self.shape, self.precision
        w, dbias, workspace = self.weight, self.bias.gradient, self.side.workspace
        if self.frozen:
            return
        if rates is None:
            ops.linear_backward_filter(*problem, dy, self.x, w.gradient, dbias, workspace)
            return
        ops.linear_backward_filter_update(
            *problem,
            dy,
            self.x,
            w.value,
            w.velocity,
            w.copy,
            dbias,
            self.side.control,
            rates.get(w.name, 1.0),
            float(w.decays),
            1.0,
            workspace,
        )


def activate(layer: ConvLayer | LinearLayer) -> None:
    """What of the activation is not part of the product, in place."""
    if layer.activation == "tanh":
        ops.activation_forward(layer.stream, layer.precision, "tanh", 1.0, 1.0, layer.y, layer.y)


def activate_backward(layer: ConvLayer | LinearLayer, dy: Array) -> None:
    """Makes ``dy`` the gradient with respect to what the activation was applied to, unless it is that already."""
    if layer.activation == "tanh":
        ops.activation_backward(layer.stream, layer.precision, "tanh", 1.0, 1.0, dy, layer.y, dy)
    elif layer.activation == "relu" and not layer.fusion.masked:
        ops.relu_backward(layer.stream, layer.precision, dy, layer.y, dy)


@dataclass
class PoolLayer(LayerOnDevice):
    """Max-pooling. Behind a ReLU the maximum says whether its gradient passes: it is positive, or it is 0."""

    shape: PoolShape

    def __post_init__(self) -> None:
        self.shape_in = self.shape.x
        self._want_output(self.shape.y, read_backward=self.fusion.masks)
        self._want_bytes("argmax", self.shape.y)
        self._want_gradient(self.shape.x)
        self.argmax: Array

    def forward(self, train: bool) -> None:
        argmax = self.argmax if train else None
        ops.max_pool_forward(self.stream, self.shape, self.precision, self.x, self.y, argmax)

    def backward_data(self, dy: Array, below: bool) -> Array:
        mask = self.y if self.fusion.masks else None
        ops.max_pool_backward(self.stream, self.shape, self.precision, dy, self.argmax, mask, self.dx)
        return self.dx


@dataclass
class LrnLayer(LayerOnDevice):
    """Local response normalisation inside each tower, or across them."""

    shape: LrnShape

    def __post_init__(self) -> None:
        self.shape_in = self.shape.x
        self._want_output(self.shape.x)
        self._want_gradient(self.shape.x)

    def forward(self, train: bool) -> None:
        ops.lrn_forward(self.stream, self.shape, self.precision, self.x, self.y)

    def backward_data(self, dy: Array, below: bool) -> Array:
        ops.lrn_backward(self.stream, self.shape, self.precision, dy, self.x, self.dx)
        return self.dx


@dataclass
class LrnPoolLayer(LayerOnDevice):
    """Local response normalisation and max-pooling: what lies between the two is never in memory."""

    lrn: LrnShape
    pool: PoolShape

    def __post_init__(self) -> None:
        self.shape_in = self.pool.x
        self._want_output(self.pool.y)
        self._want_bytes("argmax", self.pool.y)
        self._want_gradient(self.pool.x)
        self.argmax: Array

    def forward(self, train: bool) -> None:
        argmax = self.argmax if train else None
        ops.lrn_pool_forward(self.stream, self.lrn, self.pool, self.precision, self.x, self.y, argmax)

    def backward_data(self, dy: Array, below: bool) -> Array:
        problem = self.stream, self.lrn, self.pool, self.precision
        ops.lrn_pool_backward(*problem, dy, self.argmax, self.x, self.dx, relu=self.fusion.masks)
        return self.dx


@dataclass
class DropoutLayer(LayerOnDevice):
    """Dropout without scaling in training; at test the features are multiplied by 1 - p. ``scaled`` the other way
    round: what is kept is divided by 1 - p in training, and so are gradients; at test nothing happens.
    """

    shape: DropoutShape
    like: tuple[int, ...]  # the shape of x and y, maps or features
    scaled: bool

    def __post_init__(self) -> None:
        self.shape_in = self.like
        self._want_output(self.like)
        self._want_bytes("kept", self.like)
        self._want_gradient(self.like)
        self.kept: Array

    def forward(self, train: bool) -> None:
        if not train:
            factor = 1.0 if self.scaled else 1.0 - self.shape.p
            ops.scale(self.stream, self.precision, self.x, factor, self.y)
            return
        x, y, mask = (array.view(self.shape.x) for array in (self.x, self.y, self.kept))
        ops.dropout_forward(self.stream, self.shape, self.precision, x, y, mask, self.side.control)
        self._scale(self.y)

    def backward_data(self, dy: Array, below: bool) -> Array:
        ops.dropout_backward(self.stream, self.precision, dy, self.kept, self.dx)
        self._scale(self.dx)
        return self.dx

    def _scale(self, kept: Array) -> None:
        if self.scaled:
            ops.scale(self.stream, self.precision, kept, 1.0 / (1.0 - self.shape.p), kept)
