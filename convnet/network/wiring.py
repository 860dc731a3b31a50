"""The layers of a network on its devices, and the work of a step: queued here, neither waited for nor looked at.

Every device ("side") runs its share of every layer. In front of a layer that gathers, every side fetches the other
sides' parts of the activation, and on the way back every side sums the gradients that all sides computed for its part,
in the order of the sides. Nothing else crosses between devices.

All that a step is told besides its images lies in device memory (``control.py``), so that what is queued here can be
captured once and launched again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from ..devices.protocol import Array, Stream
from ..kernels.shapes import SoftmaxShape
from ..ops import ops
from .assemble import build, fuse, masks
from .exchange import Exchange
from .layers import ConvLayer, Fusion, LayerOnDevice, Side
from .spec import Conv, Linear, NetworkSpec, Placed, placed_layers

MOST_TENSORS = 32  # that one launch updates


class Wiring:
    """``blocks[i][side]``: what runs as one, on every side that has a share in it; ``groups[i]`` are its layers."""

    def __init__(self, spec: NetworkSpec, sides: list[Side], N: int, lanes: int, seed: int, fused: bool):
        self.spec, self.sides, self.N, self.lanes, self.fused = spec, sides, N, lanes, fused
        self.groups = fuse(list(placed_layers(spec)), fused)
        self.blocks: list[list[LayerOnDevice]] = []
        self._wholes: dict[int, list[Whole]] = {}  # gathered inputs, by block
        part = 0
        for index, group in enumerate(self.groups):
            first = group[0]
            above = self.groups[index + 1] if index + 1 < len(self.groups) else None
            fusion = Fusion(
                index,
                len(self.groups),
                masks=fused and index > 0 and masks(group) and _ends_in_relu(self.groups[index - 1]),
                masked=fused and _ends_in_relu(group) and above is not None and masks(above),
            )
            here = sides[:1] if isinstance(first.layer, Linear) and not first.layer.split else sides
            block = [build(group, side, fusion, N, lanes, spec, seed) for side in here]
            if first.gathers and len(sides) > 1:
                self._wholes[index] = [Whole(layer) for layer in block]
                part = max(part, math.prod(self.blocks[index - 1][0].shape_out))
            self.blocks.append(block)
        top = self.blocks[-1][0]
        self.dlogits: Array
        sides[0].plan.want(self, "dlogits", top.shape_out, sides[0].dtype, len(self.groups), len(self.groups) + 1)
        for side in sides:
            side.allocate()
        self.exchange = Exchange(sides, part)
        first_device = sides[0].device
        self.losses, self.ranks = first_device.empty((N,)), first_device.empty((N,), np.int32)
        for index, block in enumerate(self.blocks):
            below_block = self.blocks[index - 1] if index else []
            for k, layer in enumerate(block):
                if index in self._wholes:
                    layer.x = self._wholes[index][k].x.view(layer.shape_in)
                elif below_block:
                    layer.x = below_block[k].y.view(layer.shape_in)

    def read(self, inputs: list[Array]) -> None:
        """From now on the first layer reads these, one per side."""
        for layer, array in zip(self.blocks[0], inputs, strict=True):
            layer.x = array

    @property
    def streams(self) -> list[Stream]:
        """All that work is queued on."""
        return [side.stream for side in self.sides] + self.exchange.streams

    @property
    def learning(self) -> list[list[LayerOnDevice]]:
        """Blocks that have weights, those of frozen layers included."""
        return [block for block in self.blocks if block[0].parameters]

    @property
    def logits(self) -> Array:
        return self.blocks[-1][0].y

    def forward(self, train: bool) -> None:
        """Logits from what the first layer reads."""
        for _ in self.forward_by_block(train):
            pass

    def forward_by_block(self, train: bool) -> Iterator[list[LayerOnDevice]]:
        """The same, block by block: each is handed out when its work is queued."""
        self.exchange.log.clear()
        for index, block in enumerate(self.blocks):
            if index in self._wholes:
                parts = [layer.y for layer in self.blocks[index - 1]]
                self.exchange.gather(block[0].name, parts, [whole.x for whole in self._wholes[index]])
            for layer in block:
                layer.forward(train)
            yield block

    def backward(self, labels: Array, n: int, rates: Mapping[str, float] | None = None) -> None:
        """Losses, ranks and gradients for the first ``n`` images. With ``rates``, factors on the learning rate by
        parameter, all parameters that are not frozen have taken their step in the end."""
        first = self.sides[0]
        shape = SoftmaxShape(self.N, n, self.spec.classes, self.lanes)
        results = self.losses, self.ranks, None, self.dlogits, first.control
        ops.softmax_cross_entropy(first.stream, shape, first.precision, self.logits, labels, *results)
        self._share_control()
        gradients: list[Array] = [self.dlogits]
        lowest = min(index for index, block in enumerate(self.blocks) if block[0].parameters and not block[0].frozen)
        for index in range(len(self.blocks) - 1, lowest - 1, -1):
            block = self.blocks[index]
            passed = [layer.backward_data(dy, index > lowest) for layer, dy in zip(block, gradients, strict=True)]
            computed = [dx for dx in passed if dx is not None]
            crosses = index > lowest and index in self._wholes
            if crosses:
                self.exchange.scatter(block[0].name, computed, self.blocks[index - 1][0].y.shape)
            for layer, dy in zip(block, gradients, strict=True):
                layer.backward_weights(dy, rates)
            if index == lowest:
                break
            below = self.blocks[index - 1]
            gradients = self.exchange.sums() if crosses else computed
            # a layer may see its input with another shape (features instead of maps)
            gradients = [dx.view(layer.y.shape) for dx, layer in zip(gradients, below, strict=True)]
        if rates is not None:
            self._update(rates, taken=True)

    def update(self, rates: Mapping[str, float]) -> None:
        """The step of all parameters, from their gradients."""
        self._update(rates, taken=False)

    def _update(self, rates: Mapping[str, float], taken: bool) -> None:
        """``taken``: some parameters took their step in ``backward`` already."""
        for side in self.sides:
            here = [layer for block in self.learning for layer in block if layer.side is side and not layer.frozen]
            updates = [update for layer in here for update in layer.updates(rates, taken)]
            for start in range(0, len(updates), MOST_TENSORS):
                ops.sgd_many(side.stream, updates[start : start + MOST_TENSORS], side.control)
            for layer in here:
                if isinstance(layer, ConvLayer):
                    layer.fold_weights()

    def _share_control(self) -> None:
        """Tells all sides what the loss said."""
        first, *others = self.sides
        for side in others:
            side.stream.wait(first.stream.record())
            side.stream.copy(side.control, first.control)
            first.stream.wait(side.stream.record())


class Whole:
    """An activation that a side gathered from all, for one of its layers."""

    def __init__(self, layer: LayerOnDevice):
        self.x: Array
        fusion, side = layer.fusion, layer.side
        side.plan.want(self, "x", layer.shape_in, side.dtype, fusion.index, fusion.backward)


def _ends_in_relu(group: list[Placed]) -> bool:
    """Whether what runs ``group`` ends in a ReLU, a dropout behind it included."""
    layer = group[0].layer
    return isinstance(layer, (Conv, Linear)) and layer.activation == "relu"
