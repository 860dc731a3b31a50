"""The network at work: layers on one or several devices, and the exchanges between them.

``Network`` cuts the towers of a ``NetworkSpec`` into equal shares, one per device ("side"). Each side runs its share of
every layer; in front of a layer that gathers, every side fetches the other sides' parts of the activation, and on the
way back every side sums the gradients that all sides computed for its part, in the order of the sides. Nothing else
crosses between devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from . import ops
from .backend import Array, open_devices, padded
from .control import LR, WEIGHT_DECAY, control_words
from .exchange import Exchange
from .initial import initial_weights
from .intake import Intake
from .layers import LayerOnDevice, Parameter, Side, build, input_fold
from .layout import fold_images, pack_activations, rounded, to_device, to_user, unpack_activations, user_shape
from .shapes import SoftmaxShape
from .spec import Linear, NetworkSpec, network, parameter_count, placed_layers

Values = np.ndarray[Any, Any]


class Network:
    """A network with its weights, ready to run and to train.

    ``devices`` is "auto" (a GPU per tower, two at most; without any the CPU), "cpu", "emu[:i]" or "cuda[:i]", or a
    comma-separated list of emulators or GPUs that share the towers. ``batch_size`` is the largest number of images in
    one call. ``precision`` is "fp32" anywhere, and "tf32" or "bf16" on emulators and GPUs; what users see is float32
    always. Further keywords (``crop``, ``width``, ``dropout``, ...) change the network: see ``convnet.spec.network``.
    Weights are drawn from ``seed``. All memory is allocated here, but for a buffer of stored images that comes with the
    first ``train_batch`` or ``evaluate_batch``; ``close`` gives it back.

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
        **changes: Any,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must lie in 0 .. 2^64 - 1, got {seed}")
        if isinstance(model, str):
            model = network(model, num_classes=num_classes, **changes)
        elif num_classes is not None or changes:
            raise ValueError("a NetworkSpec is taken as it is: change it by convnet.spec.network(...)")
        self.spec = model
        self.batch_size, self.precision, self.seed = batch_size, precision, seed
        self.steps_done = 0
        opened = open_devices(devices, most=min(2, self.spec.towers))
        if self.spec.towers % len(opened):
            raise ValueError(
                f'"{self.spec.name}" has {self.spec.towers} towers, which cannot be shared by {len(opened)} devices; '
                f"use a number of devices that divides it"
            )
        self._sides = [Side(device, precision, i, len(opened)) for i, device in enumerate(opened)]
        self._lanes = opened[0].lanes(batch_size)
        self._N = padded(batch_size, self._lanes)
        self._valid = 0  # images of the last forward(train=True), 0 when there is nothing to go backward from
        self._closed = False
        self._build()
        self.load_weights(initial_weights(self.spec, seed))
        self.load_velocity({name: np.zeros_like(w) for name, w in self.weights().items()})

    # ---- construction

    def _build(self) -> None:
        N, lanes, crop = self._N, self._lanes, self.spec.crop
        self._placed = list(placed_layers(self.spec))
        self._layers: list[list[LayerOnDevice]] = []  # [layer][side]; a layer that is not split has one side
        self._gathered: dict[int, list[Array]] = {}
        self._fold = input_fold(self.spec, self.precision)
        self._intake = Intake(self._sides, N, lanes, crop, self._fold)
        self.set_input(np.zeros((3, crop, crop), np.float32))
        activations = self._intake.inputs
        part = 0
        for placed in self._placed:
            sides = self._sides
            if isinstance(placed.layer, Linear) and not placed.layer.split:
                sides = self._sides[:1]
            if placed.gathers and len(self._sides) > 1:
                C_part = activations[0].shape[1]
                whole = (N // lanes, C_part * len(self._sides), *activations[0].shape[2:])
                self._gathered[placed.index] = [side.activations(whole) for side in sides]
                part = max(part, activations[0].size)
                activations = self._gathered[placed.index]
            layer = [
                build(placed, side, x, N, lanes, self.spec.towers, self.seed)
                for side, x in zip(sides, activations, strict=True)
            ]
            self._layers.append(layer)
            activations = [on_side.y for on_side in layer]
        for side in self._sides:
            side.allocate()
        self._exchange = Exchange(self._sides, part)
        first = self._sides[0].device
        self._labels = first.empty((N,), np.int32)
        self._losses, self._ranks = first.empty((N,)), first.empty((N,), np.int32)

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
        """Bytes allocated on each device: all that training and inference on float32 images need, and the buffer of
        stored uint8 images once there is one."""
        self._check_open()
        return {side.device.name: side.device.allocated for side in self._sides}

    def exchanges(self) -> list[tuple[str, str, int]]:
        """Traffic between devices in the last forward and backward: (joining layer, "forward" or "backward", bytes)."""
        return list(self._exchange.log)

    def activation(self, name: str) -> Values:
        """Output of a layer in the last forward pass, behind its ReLU: float32 (n, C, H, W) or (n, F)."""
        self._check_open()
        for placed, layer in zip(self._placed, self._layers, strict=True):
            if placed.layer.name == name:
                parts = [unpack_activations(on_side.y.download(), self._last) for on_side in layer]
                return np.concatenate(parts, axis=1)
        raise ValueError(f'no layer is called "{name}"; there are {", ".join(p.layer.name for p in self._placed)}')

    # ---- parameters

    def _collect(self, what: str) -> dict[str, Values]:
        self._check_open()
        values: dict[str, Values] = {}
        for layer in self._layers:
            for on_sides in zip(*(on_side.parameters for on_side in layer), strict=True):
                parts = [to_user(getattr(parameter, what).download()) for parameter in on_sides]
                values[on_sides[0].name] = np.concatenate(parts)
        return values

    def _distribute(self, what: str, values: Mapping[str, Values]) -> None:
        self._check_open()
        by_name: dict[str, Sequence[tuple[Side, Parameter]]] = {}
        for layer in self._layers:
            for on_sides in zip(*(on_side.parameters for on_side in layer), strict=True):
                by_name[on_sides[0].name] = list(zip((o.side for o in layer), on_sides, strict=True))
        if set(values) != set(by_name):
            missing, unknown = sorted(set(by_name) - set(values)), sorted(set(values) - set(by_name))
            raise ValueError(
                f"parameters do not match the network: missing {missing or 'none'}, unknown {unknown or 'none'}"
            )
        for name, owners in by_name.items():
            shape = user_shape(owners[0][1].value.shape)
            whole = (shape[0] * len(owners), *shape[1:])
            value = np.asarray(values[name])
            if value.shape != whole or value.dtype != np.float32:
                raise ValueError(f"{name} must be float32 of shape {whole}, got {value.dtype} of shape {value.shape}")
        for name, owners in by_name.items():
            for part, (side, parameter) in zip(np.split(np.asarray(values[name]), len(owners)), owners, strict=True):
                side.stream.upload(getattr(parameter, what), to_device(part, parameter.value.shape))

    def weights(self) -> dict[str, Values]:
        """Copies of all weights and biases, float32: (K, C/groups, R, S) or (out, in), and (K,)."""
        return self._collect("value")

    def load_weights(self, weights: Mapping[str, Values]) -> None:
        """Replaces all weights and biases. Raises ``ValueError`` for missing or unknown names and wrong shapes."""
        self._distribute("value", weights)
        for layer in self._layers:
            for on_side in layer:
                on_side.copy_weights()

    def gradients(self) -> dict[str, Values]:
        """Gradients of the mean loss from the last ``backward``; keys and shapes as in ``weights``, without those of
        frozen layers."""
        return {n: g for n, g in self._collect("gradient").items() if n.partition(".")[0] not in self.frozen}

    def velocity(self) -> dict[str, Values]:
        """The momentum terms; keys and shapes as in ``weights``."""
        return self._collect("velocity")

    def load_velocity(self, velocity: Mapping[str, Values]) -> None:
        """Replaces all momentum terms, as ``load_weights`` does weights."""
        self._distribute("velocity", velocity)

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have weights, in order."""
        return [layer[0].name for layer in self._layers if layer[0].parameters]

    @property
    def frozen(self) -> list[str]:
        """The layers that do not learn."""
        return [layer[0].name for layer in self._layers if layer[0].parameters and layer[0].frozen]

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
        for layer in self._layers:
            for on_side in layer:
                on_side.frozen = on_side.name in wanted

    # ---- running

    def forward(self, images: Values, train: bool = False) -> Values:
        """Logits, float32 (n, classes), of images float32 (n, 3, crop, crop) with 1 <= n <= batch_size.

        ``train`` turns dropout on and prepares for ``backward``; otherwise dropped layers are multiplied by 1 - p.
        """
        crop = self.spec.crop
        self._check_batch("forward", images, (3, crop, crop), np.float32)
        x = rounded(pack_activations(fold_images(images, self._fold), self._lanes, self._N), self.precision)
        for side, buffer in zip(self._sides, self._intake.inputs, strict=True):
            side.stream.upload(buffer, x)
        return self._run_forward(len(images), train)

    def backward(self, labels: Values) -> float:
        """Mean cross-entropy of the last ``forward(train=True)`` against labels (n,) of any integer dtype; computes all
        gradients.

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
        not finite, parameters stay as they are.
        """
        self._check_open()
        words = control_words(0, lr, momentum, weight_decay)[LR : WEIGHT_DECAY + 1]
        for side in self._sides:
            side.stream.upload(side.control.view(words.shape, LR), words)
        for layer in self._layers:
            for on_side in layer:
                on_side.update(rates or {})
        self.steps_done += 1

    def set_input(self, mean: Values, scale: float | Sequence[float] | None = None) -> None:
        """What stored images go through on their way in: (pixel - mean + noise) * scale.

        ``mean`` is float32 (3, crop, crop) in 0..255; ``scale`` a number, or one for each channel, by default the
        network's ``input_scale``.
        """
        self._check_open()
        self._intake.set_input(mean, self.spec.input_scale if scale is None else scale)

    def train_batch(self, images: Values, labels: Values, windows: Values, noise: Values) -> tuple[Values, Values]:
        """Forward and backward from stored images; ``step`` then updates the weights.

        ``images`` uint8 (n, H, W, 3); ``windows`` int32 (n, 3): top, left, flip of each crop; ``noise`` float32 (n, 3),
        added per channel. Returns the losses, float32 (n,), and the ranks of the true classes, int32 (n,): top-k error
        is rank >= k.
        """
        self._ingest(images, windows, noise)
        self._run_forward(len(images), train=True, logits=False)
        return self._run_backward(labels)

    def evaluate_batch(self, images: Values, windows: Values) -> Values:
        """Logits, float32 (n, classes), of stored images in test mode; arguments as in ``train_batch``."""
        self._ingest(images, windows, np.zeros((len(images), 3), np.float32))
        return self._run_forward(len(images), train=False)

    def _ingest(self, images: Values, windows: Values, noise: Values) -> None:
        size = images.shape[1:3] if images.ndim == 4 else (self.spec.crop, self.spec.crop)
        self._check_batch("train_batch", images, (*size, 3), np.uint8)
        self._intake.images(images, windows, noise)

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

    def train_batch_kept(
        self, indices: Values, labels: Values, windows: Values, noise: Values
    ) -> tuple[Values, Values]:
        """``train_batch`` with images that ``store_images`` brought: ``indices`` (n,) are their places."""
        self._check_open()
        if not 1 <= len(indices) <= self.batch_size:
            raise ValueError(f"train_batch_kept: there must be 1 to {self.batch_size} images, got {len(indices)}")
        self._intake.kept(indices, windows, noise)
        self._run_forward(len(indices), train=True, logits=False)
        return self._run_backward(labels)

    def _run_forward(self, n: int, train: bool, logits: bool = True) -> Values:
        self._exchange.log.clear()
        self._valid, self._last = (n if train else 0), n
        if train:
            for side in self._sides:
                side.stream.upload(side.control, control_words(self.steps_done))
        for placed, layer in zip(self._placed, self._layers, strict=True):
            if placed.index in self._gathered:
                parts = [on_side.y for on_side in self._layers[placed.index - 1]]
                self._exchange.gather(placed.layer.name, parts, self._gathered[placed.index])
            for on_side in layer:
                on_side.forward(train)
        return unpack_activations(self._layers[-1][0].y.download(), n) if logits else np.empty(0, np.float32)

    def _run_backward(self, labels: Values) -> tuple[Values, Values]:
        self._check_open()
        n, classes = self._valid, self.spec.classes
        if not n:
            raise RuntimeError("backward needs a forward(train=True) before it")
        labels = np.asarray(labels)
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be integers of shape {(n,)}, got {labels.dtype} of shape {labels.shape}")
        if n and (labels.min() < 0 or labels.max() >= classes):
            raise ValueError(f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
        self._valid = 0
        first, last = self._sides[0], self._layers[-1][0]
        padded_labels = np.zeros(self._N, np.int32)
        padded_labels[:n] = labels
        first.stream.upload(self._labels, padded_labels)
        dlogits = first.gradient(last.y.shape)
        shape = SoftmaxShape(self._N, n, classes, self._lanes)
        results = self._losses, self._ranks, None, dlogits, first.control
        ops.softmax_cross_entropy(first.stream, shape, self.precision, last.y, self._labels, *results)
        self._share_control()
        gradients: list[Array] = [dlogits]
        lowest = min(placed.index for placed, layer in zip(self._placed, self._layers, strict=True) if _learns(layer))
        for placed, layer in zip(reversed(self._placed), reversed(self._layers), strict=True):
            below = placed.index > lowest
            passed = [on_side.backward(dy, below) for on_side, dy in zip(layer, gradients, strict=True)]
            if not below:
                break
            gradients = [dx for dx in passed if dx is not None]
            outputs = [on_side.y for on_side in self._layers[placed.index - 1]]
            if placed.index in self._gathered:
                gradients = self._exchange.reduce(placed.layer.name, gradients, outputs[0].shape)
            # a layer may see its input with another shape (features instead of maps)
            gradients = [dx.view(y.shape) for dx, y in zip(gradients, outputs, strict=True)]
        return self._losses.download()[:n], self._ranks.download()[:n]

    def _share_control(self) -> None:
        """Tells all sides what the loss said."""
        first, *others = self._sides
        ready = first.stream.record()
        for side in others:
            side.stream.wait(ready)
            side.stream.copy(side.control, first.control)
            first.stream.wait(side.stream.record())

    # ---- life

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the network is closed")

    def _check_batch(self, op: str, images: Values, shape: tuple[int, ...], dtype: Any) -> None:
        self._check_open()
        n = len(images) if images.ndim else 0
        if images.shape[1:] != shape or images.dtype != dtype or not 1 <= n <= self.batch_size:
            raise ValueError(
                f"{op}: images must be {np.dtype(dtype).name} of shape (n, {', '.join(map(str, shape))}) with 1 <= n "
                f"<= {self.batch_size} (the batch size), got {images.dtype} of shape {images.shape}"
            )

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


def _learns(layer: list[LayerOnDevice]) -> bool:
    return bool(layer[0].parameters) and not layer[0].frozen
