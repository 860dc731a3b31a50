"""Fully-connected layers that are cut over processes: each has some of the neurons, for the images of all.

"One weird trick" (Krizhevsky 2014): convolutions have much work and few weights, fully-connected layers little work and
most of the weights. So the weights of these stay where they are, with their momentum, and what they read and the
gradients of it travel instead. A layer is cut into as many slices as a batch has shards, and a process has those that
are numbered like its shards: the slices, not the processes, decide every bit. The last layer, which computes the
logits, is whole on every process, and every one of them computes the same.

What a layer reads, ``x``, has the images of all shards behind each other, each shard in blocks of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..devices.protocol import Array, Fetch
from ..group.group import Group
from ..group.shares import Shares
from ..kernels.control import WORDS, control_words
from ..kernels.precision import BF16
from ..kernels.shapes import DropoutShape, LinearShape, SoftmaxShape
from ..ops import ops
from ..ops.layout import to_device, to_user
from .exchange import channels, image_blocks
from .layers import Parameter, Side, take_steps
from .products import learn_linear
from .spec import SQUARES, Cost, Dropout, Linear, NetworkSpec, Placed, placed_layers

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stage:
    """A fully-connected layer, the dropout behind its ReLU, and into how many slices it is cut."""

    linear: Placed
    dropout: Dropout | None
    index: int  # of the dropout in the network
    slices: int


def stages(spec: NetworkSpec, shards: int) -> list[Stage]:
    """The fully-connected layers at the end of a network, in order. Raises ``ValueError`` where they cannot be cut."""
    instead = "; use --parallel data"
    if not spec.is_chain:
        raise ValueError(f'--parallel hybrid: network "{spec.name}" is no chain of layers{instead}')
    found: list[Stage] = []
    for placed in placed_layers(spec):
        layer = placed.layer
        if isinstance(layer, Linear):
            found.append(Stage(placed, None, 0, shards))
        elif found and isinstance(layer, Dropout) and not layer.scaled and found[-1].linear.index == placed.index - 1:
            found[-1] = replace(found[-1], dropout=layer, index=placed.index)
        elif found:
            raise ValueError(
                f"--parallel hybrid: layer {layer.name} behind a fully-connected one cannot be cut{instead}"
            )
    if not found or found[0].linear.index == 0 or found[-1].linear.layer.activation or found[-1].dropout:  # type: ignore[union-attr]
        raise ValueError(f'--parallel hybrid: network "{spec.name}" does not end in fully-connected layers{instead}')
    for stage in found[:-1]:
        layer = stage.linear.layer
        if layer.activation != "relu":  # type: ignore[union-attr]
            raise ValueError(f"--parallel hybrid: layer {layer.name} has no ReLU behind it{instead}")
        if stage.linear.K % shards:
            raise ValueError(
                f"--parallel hybrid: {stage.linear.K} neurons of {layer.name} cannot be cut {shards} ways{instead}"
            )
    return [*found[:-1], replace(found[-1], slices=1)]


def trunk(spec: NetworkSpec) -> NetworkSpec:
    """What is in front of the fully-connected layers, for images of one shard. Its cost stands for the gradient that
    comes from them."""
    end = next(placed.index for placed in placed_layers(spec) if isinstance(placed.layer, Linear))
    return replace(spec, layers=spec.layers[:end], costs=(Cost(SQUARES, spec.layers[end - 1].name),))


class Slice:
    """Some neurons of a layer. ``dx`` is what they find for the layer's input."""

    def __init__(self, stage: Stage, number: int, side: Side, N: int, shards: int, lanes: int, seed: int):
        placed, layer = stage.linear, stage.linear.layer
        assert isinstance(layer, Linear)
        self.side, C, K = side, placed.C * placed.H * placed.W, placed.K // stage.slices
        self.one, self.all = LinearShape(N, C, K, lanes), LinearShape(N * shards, C, K, lanes)
        self.relu, drop = layer.activation == "relu", stage.dropout
        self.drops = [
            DropoutShape(shape.N, K, lanes, number * K, placed.K, drop.p, seed, stage.index) if drop else None
            for shape in (self.one, self.all)
        ]
        device = side.device
        self.weight = Parameter(f"{layer.name}.weight", device, self.one.weight, layer.pace)
        self.bias = Parameter(f"{layer.name}.bias", device, (K,), layer.bias_pace)
        if side.precision == "bf16":
            self.weight.copy = device.empty(self.one.weight_copy, BF16)
        self.y = device.empty(self.all.y, side.dtype)
        self.dy = device.empty(self.all.y, side.dtype)
        self.dx = device.empty(self.all.x, side.dtype)
        for shape in (self.one, self.all):
            side.needs_workspace(device.kernels.linear_workspace(shape, side.precision))

    @property
    def matrix(self) -> Array:
        """What products read."""
        return self.weight.copy or self.weight.value

    def forward(self, x: Array, controls: Sequence[Array]) -> None:
        """For the images of all shards; in training with the control block of each, which says what it drops."""
        side, bias = self.side, self.bias.value
        rest = self.relu, self.drops[1], None, side.workspace
        if not controls or not self.drops[0]:
            ops.linear_forward(side.stream, self.all, side.precision, x, self.matrix, bias, self.y, *rest)
            return
        for shard, control in enumerate(controls):
            at = _images(x, shard, self.one.x), self.matrix, bias, _images(self.y, shard, self.one.y)
            dropping = self.relu, self.drops[0], control, side.workspace
            ops.linear_forward(side.stream, self.one, side.precision, *at, *dropping)

    def backward(self, x: Array, mask: Array | None, dy: Array, wanted: bool) -> None:
        """``dx``; where ``mask`` is not positive, it is 0."""
        side = self.side
        if wanted:
            operands = dy, self.matrix, self.dx, mask, side.workspace
            ops.linear_backward_data(side.stream, self.all, side.precision, *operands)

    def learn(self, x: Array, dy: Array, rates: Mapping[str, float]) -> None:
        """The step of the weights; the gradient of the bias."""
        learn_linear(self.side, self.all, dy, x, self.weight, self.bias.gradient, rates)


class Layer:
    """The slices of one layer that this process has, and what the layer reads."""

    def __init__(self, stage: Stage, own: range, side: Side, N: int, shards: int, lanes: int, seed: int):
        self.stage, self.name, self.side, self.frozen = stage, stage.linear.layer.name, side, False
        numbers = own if stage.slices > 1 else range(1)
        self.slices = [Slice(stage, number, side, N, shards, lanes, seed) for number in numbers]
        self.x = side.device.empty(self.slices[0].all.x, side.dtype)

    @property
    def parameters(self) -> list[Parameter]:
        return [p for part in self.slices for p in (part.weight, part.bias)]

    def copy_weights(self) -> None:
        """Makes the copies anew, after the weights were replaced."""
        for part in self.slices:
            if part.weight.copy is not None:
                ops.cast_weight(self.side.stream, part.weight.value, part.weight.copy)


class Head:
    """The fully-connected layers of ``spec``, behind convolutions that compute one shard of N images at a time."""

    def __init__(self, spec: NetworkSpec, side: Side, group: Group, shares: Shares, N: int, lanes: int, seed: int):
        self.side, self.group, self.shares, self.N, self.lanes = side, group, shares, N, lanes
        self.own = own = range(group.rank * shares.own, (group.rank + 1) * shares.own)
        found = stages(spec, shares.shards)
        self.layers = [Layer(stage, own, side, N, shares.shards, lanes, seed) for stage in found]
        empty, V, blocks = side.device.empty, shares.shards, N // lanes
        first, last = self.layers[0].slices[0], self.layers[-1].slices[0]
        self.classes = last.one.K
        self.logits, self.dlogits = last.y, last.dy
        self.losses, self.ranks = empty((V * N,)), empty((V * N,), np.int32)
        self.labels = empty((V * N,), np.int32)
        self._controls = empty((V * WORDS,), np.uint32)
        self.controls = [self._controls.view((WORDS,), shard * WORDS) for shard in range(V)]
        self._zeros = empty((blocks, self.classes, lanes), side.dtype)
        side.stream.upload(self._zeros, np.zeros(self._zeros.shape, self._zeros.dtype))
        x = self.layers[0].x
        side.stream.upload(x, np.zeros(x.shape, x.dtype))  # shards without images have finite ones
        self.stream = side.device.stream()  # what crosses is queued here, in one order everywhere
        # what comes from others: slices of activations, and gradients for this process's part, by whose they are
        self._slices = {
            layer.name: [
                layer.slices[number - own.start].y if number in own else empty(layer.slices[0].y.shape, side.dtype)
                for number in range(V)
            ]
            for layer in self.layers[:-1]
        }
        size = shares.own
        self._found: dict[str, list[Array]] = {}
        self._sent: dict[str, list[Array]] = {}
        for below, layer in zip(self.layers, self.layers[1:-1], strict=False):
            features = size * below.slices[0].one.K
            shape = (V * blocks, features, lanes)
            self._found[layer.name] = [empty(shape, side.dtype) for _ in range(V)]
            self._sent[layer.name] = [empty(shape, side.dtype) for _ in range(group.size * size)]
        shape = (size * blocks, first.one.C, lanes)
        self._found[self.layers[0].name] = [empty(shape, side.dtype) for _ in range(V)]

    # ---- what crosses

    def _meet(self) -> None:
        """What is queued from now on, here and on the way out, comes behind what was."""
        self.stream.wait(self.side.stream.record())

    def _arrive(self) -> None:
        self.group.complete(self.stream)
        self.side.stream.wait(self.stream.record())

    def put(self, j: int, y: Array) -> None:
        """What the convolutions make of this process's shard j."""
        first = self.layers[0].slices[0].one
        self.side.stream.copy(_images(self.layers[0].x, self.own[j], first.x), y.view(first.x))

    def _gather_images(self, whole: Array, shape: tuple[int, ...]) -> None:
        """Every process's shards, to all."""
        for j in range(self.shares.own):
            mine = _images(whole, self.own[j], shape)
            theirs = [_images(whole, rank * self.shares.own + j, shape) for rank in range(self.group.size)]
            self.group.exchange(self.stream, [mine] * self.group.size, theirs)

    def _gather_slices(self, layer: Layer, x: Array) -> None:
        """The outputs of all slices, side by side."""
        there = self._slices[layer.name]
        self._meet()
        for j, part in enumerate(layer.slices):
            self.group.exchange(self.stream, [part.y] * self.group.size, there[j :: self.shares.own])
        self._arrive()
        for number, y in enumerate(there):
            self._copy(channels(x, number, self.shares.shards), image_blocks(y))

    def _copy(self, targets: Sequence[Array], sources: Sequence[Array]) -> None:
        for target, source in zip(targets, sources, strict=True):
            self.side.stream.copy(target, source)

    def _sum(self, layer: Layer, sends: Sequence[Sequence[Array]]) -> Array:
        """What all slices found for this process's part, in the order of the slices. ``sends[j][rank]`` is what slice j
        of this process has found for the part of that rank."""
        found = self._found[layer.name]
        self._meet()
        for j, parts in enumerate(sends):
            self.group.exchange(self.stream, parts, found[j :: self.shares.own])
        self._arrive()
        total = found[0]
        for other in found[1:]:
            ops.add(self.side.stream, self.side.precision, total, other, total)
        return total

    # ---- a step

    def begin(self, step: int, constants: Sequence[float], labels: Sequence[Values], of: int) -> None:
        """What a step is told: ``labels`` of this process's shards."""
        words = [control_words(step, *constants, first=first, images=of) for first in self.shares.cuts(of)[:-1]]
        stream, padded = self.side.stream, np.zeros((self.shares.own, self.N), np.int32)
        for row, values in zip(padded, labels, strict=True):
            row[: len(values)] = values
        stream.upload(self._controls, np.concatenate(words))
        own = self.labels.view((self.shares.own * self.N,), self.own[0] * self.N)
        stream.upload(own, padded.reshape(-1))
        self._meet()
        size = self.shares.own * self.N
        parts = [self.labels.view((size,), rank * size) for rank in range(self.group.size)]
        self.group.exchange(self.stream, [own] * self.group.size, parts)
        self._arrive()

    def forward(self, train: bool) -> None:
        """Logits of all shards, from what was ``put``."""
        first = self.layers[0]
        self._meet()
        self._gather_images(first.x, first.slices[0].one.x)
        self._arrive()
        for index, layer in enumerate(self.layers):
            for part in layer.slices:
                part.forward(layer.x, self.controls if train else ())
            if layer is not self.layers[-1]:
                self._gather_slices(layer, self.layers[index + 1].x)

    def backward(self, sizes: Sequence[int], rates: Mapping[str, float], wanted: bool) -> list[Array]:
        """Losses and ranks; all layers take their step. The gradient of what was ``put``, for this process's shards,
        where it is ``wanted``."""
        self._score(sizes)
        dys = [self.dlogits]
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            goes_on = wanted or any(not other.frozen for other in self.layers[:index])
            for part, dy in zip(layer.slices, dys, strict=True):
                part.backward(layer.x, layer.x if index else None, dy, goes_on)
                if not layer.frozen:
                    part.learn(layer.x, dy, rates)
            if not goes_on:
                return []
            dys = self._down(layer, self.layers[index - 1] if index else None)
        return dys

    def _score(self, sizes: Sequence[int]) -> None:
        side, N = self.side, self.N
        for shard, size in enumerate(sizes):
            shape = SoftmaxShape(N, size, self.classes, self.lanes)
            dlogits = _images(self.dlogits, shard, shape.x)
            if not size:
                side.stream.copy(dlogits, self._zeros)
                continue
            labels, losses, ranks = (a.view((N,), shard * N) for a in (self.labels, self.losses, self.ranks))
            on = side.stream, shape, side.precision
            logits = _images(self.logits, shard, shape.x)
            ops.softmax_cross_entropy(*on, logits, labels, losses, ranks, None, dlogits, side.control)

    def _down(self, layer: Layer, below: Layer | None) -> list[Array]:
        """The gradients for the slices of the layer ``below`` that this process has, or for its shards of what was
        ``put``."""
        V, size, parts = self.shares.shards, self.shares.own, layer.slices
        if below is None:
            blocks, C = self.N // self.lanes, parts[0].one.C
            shape = (size * blocks, C, self.lanes)
            sends = [[_images(part.dx, rank, shape) for rank in range(self.group.size)] for part in parts]
            total = self._sum(layer, sends)
            return [_images(total, j, (blocks, C, self.lanes)) for j in range(size)]
        if layer is self.layers[-1]:  # the same on every process
            for number, part in zip(self.own, below.slices, strict=True):
                self._copy(image_blocks(part.dy), channels(parts[0].dx, number, V))
            return [part.dy for part in below.slices]
        packed = self._sent[layer.name]
        sends = []
        for j, part in enumerate(parts):
            to = packed[j * self.group.size : (j + 1) * self.group.size]
            for rank, send in enumerate(to):
                self._copy(image_blocks(send), channels(part.dx, rank, self.group.size))
            sends.append(to)
        total = self._sum(layer, sends)
        for j, part in enumerate(below.slices):
            self._copy(image_blocks(part.dy), channels(total, j, size))
        return [part.dy for part in below.slices]

    def update_biases(self, rates: Mapping[str, float]) -> None:
        """The step that ``backward`` has left."""
        updates = [
            ops.Update(p.value, p.velocity, p.gradient, None, rate, p.pace.decay, p.pace.momentum)
            for layer in self.layers
            if not layer.frozen
            for p in (part.bias for part in layer.slices)
            if (rate := p.rate(rates))
        ]
        take_steps(self.side, updates)

    def results(self, sizes: Sequence[int]) -> list[tuple[Fetch, Fetch, int]]:
        """Losses and ranks of all shards that have images."""
        fetch, N = self.side.stream.fetch, self.N
        return [
            (fetch(self.losses.view((N,), shard * N)), fetch(self.ranks.view((N,), shard * N)), size)
            for shard, size in enumerate(sizes)
            if size
        ]

    def own_logits(self, j: int) -> Array:
        """Those of this process's shard j."""
        return _images(self.logits, self.own[j], (self.N // self.lanes, self.classes, self.lanes))

    # ---- parameters

    def collect(self, what: str) -> dict[str, Values]:
        """Copies of ``what`` ("value" or "velocity") of all parameters, by name, of all slices: every process asks."""
        own: dict[str, Values] = {}
        for layer in self.layers:
            for kind in ("weight", "bias"):
                parts = [to_user(getattr(getattr(part, kind), what).download()) for part in layer.slices]
                own[f"{layer.name}.{kind}"] = np.concatenate(parts)
        whole = {f"{self.layers[-1].name}.{kind}" for kind in ("weight", "bias")}
        everywhere = self.group.everyone({name: v for name, v in own.items() if name not in whole}, "the weights", True)
        return {
            name: values if name in whole else np.concatenate([part[name] for part in everywhere])
            for name, values in own.items()
        }

    def distribute(self, what: str, values: Mapping[str, Values]) -> None:
        """The reverse; ``values`` have the shapes of the network, and more names than these may be among them."""
        for layer in self.layers:
            for kind in ("weight", "bias"):
                cut = np.split(values[f"{layer.name}.{kind}"], layer.stage.slices)
                mine = cut if layer.stage.slices == 1 else [cut[number] for number in self.own]
                for part, value in zip(layer.slices, mine, strict=True):
                    target = getattr(getattr(part, kind), what)
                    self.side.stream.upload(target, to_device(value, target.shape))


def _images(whole: Array, part: int, shape: tuple[int, ...]) -> Array:
    """The part-th piece of that shape of an activation, whose image blocks lie behind each other."""
    return whole.view(shape, part * int(np.prod(shape)))
