"""The layers of a network on its devices, and the work of a step: queued here, neither waited for nor looked at.

Every device ("side") runs its share of every layer. In front of a layer that gathers, every side fetches the other
sides' parts of the activation, and on the way back every side sums the gradients that all sides computed for its part,
in the order of the sides. Nothing else crosses between devices.

All that a step is told besides its images lies in device memory (``control.py``), so that what is queued here can be
captured once and launched again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ..devices.protocol import Array, Stream
from ..kernels.shapes import SoftmaxShape
from ..ops import ops
from .assemble import build, fusions, groups
from .exchange import Exchange
from .layers import Input, LayerOnDevice, Side, take_steps
from .products import ConvLayer
from .spec import SOFTMAX, SQUARES, Activation, Cost, Linear, NetworkSpec


class Wiring:
    """``blocks[i][side]``: what runs as one, on every side that has a share in it; ``groups[i]`` has its layers."""

    def __init__(self, spec: NetworkSpec, sides: list[Side], N: int, lanes: int, seed: int, fused: bool):
        self.spec, self.sides, self.N, self.lanes, self.fused = spec, sides, N, lanes, fused
        self.groups = groups(spec, fused)
        self.blocks: list[list[LayerOnDevice]] = []
        self._wholes: dict[int, list[Whole]] = {}  # gathered inputs, by block: it reads nothing else
        part = 0
        for index, (group, fusion) in enumerate(zip(self.groups, fusions(self.groups, spec, fused), strict=True)):
            first = group.first
            here = sides[:1] if isinstance(first.layer, Linear) and not first.layer.split else sides
            block = [build(group, side, fusion, N, lanes, spec, seed) for side in here]
            if first.gathers and len(sides) > 1:
                self._wholes[index] = [Whole(layer) for layer in block]
                part = max(part, math.prod(self.blocks[group.inputs[0]][0].shape_out))
            self.blocks.append(block)
        costs = spec.costs or (Cost(SOFTMAX, spec.layers[-1].name),)
        self.costs = [Loss(cost, self, sides[0]) for cost in costs]
        # what ranks the classes
        self._ranking = next((cost for cost in costs if cost.knows_classes), Cost(SQUARES, spec.layers[-1].name))
        for side in sides:
            side.allocate()
        self.exchange = Exchange(sides, part)
        first_device = sides[0].device
        self.losses, self.ranks = first_device.empty((N,)), first_device.empty((N,), np.int32)
        alone = len(self.costs) == 1 and self.costs[0].kind == SOFTMAX
        self._part = self.losses if alone else first_device.empty((N,))  # the losses of one of several costs
        self.images: list[tuple[int, Input]] = []  # what reads the images, with its side
        for index, (group, block) in enumerate(zip(self.groups, self.blocks, strict=True)):
            for k, layer in enumerate(block):
                for place, read in zip(group.inputs, layer.inputs, strict=True):
                    if index in self._wholes:
                        read.x = self._wholes[index][k].x.view(read.shape)
                    elif place >= 0:
                        read.x = self.blocks[place][k].y.view(read.shape)
                    else:
                        self.images.append((k, read))

    def read(self, inputs: list[Array]) -> None:
        """From now on these are the images, one array per side."""
        for side, read in self.images:
            read.x = inputs[side].view(read.shape)

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
        y = self.blocks[self.block_of(self.spec.layers[-1].name)][0].y
        return y.view((y.shape[0], y.size // self.N, self.lanes))

    def forward(self, train: bool) -> None:
        """Logits from the images."""
        for _ in self.forward_by_block(train):
            pass

    def forward_by_block(self, train: bool) -> Iterator[list[LayerOnDevice]]:
        """The same, block by block: each is handed out when its work is queued."""
        self.exchange.log.clear()
        for index, block in enumerate(self.blocks):
            if index in self._wholes:
                parts = [layer.y for layer in self.blocks[self.groups[index].inputs[0]]]
                self.exchange.gather(block[0].name, parts, [whole.x for whole in self._wholes[index]])
            for layer in block:
                layer.forward(train)
            yield block

    def backward(
        self,
        labels: Array,
        n: int,
        rates: Mapping[str, float] | None = None,
        learnt: Callable[[LayerOnDevice], None] = lambda layer: None,
    ) -> None:
        """Losses, ranks and gradients for the first ``n`` images. With ``rates``, factors on the learning rate by
        parameter, all parameters that are not frozen have taken their step in the end. ``learnt`` is called for every
        layer whose gradients are queued."""
        self.score(labels, n, slopes=True)
        self._share_control()
        self.descend(rates, learnt)

    def descend(self, rates: Mapping[str, float] | None, learnt: Callable[[LayerOnDevice], None]) -> None:
        """What ``backward`` does behind the loss: gradients from every cost's ``dy``."""
        gradients: dict[int, list[Array]] = {}
        for cost in reversed(self.costs):
            self._add(gradients, cost.block, [cost.dy])
        learns = self._below(lambda block: bool(block[0].parameters) and not block[0].frozen)
        for index in range(len(self.blocks) - 1, -1, -1):
            if not learns[index] or index not in gradients:
                continue
            block, inputs = self.blocks[index], self.groups[index].inputs
            wanted = [place >= 0 and learns[place] for place in inputs]
            dys = gradients.pop(index)
            passed = [layer.backward_data(dy, wanted) for layer, dy in zip(block, dys, strict=True)]
            crosses = wanted[0] and index in self._wholes
            if crosses:
                computed = [dx for (dx,) in passed if dx is not None]
                self.exchange.scatter(block[0].name, computed, self.blocks[inputs[0]][0].y.shape)
            for layer, dy in zip(block, dys, strict=True):
                layer.backward_weights(dy, rates)
                learnt(layer)
            if crosses:
                self._add(gradients, inputs[0], self.exchange.sums())
                continue
            for k, place in enumerate(inputs):
                if wanted[k]:
                    self._add(gradients, place, [dx for dxs in passed if (dx := dxs[k]) is not None])
        if rates is not None:
            self._update(rates, taken=True)

    def score(self, labels: Array, n: int, slopes: bool) -> None:
        """Losses and ranks of the first ``n`` images; with ``slopes`` every cost's ``dy``."""
        for cost in reversed(self.costs):  # the first one that has ranks has the last word
            self._queue(cost, labels, n, slopes)
        if self._ranking.kind != SOFTMAX:
            side, y = self.sides[0], self.blocks[self.block_of(self._ranking.input)][0].y
            results = self._part, self.ranks, None, None, side.control
            shape = SoftmaxShape(self.N, n, y.size // self.N, self.lanes)
            ops.softmax_cross_entropy(side.stream, shape, side.precision, y.view(shape.x), labels, *results)

    def _queue(self, cost: Loss, labels: Array, n: int, slopes: bool) -> None:
        """Adds its losses to those of the costs behind it."""
        stream, c = self.sides[0].stream, cost.coefficient
        if cost is not self.costs[-1]:
            cost.queue(labels, n, self._part, slopes)
            ops.weighted_add(stream, "fp32", self.losses, 1.0, self._part, c, self.losses)
            return
        cost.queue(labels, n, self.losses, slopes)
        if c != 1.0:
            ops.scale(stream, "fp32", self.losses, c, self.losses)

    def block_of(self, name: str) -> int:
        """The block whose output is that of this layer."""
        return next(i for i, group in enumerate(self.groups) if group.layers[-1].layer.name == name)

    def _below(self, holds: Callable[[list[LayerOnDevice]], bool]) -> list[bool]:
        """Of every block, whether something holds of it or of anything that it reads, directly or not."""
        found: list[bool] = []
        for group, block in zip(self.groups, self.blocks, strict=True):
            found.append(holds(block) or any(found[place] for place in group.inputs if place >= 0))
        return found

    def _add(self, gradients: dict[int, list[Array]], index: int, computed: list[Array]) -> None:
        """Adds the gradients with respect to the output of a block that one of its readers computed, in the memory of
        the first one, from the last reader to the first. A layer may see its input with another shape (features
        instead of maps).
        """
        block = self.blocks[index]
        seen = [dx.view(layer.y.shape) for dx, layer in zip(computed, block, strict=True)]
        for layer, total, dx in zip(block, gradients.setdefault(index, seen), seen, strict=True):
            if total is not dx:
                ops.add(layer.stream, layer.precision, total, dx, total)

    def update(self, rates: Mapping[str, float]) -> None:
        """The step of all parameters, from their gradients."""
        self._update(rates, taken=False)

    def _update(self, rates: Mapping[str, float], taken: bool) -> None:
        """``taken``: some parameters took their step in ``backward`` already, and folded copies are written along."""
        for side in self.sides:
            here = [layer for block in self.learning for layer in block if layer.side is side and not layer.frozen]
            take_steps(side, [update for layer in here for update in layer.updates(rates, taken)])
            for layer in here:
                if isinstance(layer, ConvLayer) and not taken:
                    layer.fold_weights()

    def _share_control(self) -> None:
        """Tells all sides what the loss said."""
        first, *others = self.sides
        for side in others:
            side.stream.wait(first.stream.record())
            side.stream.copy(side.control, first.control)
            first.stream.wait(side.stream.record())


class Loss:
    """A cost at work, on the first side. ``dy`` is the gradient with respect to the output of ``block``: what the cost
    reads, but for the cross-entropy of a logistic activation what that reads: see ``spec.Cost``.
    """

    dy: Array

    def __init__(self, cost: Cost, wiring: Wiring, side: Side):
        self.kind, self.coefficient, self.wiring, self.side = cost.kind, cost.coefficient, wiring, side
        self.block = wiring.block_of(cost.input)
        group = wiring.groups[self.block]
        layer, below = group.first.layer, group.inputs[0]
        if cost.kind == "cross-entropy" and isinstance(layer, Activation) and layer.kind == "logistic" and below >= 0:
            self.kind, self.block = "logistic-cross-entropy", below
        shape, count = wiring.blocks[self.block][0].shape_out, len(wiring.blocks)
        side.plan.want(self, "dy", shape, side.dtype, count, 2 * count - self.block)

    def queue(self, labels: Array, n: int, losses: Array, slopes: bool) -> None:
        """Losses, without the coefficient; with ``slopes`` the gradient, with it. The softmax writes ranks, too."""
        side, wiring = self.side, self.wiring
        y = wiring.blocks[self.block][0].y
        shape = SoftmaxShape(wiring.N, n, y.size // wiring.N, wiring.lanes)
        on, x = (side.stream, shape, side.precision), y.view(shape.x)
        dy = self.dy.view(shape.x) if slopes else None
        if self.kind != SOFTMAX:
            classes = None if self.kind == SQUARES else labels
            ops.cost(*on, self.kind, self.coefficient, x, classes, losses, dy, side.control)
            return
        ops.softmax_cross_entropy(*on, x, labels, losses, wiring.ranks, None, dy, side.control)
        if dy is not None and self.coefficient != 1.0:
            ops.scale(side.stream, side.precision, dy, self.coefficient, dy)


class Whole:
    """An activation that a side gathered from all, for one of its layers."""

    def __init__(self, layer: LayerOnDevice):
        self.x: Array
        fusion, side = layer.fusion, layer.side
        side.plan.want(self, "x", layer.inputs[0].shape, side.dtype, fusion.index, fusion.backward)
