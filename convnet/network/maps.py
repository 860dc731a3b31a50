"""The layers without weights: pooling, normalisation, activations, dropout, and what puts several inputs together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..devices.protocol import Array
from ..kernels.activations import ACTIVATIONS
from ..kernels.shapes import (
    BlurShape,
    DropoutShape,
    GatherShape,
    LrnShape,
    NailbedShape,
    PoolShape,
    SpatialNormShape,
)
from ..ops import ops
from .exchange import image_blocks
from .layers import LayerOnDevice


@dataclass
class PoolLayer(LayerOnDevice):
    """Max-pooling. Behind a ReLU the maximum says whether its gradient passes: it is positive, or it is 0."""

    shape: PoolShape

    def __post_init__(self) -> None:
        self._want_output(self.shape.y, read_backward=self.fusion.masks[0])
        self._want_bytes("argmax", self.shape.y)
        self._reads(self.shape.x)
        self.argmax: Array

    def forward(self, train: bool) -> None:
        argmax = self.argmax if train else None
        ops.max_pool_forward(self.stream, self.shape, self.precision, self.x, self.y, argmax)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        mask = self.y if self.fusion.masks[0] else None
        dx = self.inputs[0].dx
        ops.max_pool_backward(self.stream, self.shape, self.precision, dy, self.argmax, mask, dx)
        return [dx]


@dataclass
class RandPoolLayer(LayerOnDevice):
    """Stochastic pooling; its gradient is that of max-pooling, with what was drawn in place of the maximum."""

    shape: PoolShape
    draw: DropoutShape

    def __post_init__(self) -> None:
        self._want_output(self.shape.y)
        self._want_bytes("drawn", self.shape.y)
        self._reads(self.shape.x)
        self.drawn: Array

    def forward(self, train: bool) -> None:
        x, y = self.x, self.y
        if not train:
            ops.rand_pool_mean(self.stream, self.shape, self.precision, x, y)
            return
        shapes = self.shape, self.draw
        ops.rand_pool_forward(self.stream, *shapes, self.precision, x, y, self.drawn, self.side.control)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        dx = self.inputs[0].dx
        ops.max_pool_backward(self.stream, self.shape, self.precision, dy, self.drawn, None, dx)
        return [dx]


@dataclass
class LrnLayer(LayerOnDevice):
    """Local response normalisation inside each tower, or across them."""

    shape: LrnShape

    def __post_init__(self) -> None:
        self._want_output(self.shape.x)
        self._reads(self.shape.x)

    def forward(self, train: bool) -> None:
        ops.lrn_forward(self.stream, self.shape, self.precision, self.x, self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        dx = self.inputs[0].dx
        ops.lrn_backward(self.stream, self.shape, self.precision, dy, self.x, dx)
        return [dx]


@dataclass
class LrnPoolLayer(LayerOnDevice):
    """Local response normalisation and max-pooling: what lies between the two is never in memory."""

    lrn: LrnShape
    pool: PoolShape

    def __post_init__(self) -> None:
        self._want_output(self.pool.y)
        self._want_bytes("argmax", self.pool.y)
        self._reads(self.pool.x)
        self.argmax: Array

    def forward(self, train: bool) -> None:
        argmax = self.argmax if train else None
        ops.lrn_pool_forward(self.stream, self.lrn, self.pool, self.precision, self.x, self.y, argmax)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        problem, dx = (self.stream, self.lrn, self.pool, self.precision), self.inputs[0].dx
        ops.lrn_pool_backward(*problem, dy, self.argmax, self.x, dx, relu=self.fusion.masks[0])
        return [dx]


@dataclass
class AvgPoolLayer(LayerOnDevice):
    """Average pooling."""

    shape: PoolShape

    def __post_init__(self) -> None:
        self._want_output(self.shape.y)
        self._reads(self.shape.x)

    def forward(self, train: bool) -> None:
        ops.avg_pool_forward(self.stream, self.shape, self.precision, self.x, self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        (read,) = self.inputs
        ops.avg_pool_backward(self.stream, self.shape, self.precision, dy, read.mask, read.dx)
        return [read.dx]


@dataclass
class SpatialNormLayer(LayerOnDevice):
    """Response normalisation within a map; with ``contrast``, of deviations from means."""

    shape: SpatialNormShape
    contrast: bool

    def __post_init__(self) -> None:
        self._want_output(self.shape.x)
        self._reads(self.shape.x)
        kernels = self.side.device.kernels
        workspace = kernels.cnorm_workspace if self.contrast else kernels.rnorm_workspace
        self.side.needs_workspace(workspace(self.shape, self.precision))

    def forward(self, train: bool) -> None:
        operands = self.stream, self.shape, self.precision, self.x, self.y
        if self.contrast:
            ops.cnorm_forward(*operands, self.side.workspace)
        else:
            ops.rnorm_forward(*operands)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        backward = ops.cnorm_backward if self.contrast else ops.rnorm_backward
        dx = self.inputs[0].dx
        backward(self.stream, self.shape, self.precision, dy, self.x, dx, self.side.workspace)
        return [dx]


@dataclass
class ActivationLayer(LayerOnDevice):
    """What is done to every value alone."""

    like: tuple[int, ...]
    kind: str
    a: float
    b: float

    def __post_init__(self) -> None:
        self.saves = ACTIVATIONS[self.kind].reads
        self._want_output(self.like, read_backward=self.saves == "y")
        self._reads(self.like)

    def forward(self, train: bool) -> None:
        ops.activation_forward(self.stream, self.precision, self.kind, self.a, self.b, self.x, self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        saved = {"x": self.x, "y": self.y, "": None}[self.saves]
        dx = self.inputs[0].dx
        ops.activation_backward(self.stream, self.precision, self.kind, self.a, self.b, dy, saved, dx)
        return [dx]


@dataclass
class BlurLayer(LayerOnDevice):
    """A Gaussian over every map; its taps are symmetric, so that backward is the same."""

    shape: BlurShape

    def __post_init__(self) -> None:
        self._want_output(self.shape.x)
        self._reads(self.shape.x)

    def forward(self, train: bool) -> None:
        ops.blur(self.stream, self.shape, self.precision, self.x, self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        ops.blur(self.stream, self.shape, self.precision, dy, self.inputs[0].dx)
        return [self.inputs[0].dx]


@dataclass
class NailbedLayer(LayerOnDevice):
    """Some pixels of every map."""

    shape: NailbedShape

    def __post_init__(self) -> None:
        self._want_output(self.shape.y)
        self._reads(self.shape.x)

    def forward(self, train: bool) -> None:
        ops.nailbed_forward(self.stream, self.shape, self.precision, self.x, self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        ops.nailbed_backward(self.stream, self.shape, self.precision, dy, self.inputs[0].dx)
        return [self.inputs[0].dx]


@dataclass
class MirrorLayer(LayerOnDevice):
    """Maps with their columns in reverse; backward is the same."""

    like: tuple[int, ...]
    shape: GatherShape

    def __post_init__(self) -> None:
        self._want_output(self.like)
        self._reads(self.like)
        self.table = self.side.device.empty((self.shape.K,), np.int32)
        self.stream.upload(self.table, np.arange(self.shape.K, dtype=np.int32)[::-1].copy())

    def forward(self, train: bool) -> None:
        self._mirror(self.x, self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        self._mirror(dy, self.inputs[0].dx)
        return [self.inputs[0].dx]

    def _mirror(self, x: Array, y: Array) -> None:
        rows, mirrored = x.view(self.shape.x), y.view(self.shape.y)
        ops.gather_channels(self.stream, self.shape, self.precision, rows, self.table, mirrored)


@dataclass
class DropoutLayer(LayerOnDevice):
    """Dropout without scaling in training; at test the features are multiplied by 1 - p. ``scaled`` the other way
    round: what is kept is divided by 1 - p in training, and so are gradients; at test nothing happens.
    """

    shape: DropoutShape
    like: tuple[int, ...]  # the shape of x and y, maps or features
    scaled: bool

    def __post_init__(self) -> None:
        self._want_output(self.like)
        self._want_bytes("kept", self.like)
        self._reads(self.like)
        self.kept: Array

    def forward(self, train: bool) -> None:
        if not train:
            factor = 1.0 if self.scaled else 1.0 - self.shape.p
            ops.scale(self.stream, self.precision, self.x, factor, self.y)
            return
        x, y, mask = (array.view(self.shape.x) for array in (self.x, self.y, self.kept))
        ops.dropout_forward(self.stream, self.shape, self.precision, x, y, mask, self.side.control)
        self._scale(self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        dx = self.inputs[0].dx
        ops.dropout_backward(self.stream, self.precision, dy, self.kept, dx)
        self._scale(dx)
        return [dx]

    def _scale(self, kept: Array) -> None:
        if self.scaled:
            ops.scale(self.stream, self.precision, kept, 1.0 / (1.0 - self.shape.p), kept)


@dataclass
class ScaleLayer(LayerOnDevice):
    """Everything times a number."""

    like: tuple[int, ...]
    factor: float

    def __post_init__(self) -> None:
        self._want_output(self.like)
        self._reads(self.like)

    def forward(self, train: bool) -> None:
        ops.scale(self.stream, self.precision, self.x, self.factor, self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        if not wanted[0]:
            return [None]
        ops.scale(self.stream, self.precision, dy, self.factor, self.inputs[0].dx)
        return [self.inputs[0].dx]


@dataclass
class ConcatLayer(LayerOnDevice):
    """The maps of its inputs, one behind the other: copies, one for each block of images and input."""

    likes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        blocks, _, *rest = self.likes[0]
        self._want_output((blocks, sum(like[1] for like in self.likes), *rest))
        self._reads(*self.likes)

    def forward(self, train: bool) -> None:
        for read, parts in zip(self.inputs, self._parts(self.y), strict=True):
            for target, source in zip(parts, image_blocks(read.x), strict=True):
                self.stream.copy(target, source)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        found: list[Array | None] = []
        for read, parts, needed in zip(self.inputs, self._parts(dy), wanted, strict=True):
            if needed:
                for target, source in zip(image_blocks(read.dx), parts, strict=True):
                    self.stream.copy(target, source)
            found.append(read.dx if needed else None)
        return found

    def _parts(self, whole: Array) -> list[list[Array]]:
        """Where every input's maps lie in ``whole``, by block of images."""
        found, start = [], 0
        block = whole.size // whole.shape[0]
        for like in self.likes:
            found.append([whole.view(like[1:], i * block + start) for i in range(like[0])])
            start += math.prod(like[1:])
        return found


@dataclass
class SumLayer(LayerOnDevice):
    """The sum of its inputs, each times its coefficient, added up in their order."""

    like: tuple[int, ...]
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        self._want_output(self.like)
        self._reads(*[self.like] * len(self.coefficients))

    def forward(self, train: bool) -> None:
        on, y = (self.stream, self.precision), self.y
        for i, (read, c) in enumerate(zip(self.inputs, self.coefficients, strict=True)):
            if i:
                ops.weighted_add(*on, y, 1.0, read.x, c, y)
            else:
                ops.scale(*on, read.x, c, y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        found: list[Array | None] = []
        for read, c, needed in zip(self.inputs, self.coefficients, wanted, strict=True):
            if needed:
                ops.scale(self.stream, self.precision, dy, c, read.dx)
            found.append(read.dx if needed else None)
        return found


@dataclass
class MaxLayer(LayerOnDevice):
    """The largest value of its inputs; all that are as large get the gradient."""

    like: tuple[int, ...]
    count: int

    def __post_init__(self) -> None:
        self._want_output(self.like, read_backward=True)
        self._reads(*[self.like] * self.count)

    def forward(self, train: bool) -> None:
        first, *others = self.inputs
        ops.scale(self.stream, self.precision, first.x, 1.0, self.y)
        for read in others:
            ops.maximum(self.stream, self.precision, self.y, read.x, self.y)

    def backward_data(self, dy: Array, wanted: Sequence[bool]) -> list[Array | None]:
        found: list[Array | None] = []
        for read, needed in zip(self.inputs, wanted, strict=True):
            if needed:
                ops.maximum_backward(self.stream, self.precision, dy, read.x, self.y, read.dx)
            found.append(read.dx if needed else None)
        return found
