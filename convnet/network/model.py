"""The network as users see it: arrays in and out, checked; what happens on the devices is in ``wiring.py``.

``Network`` cuts the towers of a ``NetworkSpec`` into equal shares, one per device ("side").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from ..devices import switches
from ..devices.foreign import CudaMemory, Given
from ..devices.opening import open_devices
from ..devices.protocol import Array, Fetch, padded
from ..kernels.control import LR, SPOILED, WEIGHT_DECAY, control_words
from ..ops import arguments
from ..ops.layout import fold_images, pack_activations, rounded, unpack_activations
from .assemble import input_fold
from .diagnosis import first_not_finite
from .graphs import Graphs
from .initial import initial_weights
from .intake import Intake
from .layers import Side
from .networks import network
from .parameters import collect, distribute
from .spec import NetworkSpec, parameter_count
from .wiring import Wiring

Values = np.ndarray[Any, Any]
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
        self._lanes = opened[0].lanes(batch_size)
        self._N = padded(batch_size, self._lanes)
        self._valid = 0  # images of the last forward(train=True), 0 when there is nothing to go backward from
        self._last = 0  # images of the last forward, whose activations are there
        self._kept = False  # are there gradients?
        self._step_exchanges: list[tuple[str, str, int]] = []  # of a whole step
        self._closed = False
        self._fold = input_fold(self.spec, precision)
        self._wiring = Wiring(self.spec, self._sides, self._N, self._lanes, seed, fused)
        self._intake = Intake(self._sides, self._N, self._lanes, self.spec.crop, self._fold)
        self._wiring.read(self._intake.slots[0].inputs)
        self.set_input(np.zeros((3, self.spec.crop, self.spec.crop), np.float32))
        self._graphs = Graphs(self._wiring.streams)
        self._parameters = [p.name for layer in self._wiring.learning for p in layer[0].parameters]
        self.load_weights(initial_weights(self.spec, seed))
        self.load_velocity({name: np.zeros_like(w) for name, w in self.weights().items()})

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

    # ---- parameters

    def weights(self) -> dict[str, Values]:
        """Copies of all weights and biases, float32: (K, C/groups, R, S) or (out, in), and (K,)."""
        self._check_open()
        return collect(self._wiring, "value")

    def load_weights(self, weights: Mapping[str, Values]) -> None:
        """Replaces all weights and biases. Raises ``ValueError`` for missing or unknown names and wrong shapes.

        From a file: ``convnet.interop.load``.
        """
        self._check_open()
        distribute(self._wiring, "value", weights)
        for layer in self._wiring.learning:
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
        self._check_open()
        return collect(self._wiring, "velocity")

    def load_velocity(self, velocity: Mapping[str, Values]) -> None:
        """Replaces all momentum terms, as ``load_weights`` does weights."""
        self._check_open()
        distribute(self._wiring, "velocity", velocity)

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have weights, in order."""
        return [layer[0].name for layer in self._wiring.learning]

    @property
    def frozen(self) -> list[str]:
        """The layers that do not learn."""
        return [layer[0].name for layer in self._wiring.learning if layer[0].frozen]

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
        for layer in self._wiring.learning:
            for on_side in layer:
                on_side.frozen = on_side.name in wanted

    # ---- running

    def forward(self, images: Any, train: bool = False) -> Values:
        """Logits, float32 (n, classes), of images float32 (n, 3, crop, crop) with 1 <= n <= batch_size.

        ``train`` turns dropout on and prepares for ``backward``; otherwise dropped layers are multiplied by 1 - p,
        unless they are scaled in training.
        """
        crop = self.spec.crop
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
    ) -> StepResult:
        """``train_batch`` and ``step`` in one, the same to the bit, but faster: gradients of fully-connected layers
        never lie in memory, the same work is captured once and launched as a whole, and nobody waits for it: images of
        the next step come in while this one runs. Arguments may be reused when the call returns.
        """
        taken = self._batch("train_step", "images", images, STORED, "uint8")
        constants = (lr, momentum, weight_decay)
        return self._run_step(
            lambda slot: self._intake.images(taken, windows, noise, slot), len(taken), labels, constants, rates or {}
        )

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
    ) -> StepResult:
        """``train_step`` with images that ``store_images`` brought: ``indices`` (n,) are their places."""
        taken = self._places("train_step_kept", indices)
        constants = (lr, momentum, weight_decay)
        return self._run_step(
            lambda slot: self._intake.kept(taken, windows, noise, slot), len(taken), labels, constants, rates or {}
        )

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

    def evaluate_batch(self, images: Any, windows: Any) -> Values:
        """Logits, float32 (n, classes), of stored images in test mode; arguments as in ``train_batch``."""
        return self._run_forward(self._ingest("evaluate_batch", images, windows, None), train=False)

    def _ingest(self, op: str, images: Any, windows: Any, noise: Any) -> int:
        """Brings stored images in, without noise where that is None, and counts them."""
        taken = self._batch(op, "images", images, STORED, "uint8")
        n = len(taken)
        self._intake.images(taken, windows, np.zeros((n, 3), np.float32) if noise is None else noise)
        return n

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
        self._wiring.forward(train)
        self._intake.give_back(0)
        return unpack_activations(self._wiring.logits.download(), n) if logits else np.empty(0, np.float32)

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
        take_in: Callable[[int], None],
        n: int,
        labels: Values,
        constants: Sequence[float],
        rates: Mapping[str, float],
    ) -> StepResult:
        """A whole step on ``n`` images that ``take_in`` puts into a slot."""
        labels = arguments.labels(labels, n, self.spec.classes)
        arguments.constants("train_step", constants, rates, self._parameters)
        slot = self._intake.next_slot()
        take_in(slot)
        self._valid, self._kept = 0, False
        self._last = 0 if self._wiring.fused else n
        self._intake.labels(labels, slot)
        for side in self._sides:
            side.stream.upload(side.control, control_words(self.steps_done, *constants))
        inputs = self._intake.take(slot)
        settings = tuple(sorted(rates.items())), tuple(self.frozen)
        self._graphs.run((slot, n), settings, lambda: self._queue_step(inputs, slot, n, rates))
        self._wiring.exchange.log[:] = self._step_exchanges  # nothing is queued piece by piece when a graph is launched
        self._intake.give_back(slot)
        self.steps_done += 1
        stream = self._sides[0].stream
        controls = [side.stream.fetch(side.control) for side in self._sides]
        return StepResult(stream.fetch(self._wiring.losses), stream.fetch(self._wiring.ranks), controls, n)

    def _queue_step(self, inputs: list[Array], slot: int, n: int, rates: Mapping[str, float]) -> None:
        self._wiring.read(inputs)
        self._wiring.forward(train=True)
        self._wiring.backward(self._intake.slots[slot].labels, n, rates)
        self._step_exchanges = list(self._wiring.exchange.log)

    # ---- life

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the network is closed")

    def _check_gradients(self, what: str) -> None:
        self._check_open()
        if not self._kept:
            raise RuntimeError(f"{what}: there are no gradients; they come from backward or train_batch")

    def _batch(self, op: str, name: str, values: Any, shape: tuple[int | str, ...], dtype: str) -> Given:
        """An array of any library with a batch along its first axis, checked."""
        self._check_open()
        (taken,) = arguments.taken(op, self.devices[0], **{name: values})
        arguments.array(op, name, taken, ("n", *shape), dtype)
        arguments.count(op, len(taken), self.batch_size)
        return taken  # type: ignore[no-any-return]

    def _places(self, op: str, indices: Any) -> Values:
        """Those of kept images, on the host, where they are checked."""
        (taken,) = arguments.taken(op, None, indices=indices)
        return np.asarray(self._batch(op, "indices", taken, (), "integers"))

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


class StepResult:
    """What a training step found out, on its way here while the step may still run."""

    def __init__(self, losses: Fetch, ranks: Fetch, controls: list[Fetch], n: int):
        self._losses, self._ranks, self._controls, self._n = losses, ranks, controls, n

    def get(self) -> tuple[Values, Values]:
        """Losses, float32 (n,), and ranks of the true classes, int32 (n,), when they are there."""
        return self._losses.get()[: self._n], self._ranks.get()[: self._n]

    def gradients_finite(self) -> bool:
        """Whether all were that parameters took a step by, when that is known. Single values that were not have changed
        no parameter; ``Network.first_not_finite`` finds out where they come from."""
        return not any(control.get()[SPOILED] for control in self._controls)
