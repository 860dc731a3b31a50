"""The network as users see it: arrays in and out, checked; what happens on the devices is in ``wiring.py``.

``Network`` cuts the towers of a ``NetworkSpec`` into equal shares, one per device ("side").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np

from ..devices import switches
from ..devices.foreign import CudaMemory, Given
from ..devices.opening import open_devices
from ..devices.protocol import Array, Fetch, padded
from ..group.group import Group
from ..group.shares import Shares
from ..kernels.control import FIRST, LR, SPOILED, WEIGHT_DECAY, control_words
from ..ops import arguments
from ..ops.layout import fold_images, pack_activations, rounded, unpack_activations
from .assemble import input_fold
from .diagnosis import first_not_finite
from .graphs import Graphs
from .head import Head, trunk
from .head import Layer as HeadLayer
from .initial import initial_weights
from .intake import Intake
from .layers import LayerOnDevice, Side
from .networks import network
from .parameters import check_parameters, collect, distribute
from .reduction import Reduction
from .spec import NetworkSpec, parameter_count, parameter_shapes
from .wiring import Wiring

Values = np.ndarray[Any, Any]
PARALLEL = ("data", "hybrid")
STORED = ("H", "W", 3)  # the shape of a stored image


class Network:
    """A network with its weights, ready to run and to train.

    ``devices`` is "auto" (a GPU per tower, two at most; without any the CPU), "cpu", "emu[:i]" or "cuda[:i]", or a
    comma-separated list of emulators or GPUs that share the towers, unless something normalises across them.
    ``batch_size`` is the largest number of images in one call. ``precision`` is "fp32" anywhere, and "tf32" or "bf16"
    on emulators and GPUs; what users see is float32 always. Further keywords (``crop``, ``width``, ``dropout``, ...)
    change the network: see ``convnet.network.networks.network``. Weights are drawn from ``seed``. All memory is
    allocated here, but for buffers of stored images and of gradients, which come with the first call that needs them;
    ``close`` gives it back.

    Images are arrays of NumPy or of any library that has ``__array__`` or ``__dlpack__``, or, on GPUs,
    ``__cuda_array_interface__``: they are read where they lie, and brought into the layout of the device on the way.

    ``fused`` False runs every layer of the network by itself and keeps all activations, for those who want to look at
    them: it takes more memory and time, and computes the same but for roundings in bfloat16.

    With a ``group`` of several processes, each with a network like this one, batches are those of all of them together,
    and cut into ``shards``, as many as there are processes unless given: what ``train_step`` and ``evaluate_batch`` get
    are the images of this process's shards, and ``of`` says how many all have. Weights end the same to the bit,
    however many processes share the shards; gradients by hand (``train_batch``, ``backward``, ``step``) are then not to
    be had. ``parallel`` "hybrid" cuts the neurons of fully-connected layers into shards, too: see ``head.py``. Then all
    processes make each call that asks for weights, or evaluates, together. See ``convnet.group``.

    Raises ``ValueError`` for impossible arguments and ``convnet.DeviceError`` when a device is missing or too small.
    """

    def __init__(
        self,
        model: str | NetworkSpec = "alexnet",
        devices: str = "auto",
        batch_size: int = 128,
        precision: str = "fp32",
        num_classes: int | None = None,
        seed: int = 0,
        fused: bool = True,
        group: Group | None = None,
        shards: int | None = None,
        parallel: str = "data",
        **changes: Any,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must lie in 0 .. 2^64 - 1, got {seed}")
        if isinstance(model, str):
            model = network(model, num_classes=num_classes, **changes)
        elif num_classes is not None or changes:
            raise ValueError("a NetworkSpec is taken as it is: change it by convnet.network.networks.network(...)")
        self.spec = model
        self.batch_size, self.precision, self.seed = batch_size, precision, seed
        self.steps_done = 0
        fused = fused and switches.on("fused")
        opened = open_devices(devices, most=min(2, self.spec.parts))
        if len(opened) > 1 and self.spec.parts < self.spec.towers:
            raise ValueError(
                f'"{self.spec.name}" {self.spec.undivided}: its towers must lie on one device; got '
                f"{', '.join(device.name for device in opened)}: name one of them"
            )
        if self.spec.towers % len(opened):
            raise ValueError(
                f'"{self.spec.name}" has {self.spec.towers} towers, which cannot be shared by {len(opened)} devices; '
                f"use a number of devices that divides it"
            )
        self._sides = [Side(device, precision, i, len(opened), fused) for i, device in enumerate(opened)]
        group = group or Group()
        self._shares = Shares.of(group, group.size if shards is None else shards)
        self._group = group
        most = self._shares.largest(batch_size)
        self._lanes = opened[0].lanes(most)
        self._N = padded(most, self._lanes)
        self._valid = 0  # images of the last forward(train=True), 0 when there is nothing to go backward from
        self._last = 0  # images of the last forward, whose activations are there
        self._kept = False  # are there gradients?
        self._step_exchanges: list[tuple[str, str, int]] = []  # of a whole step
        self._forward_exchanges: list[tuple[str, str, int]] = []  # and of a forward pass by itself
        self._closed = False
        self._fold = input_fold(self.spec, precision)
        self._head = self._made_head(parallel, seed)
        computed = trunk(self.spec) if self._head else self.spec
        self._wiring = Wiring(computed, self._sides, self._N, self._lanes, seed, fused)
        self._intake = Intake(self._sides, self._N, self._lanes, self.spec.crop, self._fold)
        self._wiring.read(self._intake.slots[0].inputs)
        self.set_input(np.zeros((3, self.spec.crop, self.spec.crop), np.float32))
        self._reduction = Reduction(self._wiring, group, self._shares) if self._shares.shards > 1 else None
        self._passes = Graphs(self._wiring.streams)  # forward, whose settings are always the same
        self._graphs = Graphs(self._wiring.streams + (self._reduction.streams if self._reduction else []))
        self._parameters = list(parameter_shapes(self.spec))
        self.load_weights(initial_weights(self.spec, seed))
        self.load_velocity({name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(self.spec).items()})

    def _made_head(self, parallel: str, seed: int) -> Head | None:
        """What computes the fully-connected layers where they are cut over processes."""
        if parallel not in PARALLEL:
            raise ValueError(f'parallel must be one of {", ".join(PARALLEL)}, got "{parallel}"')
        if parallel == "data" or self._shares.shards == 1:
            return None
        if len(self._sides) > 1:
            raise ValueError("--parallel hybrid: a process has one device; name one, or use --parallel data")
        (side,) = self._sides
        return Head(self.spec, side, self._group, self._shares, self._N, self._lanes, seed)

    # ---- what it is

    @property
    def devices(self) -> list[str]:
        """Names of the devices, in the order of the towers."""
        return [side.device.name for side in self._sides]

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return parameter_count(self.spec)

    def memory(self) -> dict[str, int]:
        """Bytes allocated on each device so far: buffers of stored images and of gradients, and a second batch, come
        with the first call that needs them. On "cpu" with the scratch memory of its threads, which all networks
        share."""
        self._check_open()
        return {side.device.name: side.device.allocated + side.device.scratch for side in self._sides}

    def exchanges(self) -> list[tuple[str, str, int]]:
        """Traffic between devices in the last forward and backward: (joining layer, "forward" or "backward", bytes)."""
        return list(self._wiring.exchange.log)

    def activation(self, name: str) -> Values:
        """Output of a layer in the last forward pass, behind its ReLU: float32 (n, C, H, W) or (n, F).

        Raises ``ValueError`` for a layer that does not exist, or whose output does not because the layer behind it is
        computed along with it, and ``RuntimeError`` when backward has used its memory: both only with ``fused``.
        """
        self._check_open()
        for group, block in zip(self._wiring.groups, self._wiring.blocks, strict=True):
            names = [placed.layer.name for placed in group.layers]
            if name not in names:
                continue
            if name != names[-1]:
                raise ValueError(
                    f"activation: {name} is computed together with {names[-1]}, and does not exist by itself; "
                    "ask a Network(..., fused=False)"
                )
            if not self._last:
                raise RuntimeError(
                    "activation: there was no forward, or memory has been used for gradients since; ask in front of "
                    "backward, or a Network(..., fused=False)"
                )
            return np.concatenate([unpack_activations(layer.y.download(), self._last) for layer in block], axis=1)
        raise ValueError(f'no layer is called "{name}"; there are {", ".join(p.name for p in self.spec.layers)}')

    @property
    def shards(self) -> int:
        """Into how many parts a batch is cut."""
        return self._shares.shards

    # ---- parameters

    def weights(self) -> dict[str, Values]:
        """Copies of all weights and biases, float32: (K, C/groups, R, S) or (out, in), and (K,)."""
        return self._collect("value")

    def weight(self, name: str) -> Values:
        """A copy of one of them, which no other process need ask for: none of a layer that is cut over processes."""
        self._check_open()
        return collect(self._wiring, "value")[name]

    def _collect(self, what: str) -> dict[str, Values]:
        self._check_open()
        found = collect(self._wiring, what)
        return found if self._head is None else {**found, **self._head.collect(what)}

    def _distribute(self, what: str, values: Mapping[str, Values]) -> None:
        self._check_open()
        if self._head is None:
            distribute(self._wiring, what, values)
            return
        shapes = parameter_shapes(self.spec)
        check_parameters(values, shapes)
        own = {name for layer in self._head.layers for name in (f"{layer.name}.weight", f"{layer.name}.bias")}
        distribute(self._wiring, what, {name: value for name, value in values.items() if name not in own})
        self._head.distribute(what, values)

    def load_weights(self, weights: Mapping[str, Values]) -> None:
        """Replaces all weights and biases. Raises ``ValueError`` for missing or unknown names and wrong shapes.

        From a file: ``convnet.interop.load``.
        """
        self._distribute("value", weights)
        for layer in self._learning:
            for on_side in layer:
                on_side.copy_weights()

    def gradients(self) -> dict[str, Values]:
        """Gradients of the mean loss from the last ``backward``; keys and shapes as in ``weights``, without those of
        frozen layers. Raises ``RuntimeError`` where there are none: ``train_step`` keeps no gradients."""
        self._check_gradients("gradients")
        found = collect(self._wiring, "gradient")
        return {n: g for n, g in found.items() if n.partition(".")[0] not in self.frozen}

    def velocity(self) -> dict[str, Values]:
        """The momentum terms; keys and shapes as in ``weights``."""
        return self._collect("velocity")

    def load_velocity(self, velocity: Mapping[str, Values]) -> None:
        """Replaces all momentum terms, as ``load_weights`` does weights."""
        self._distribute("velocity", velocity)

    @property
    def _learning(self) -> list[Sequence[LayerOnDevice | HeadLayer]]:
        """Layers that have weights, on every side."""
        return [*self._wiring.learning, *([layer] for layer in (self._head.layers if self._head else []))]

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have weights, in order."""
        return [layer[0].name for layer in self._learning]

    @property
    def frozen(self) -> list[str]:
        """The layers that do not learn."""
        return [layer[0].name for layer in self._learning if layer[0].frozen]

    def freeze(self, names: Iterable[str]) -> None:
        """These layers, and no others, keep their weights from now on: no work is done for their gradients, nor for
        anything below the lowest layer that learns. Raises ``ValueError`` for unknown names and when nothing is left.
        """
        self._check_open()
        wanted = set(names)
        if unknown := sorted(wanted - set(self.layers)):
            names = ", ".join(self.layers)
            raise ValueError(f'freeze: no layer with weights is called "{unknown[0]}"; there are {names}')
        if wanted == set(self.layers):
            raise ValueError("freeze: all layers are frozen; leave at least one to learn")
        for layer in self._learning:
            for on_side in layer:
                on_side.frozen = on_side.name in wanted

    # ---- running

    def forward(self, images: Any, train: bool = False) -> Values:
        """Logits, float32 (n, classes), of images float32 (n, 3, crop, crop) with 1 <= n <= batch_size.

        ``train`` turns dropout on and prepares for ``backward``; otherwise dropped layers are multiplied by 1 - p,
        unless they are scaled in training.
        """
        crop = self.spec.crop
        if train:
            self._check_unshared("forward")
        batch = self._batch("forward", "images", images, (3, crop, crop), "float32")
        if isinstance(batch, CudaMemory):
            self._intake.gather(batch)
        else:
            x = pack_activations(fold_images(batch, self._fold), self._lanes, self._N)
            self._intake.values(rounded(x, self.precision))
        return self._run_forward(len(batch), train)

    def backward(self, labels: Any) -> float:
        """Mean loss of the last ``forward(train=True)`` with labels (n,) of any integer dtype, the sum of the network's
        costs; computes all gradients.

        Raises ``RuntimeError`` when there was no such forward pass, ``ValueError`` for labels out of range.
        """
        losses, _ = self._run_backward(labels)
        return float(losses.mean(dtype=np.float64))

    def step(
        self,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """The paper's update of all parameters from the gradients: v = m v - lr (wd w + g), w += v; biases take no
        decay.

        ``rates`` multiplies the learning rate of single parameters, by name. Where a loss of the last ``backward`` was
        not finite, parameters stay as they are; so does every single value whose gradient is not. Raises
        ``RuntimeError`` where there are no gradients.
        """
        self._check_open()
        self._check_gradients("step")
        arguments.constants("step", (lr, momentum, weight_decay), rates or {}, self._parameters)
        words = control_words(0, lr, momentum, weight_decay)[LR : WEIGHT_DECAY + 1]
        for side in self._sides:
            side.stream.upload(side.control.view(words.shape, LR), words)
        self._wiring.update(rates or {})
        self.steps_done += 1

    def set_input(self, mean: Values, scale: float | Sequence[float] | None = None) -> None:
        """What stored images go through on their way in: (pixel - mean + noise) * scale.

        ``mean`` is float32 (3, crop, crop) in 0..255; ``scale`` a number, or one for each channel, by default the
        network's ``input_scale``.
        """
        self._check_open()
        self._intake.set_input(mean, self.spec.input_scale if scale is None else scale)

    def input(self) -> tuple[Values, tuple[float, float, float]]:
        """What ``set_input`` was told: the mean, float32 (3, crop, crop), and the scale of each channel."""
        self._check_open()
        return self._intake.input()

    def train_batch(self, images: Any, labels: Any, windows: Any, noise: Any) -> tuple[Values, Values]:
        """Forward and backward from stored images; ``step`` then updates the weights.

        ``images`` uint8 (n, H, W, 3); ``windows`` int32 (n, 3): top, left, flip of each crop; ``noise`` float32 (n, 3),
        added per channel. Returns the losses, float32 (n,), and the ranks of the true classes, int32 (n,): top-k error
        is rank >= k.
        """
        self._check_unshared("train_batch")
        self._run_forward(self._ingest("train_batch", images, windows, noise), train=True, logits=False)
        return self._run_backward(labels)

    def train_step(
        self,
        images: Any,
        labels: Any,
        windows: Any,
        noise: Any,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        rates: Mapping[str, float] | None = None,
        of: int | None = None,
    ) -> StepResult:
        """``train_batch`` and ``step`` in one, the same to the bit, but faster: gradients of fully-connected layers
        never lie in memory, the same work is captured once and launched as a whole, and nobody waits for it: images of
        the next step come in while this one runs. Arguments may be reused when the call returns.

        Where the network is one of a group, these are its images of the ``of`` that all have: those of ``share``.
        """
        taken = self._batch("train_step", "images", images, STORED, "uint8", shared=True)
        constants = (lr, momentum, weight_decay)

        def take_in(slot: int, part: slice) -> None:
            cut = partial(_part, part=part, n=len(taken))
            self._intake.images(cut(taken), cut(windows), cut(noise), slot)

        return self._run_step(take_in, len(taken), labels, constants, rates or {}, of)

    def train_step_kept(
        self,
        indices: Any,
        labels: Any,
        windows: Any,
        noise: Any,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        rates: Mapping[str, float] | None = None,
        of: int | None = None,
    ) -> StepResult:
        """``train_step`` with images that ``store_images`` brought: ``indices`` (n,) are their places."""
        taken = self._places("train_step_kept", indices, shared=True)
        constants = (lr, momentum, weight_decay)

        def take_in(slot: int, part: slice) -> None:
            cut = partial(_part, part=part, n=len(taken))
            self._intake.kept(cut(taken), cut(windows), cut(noise), slot)

        return self._run_step(take_in, len(taken), labels, constants, rates or {}, of)

    def share(self, n: int) -> slice:
        """Which of a batch of n images, of all processes together, are this one's."""
        return self._shares.part(n)

    def first_not_finite(self, labels: Any) -> str | None:
        """Where the numbers of a step on the images of the last ``train_batch``, or ``backward``, stop being finite:
        "conv2.weight", "the output of conv3", "the loss", "the gradient of fc6.bias"; None where all of them are. For
        finding a mistake: computes all of it once more. Raises ``RuntimeError`` where there was no such call.
        """
        self._check_gradients("first_not_finite")
        n = len(labels)
        labels = arguments.labels(labels, n, self.spec.classes)
        self._intake.labels(labels)
        self._wiring.read(self._intake.take(0))
        found = first_not_finite(self._wiring, self._intake.slots[0].labels, n)
        self._intake.give_back(0)
        return found

    def evaluate_batch(self, images: Any, windows: Any, of: int | None = None) -> Values:
        """Logits, float32 (n, classes), of stored images in test mode; arguments as in ``train_batch``, and ``of`` as
        in ``train_step``."""
        taken = self._batch("evaluate_batch", "images", images, STORED, "uint8", shared=True)
        logits = [np.empty((0, self.spec.classes), np.float32)]
        if self._head:
            return self._evaluate_hybrid(self._head, taken, windows, self._whole(len(taken), of))
        for part in self._evaluated(taken, windows, of):
            logits.append(self._run_forward(part.stop - part.start, train=False))
        return np.concatenate(logits)

    def score_batch(self, images: Any, labels: Any, windows: Any, of: int | None = None) -> tuple[Values, Values]:
        """What ``train_batch`` returns, in test mode: losses, float32 (n,), the sums of the network's costs, and the
        ranks of the true classes, int32 (n,)."""
        taken = self._batch("score_batch", "images", images, STORED, "uint8", shared=True)
        labels = arguments.labels(labels, len(taken), self.spec.classes) if len(taken) else np.empty(0, np.int32)
        losses, ranks = [np.empty(0, np.float32)], [np.empty(0, np.int32)]
        for part in self._evaluated(taken, windows, of):
            n = part.stop - part.start
            self._intake.labels(labels[part])
            self._run_forward(n, train=False, logits=False)
            self._wiring.score(self._intake.slots[0].labels, n, slopes=False)
            losses.append(self._wiring.losses.download()[:n])
            ranks.append(self._wiring.ranks.download()[:n])
        return np.concatenate(losses), np.concatenate(ranks)

    def _evaluate_hybrid(self, head: Head, images: Given, windows: Any, of: int) -> Values:
        cuts, logits = self._shares.own_cuts(of), [np.empty((0, self.spec.classes), np.float32)]
        for j, part in enumerate(self._parts(of)):
            if n := part.stop - part.start:
                cut = partial(_part, part=part, n=len(images))
                self._intake.images(cut(images), cut(windows), np.zeros((n, 3), np.float32))
                self._wiring.read(self._intake.take(0))
                self._wiring.forward(train=False)
                self._intake.give_back(0)
                head.put(j, self._wiring.blocks[-1][0].y)
        head.forward(train=False)
        for j, (start, end) in enumerate(pairwise(cuts)):
            logits.append(unpack_activations(head.own_logits(j).download(), end - start))
        return np.concatenate(logits)

    def _parts(self, of: int) -> list[slice]:
        """Of this process's images those of each of its shards."""
        cuts = self._shares.own_cuts(of)
        return [slice(start - cuts[0], end - cuts[0]) for start, end in pairwise(cuts)]

    def _evaluated(self, images: Given, windows: Any, of: int | None) -> Iterator[slice]:
        """This process's shards, when their images are in."""
        for part in self._parts(self._whole(len(images), of)):
            if n := part.stop - part.start:
                cut = partial(_part, part=part, n=len(images))
                self._intake.images(cut(images), cut(windows), np.zeros((n, 3), np.float32))
                yield part

    def _ingest(self, op: str, images: Any, windows: Any, noise: Any) -> int:
        """Brings stored images in, and counts them."""
        taken = self._batch(op, "images", images, STORED, "uint8")
        self._intake.images(taken, windows, noise)
        return len(taken)

    def keep_images(self, count: int, size: int) -> None:
        """Makes room for ``count`` stored images of ``size`` x ``size`` on every device, 1.5 bytes a pixel; there they
        stay. Raises ``DeviceError`` where they do not fit."""
        self._check_open()
        self._intake.keep(count, size)

    def store_images(self, first: int, luma: Values, cb: Values, cr: Values) -> None:
        """Puts images in the places from ``first`` on that ``keep_images`` made.

        ``luma`` uint8 (n, size, size), ``cb`` and ``cr`` (n, half, half) with half = size / 2 rounded up: see
        ``convnet.data.planar``.
        """
        self._check_open()
        self._intake.store(first, (luma, cb, cr))

    def train_batch_kept(self, indices: Any, labels: Any, windows: Any, noise: Any) -> tuple[Values, Values]:
        """``train_batch`` with images that ``store_images`` brought: ``indices`` (n,) are their places."""
        self._check_unshared("train_batch_kept")
        indices = self._places("train_batch_kept", indices)
        self._intake.kept(indices, windows, noise)
        self._run_forward(len(indices), train=True, logits=False)
        return self._run_backward(labels)

    def _run_forward(self, n: int, train: bool, logits: bool = True) -> Values:
        self._valid, self._last, self._kept = (n if train else 0), n, False
        if train:
            for side in self._sides:
                side.stream.upload(side.control, control_words(self.steps_done))
        self._wiring.read(self._intake.take(0))
        self._passes.run(train, None, partial(self._queue_forward, train))
        self._wiring.exchange.log[:] = self._forward_exchanges
        self._intake.give_back(0)
        return unpack_activations(self._wiring.logits.download(), n) if logits else np.empty(0, np.float32)

    def _queue_forward(self, train: bool) -> None:
        self._wiring.forward(train)
        self._forward_exchanges = list(self._wiring.exchange.log)

    def _run_backward(self, labels: Values) -> tuple[Values, Values]:
        self._check_open()
        n = self._valid
        if not n:
            raise RuntimeError("backward needs a forward(train=True) before it")
        labels = arguments.labels(labels, n, self.spec.classes)
        self._valid, self._kept = 0, True
        self._last = 0 if self._wiring.fused else n
        self._intake.labels(labels)
        self._intake.take(0)
        self._wiring.backward(self._intake.slots[0].labels, n)
        self._intake.give_back(0)
        return self._wiring.losses.download()[:n], self._wiring.ranks.download()[:n]

    def _run_step(
        self,
        take_in: Callable[[int, slice], None],
        n: int,
        labels: Values,
        constants: Sequence[float],
        rates: Mapping[str, float],
        of: int | None,
    ) -> StepResult:
        """A whole step on ``n`` images, any part of which ``take_in`` puts into a slot."""
        of = self._whole(n, of)
        labels = arguments.labels(labels, n, self.spec.classes) if n else np.empty(0, np.int32)
        arguments.constants("train_step", constants, rates, self._parameters)
        self._valid, self._kept = 0, False
        self._last = 0 if self._wiring.fused or self._reduction else n
        for side in self._sides:
            side.stream.upload(side.control, control_words(self.steps_done, *constants, images=of))
        if self._head and self._reduction:
            return self._run_hybrid(self._head, self._reduction, take_in, labels, constants, rates, of)
        settings = tuple(sorted(rates.items())), tuple(self.frozen)
        found = []
        shards = [(j, a, b) for j, (a, b) in enumerate(pairwise(self._shares.own_cuts(of))) if a < b]
        if self._reduction:
            self._reduction.begin()
        for j, start, end in shards:
            part = slice(start - self.share(of).start, end - self.share(of).start)
            slot, size = self._intake.next_slot(), end - start
            take_in(slot, part)
            self._intake.labels(labels[part], slot)
            for side in self._sides if self._reduction else []:
                side.stream.upload(side.control.view((1,), FIRST), np.array([start], np.uint32))
            inputs = self._intake.take(slot)
            last = j == shards[-1][0]
            queue = partial(self._queue_step, inputs, slot, size, rates, j, last)
            self._graphs.run(("step", slot, size, j, last), settings, queue)
            self._intake.give_back(slot)
            stream = self._sides[0].stream
            found.append((stream.fetch(self._wiring.losses), stream.fetch(self._wiring.ranks), size))
        if self._reduction:
            sizes = [end - start for start, end in pairwise(self._shares.cuts(of))]
            queue = partial(self._queue_update, self._reduction, sizes, bool(shards), rates)
            self._graphs.run(("update", *sizes), settings, queue)
        self._wiring.exchange.log[:] = self._step_exchanges  # nothing is queued piece by piece when a graph is launched
        self.steps_done += 1
        return StepResult(found, [side.stream.fetch(side.control) for side in self._sides], self._group)

    def _queue_step(
        self, inputs: list[Array], slot: int, n: int, rates: Mapping[str, float], shard: int, last: bool
    ) -> None:
        """All of a step; where it is shared out, the gradients of one shard of this process."""
        self._wiring.read(inputs)
        self._wiring.forward(train=True)
        labels, reduction = self._intake.slots[slot].labels, self._reduction
        if reduction is None:
            self._wiring.backward(labels, n, rates)
        else:
            self._wiring.backward(labels, n, learnt=lambda layer: reduction.take(shard, layer, last))
        self._step_exchanges = list(self._wiring.exchange.log)

    def _run_hybrid(
        self,
        head: Head,
        reduction: Reduction,
        take_in: Callable[[int, slice], None],
        labels: Values,
        constants: Sequence[float],
        rates: Mapping[str, float],
        of: int,
    ) -> StepResult:
        """A step whose fully-connected layers see the images of all processes. A process that has several shards
        computes the convolutions of each anew on the way back, where they have no room side by side."""
        (side,), wiring, parts = self._sides, self._wiring, self._parts(of)
        starts = self._shares.own_cuts(of)
        sizes = [end - start for start, end in pairwise(self._shares.cuts(of))]

        def convolutions(j: int) -> int:
            slot = self._intake.next_slot()
            take_in(slot, parts[j])
            side.stream.upload(side.control.view((1,), FIRST), np.array([starts[j]], np.uint32))
            wiring.read(self._intake.take(slot))
            wiring.forward(train=True)
            return slot

        own = [j for j, part in enumerate(parts) if part.start < part.stop]
        reduction.begin()
        head.begin(self.steps_done, constants, [labels[part] for part in parts], of)
        slot = 0
        for j in own:
            slot = convolutions(j)
            head.put(j, wiring.blocks[-1][0].y)
            if len(own) > 1:
                self._intake.give_back(slot)
        head.forward(train=True)
        learns = any(not block[0].frozen for block in wiring.learning)
        dys = head.backward(sizes, rates, learns)
        for j in own if learns else []:
            if len(own) > 1:
                slot = convolutions(j)
            dy = wiring.costs[0].dy
            side.stream.copy(dy, dys[j].view(dy.shape))
            last = j == own[-1]
            wiring.descend(None, lambda layer: reduction.take(j, layer, last))  # noqa: B023  (called at once)
            self._intake.give_back(slot)
        if own and not learns:
            self._intake.give_back(slot)
        reduction.finish(sizes, bool(own))
        wiring.update(rates)
        head.update_biases(rates)
        reduction.agree(SPOILED)  # of slices that others have
        self.steps_done += 1
        return StepResult(head.results(sizes), [side.stream.fetch(side.control)], Group())

    def _queue_update(
        self, reduction: Reduction, sizes: Sequence[int], computed: bool, rates: Mapping[str, float]
    ) -> None:
        """The end of a step that is shared out; ``computed``: this process has images of it."""
        reduction.finish(sizes, computed)
        self._wiring.update(rates)

    # ---- life

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the network is closed")

    def _check_unshared(self, what: str) -> None:
        if self._reduction is not None:
            raise RuntimeError(f"{what}: a batch that is shared out has no gradients to look at; use train_step")

    def _whole(self, n: int, of: int | None) -> int:
        """How many images all processes have together, where this one has n."""
        of = n if of is None else arguments.integer("of", "of", of, 1, self.batch_size)
        share = self.share(of)
        if share.stop - share.start != n:
            raise ValueError(
                f"of {of} images rank {self._group.rank} of {self._group.size} takes those from {share.start} to "
                f"{share.stop}, got {n}"
            )
        return of

    def _check_gradients(self, what: str) -> None:
        self._check_open()
        if not self._kept:
            raise RuntimeError(f"{what}: there are no gradients; they come from backward or train_batch")

    def _batch(
        self, op: str, name: str, values: Any, shape: tuple[int | str, ...], dtype: str, shared: bool = False
    ) -> Given:
        """An array of any library with a batch along its first axis, checked; ``shared``: it may be cut into shards, or
        be empty where others have images."""
        self._check_open()
        (taken,) = arguments.taken(op, self.devices[0], **{name: values})
        if shared and self._group.size > 1 and not len(taken):
            return taken  # type: ignore[no-any-return]
        arguments.array(op, name, taken, ("n", *shape), dtype)
        arguments.count(op, len(taken), self.batch_size if shared else self._shares.largest(self.batch_size))
        return taken  # type: ignore[no-any-return]

    def _places(self, op: str, indices: Any, shared: bool = False) -> Values:
        """Those of kept images, on the host, where they are checked."""
        (taken,) = arguments.taken(op, None, indices=indices)
        return np.asarray(self._batch(op, "indices", taken, (), "integers", shared))

    def close(self) -> None:
        """Gives all device memory back. May be called twice."""
        if not self._closed:
            self._closed = True
            for side in self._sides:
                side.device.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _part(values: Any, part: slice, n: int) -> Any:
    """Some of the n values of a batch; where that is all, the array as it was given."""
    return values if part == slice(0, n) else np.asarray(values)[part]


class StepResult:
    """What a training step found out, on its way here while the step may still run."""

    def __init__(self, found: list[tuple[Fetch, Fetch, int]], controls: list[Fetch], group: Group):
        self._found, self._controls, self._group = found, controls, group
        self._known: tuple[Values, Values] | None = None

    def get(self) -> tuple[Values, Values]:
        """Losses, float32 (n,), and ranks of the true classes, int32 (n,), when they are there; of a batch that is
        shared out, those of all its images."""
        if self._known is None:
            own = [(losses.get()[:n], ranks.get()[:n]) for losses, ranks, n in self._found]
            parts = [part for parts in self._group.everyone(own, "the losses of a step") for part in parts]
            losses, ranks = zip(*parts, strict=True)
            self._known = np.concatenate(losses), np.concatenate(ranks)
        return self._known

    def gradients_finite(self) -> bool:
        """Whether all were that parameters took a step by, when that is known. Single values that were not have changed
        no parameter; ``Network.first_not_finite`` finds out where they come from."""
        return not any(control.get()[SPOILED] for control in self._controls)
