"""Layers at work: each owns its tensors on one device and queues its kernels forward and backward.

``forward(train)`` fills ``y`` from what the layer's ``inputs`` hold. ``backward_data(dy, wanted)`` takes the gradient
of the loss with respect to ``y``, which it may overwrite, and returns the gradients with respect to the inputs, in
their order: None where ``wanted`` says that nobody needs one. ``backward_weights(dy)`` then computes the gradients of
the parameters, unless the layer is ``frozen``: two calls, because the first results can already be on their way to
another device meanwhile.

Where layers are fused, one of these stands for several layers of the specification, and the derivative of a ReLU is
applied by whoever writes the gradient with respect to its output: see ``Fusion``. What there is: ``products.py`` has
the layers that have weights, ``maps.py`` all others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..devices.protocol import Array, Device, Stream
from ..kernels.control import WORDS, control_words
from ..kernels.precision import activation_dtype
from ..kernels.shapes import ConvShape
from ..ops import ops
from .plan import Plan
from .spec import Pace


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


MOST_TENSORS = 32  # that one launch updates


def take_steps(side: Side, updates: Sequence[ops.Update]) -> None:
    """Queues these steps of parameters."""
    for start in range(0, len(updates), MOST_TENSORS):
        ops.sgd_many(side.stream, updates[start : start + MOST_TENSORS], side.control)


@dataclass(frozen=True)
class Folded:
    """What the products of a folded layer write and read of its weight, which keeps ``shape``."""

    shape: ConvShape
    gradient: Array
    copy: Array


class Parameter:
    """A weight or bias with its gradient and velocity, all float32, and how fast it learns. ``copy``: of a weight in
    bfloat16, where products read that; or ``folded``. ``summed``: the gradient over all shards of a batch that is
    shared out.
    """

    def __init__(self, name: str, device: Device, shape: tuple[int, ...], pace: Pace):
        self.name, self.pace = name, pace
        self.value, self.velocity = device.empty(shape), device.empty(shape)
        self.copy: Array | None = None
        self.folded: Folded | None = None
        self.summed: Array | None = None
        self._gradient: Array | None = None

    @property
    def gradient(self) -> Array:
        """Memory for it comes with the first use: fused updates of linear layers, and of folded ones, have none."""
        if self._gradient is None:
            self._gradient = self.value.device.empty(self.value.shape)
        return self._gradient

    def rate(self, rates: Mapping[str, float]) -> float:
        """The factor on the learning rate, 0 where it keeps its value."""
        return self.pace.lr * rates.get(self.name, 1.0)

    def update(self, rate: float, folded: bool) -> ops.Update:
        """Its step; with ``folded``, of one that folds, from the folded gradient, and with its copy."""
        factors = rate, self.pace.decay, self.pace.momentum
        if folded and (f := self.folded):
            return ops.Update(self.value, self.velocity, f.gradient, f.copy, *factors, f.shape)
        return ops.Update(self.value, self.velocity, self.summed or self.gradient, self.copy, *factors)


@dataclass(frozen=True)
class Fusion:
    """How a layer fits among the others. ``index`` counts what stands in the network after fusing, ``count`` of them;
    they are also the moments of ``plan.py``: forward at ``index``, the loss at ``count``, backward at 2 ``count`` -
    ``index``. ``inputs`` are the indices of those that it reads, None where nobody needs a gradient from it; ``reader``
    is the first one that reads its output, ``count`` where that is the loss.

    ``masks``: of each input, whether it is the output of a ReLU whose derivative this layer's backward applies.
    ``masked``: all who read y do that for this layer.
    """

    index: int
    count: int
    inputs: tuple[int | None, ...]
    reader: int
    masks: tuple[bool, ...]
    masked: bool

    @property
    def backward(self) -> int:
        return 2 * self.count - self.index


class Input:
    """What a layer reads, and the gradient with respect to it, which lives until whoever made it has gone backward.

    ``x`` is set once all layers have their memory.
    """

    x: Array
    dx: Array

    def __init__(self, layer: LayerOnDevice, place: int, shape: tuple[int, ...]):
        self.shape, self._masks = shape, layer.fusion.masks[place]
        fusion = layer.fusion
        if (made_by := fusion.inputs[place]) is not None:
            last = 2 * fusion.count - made_by
            layer.side.plan.want(self, "dx", shape, layer.side.dtype, fusion.backward, last)

    @property
    def mask(self) -> Array | None:
        """What the gradient is masked by."""
        return self.x if self._masks else None


@dataclass
class LayerOnDevice(ABC):
    """One layer's share on one device."""

    name: str
    side: Side
    fusion: Fusion
    inputs: list[Input] = field(init=False, default_factory=list)
    y: Array = field(init=False)
    shape_out: tuple[int, ...] = field(init=False)
    parameters: list[Parameter] = field(init=False, default_factory=list)  # weights first, the bias last
    frozen: bool = field(init=False, default=False)
    steps_backward: ClassVar[bool] = False  # does ``backward_weights`` update weights, when it is given rates?

    @abstractmethod
    def forward(self, train: bool) -> None: ...

    @abstractmethod
    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]: ...

    def backward_weights(self, dy: Array, rates: Mapping[str, float] | None) -> None:  # noqa: B027
        """With ``rates``, parameters whose gradients would be much traffic are updated at once: see ``LinearLayer``.
        ``dy`` is what ``backward_data`` left."""

    def updates(self, rates: Mapping[str, float], taken: bool) -> list[ops.Update]:
        """The step of all parameters, copies included; with ``taken``, of those that ``backward_weights`` left, from
        what it has left. Without, nothing writes a folded copy."""
        parameters = self.parameters[-1:] if taken and self.steps_backward else self.parameters
        return [p.update(rate, taken) for p in parameters if (rate := p.rate(rates))]

    def copy_weights(self) -> None:
        """Makes the copies anew, after the weights were replaced."""
        for p in self.parameters:
            if p.copy is not None:
                ops.cast_weight(self.stream, p.value, p.copy)

    @property
    def x(self) -> Array:
        """What it reads, of a layer with one input."""
        return self.inputs[0].x

    @property
    def stream(self) -> Stream:
        return self.side.stream

    @property
    def precision(self) -> str:
        return self.side.precision

    def _reads(self, *shapes: tuple[int, ...]) -> None:
        self.inputs = [Input(self, place, shape) for place, shape in enumerate(shapes)]

    def _parameter(self, kind: str, shape: tuple[int, ...], pace: Pace) -> Parameter:
        parameter = Parameter(f"{self.name}.{kind}", self.side.device, shape, pace)
        self.parameters.append(parameter)
        return parameter

    def _want_output(self, shape: tuple[int, ...], read_backward: bool = False) -> None:
        """``y`` lives until all that read it have gone backward, or this one where it reads its own output then."""
        self.shape_out = shape
        last = self.fusion.backward if read_backward else 2 * self.fusion.count - self.fusion.reader
        self.side.plan.want(self, "y", shape, self.side.dtype, self.fusion.index, last)

    def _want_bytes(self, name: str, shape: tuple[int, ...]) -> None:
        """One byte per element, from forward to backward."""
        self.side.plan.want(self, name, shape, np.uint8, self.fusion.index, self.fusion.backward)
