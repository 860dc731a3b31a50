"""How much memory a network takes, what for, and how many images would fit: told where memory has run out.

The answer comes from the code that allocates itself, on devices that count what is asked of them and do nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..devices.opening import open_devices
from ..devices.protocol import Array, Device, Event, Fetch, Graph, OutOfMemory, Stream, padded
from .assemble import input_fold
from .intake import Intake
from .layers import LayerOnDevice, Side
from .products import ConvLayer
from .spec import NetworkSpec
from .wiring import Wiring

SPARE = 0.03  # of what is free: a driver rounds up, and keeps something for itself
Parts = dict[str, int]  # bytes, by what they are for


class Counted(Array):
    def __init__(self, device: Device, shape: tuple[int, ...], dtype: Any):
        self.device, self.shape, self.dtype, self.handle = device, tuple(shape), np.dtype(dtype), None

    def view(self, shape: tuple[int, ...], offset: int = 0, dtype: Any = None) -> Counted:
        return Counted(self.device, shape, dtype or self.dtype)

    def download(self) -> np.ndarray[Any, Any]:
        raise TypeError("what is only counted has no values")


class Idle(Stream):
    """Everything that is queued here is forgotten."""

    def __init__(self, device: Device):
        self.device = device

    def launch(self, kernel: Callable[..., None], *arguments: Any) -> None: ...

    def copy(self, target: Array, source: Array) -> None: ...

    def upload(self, target: Array, values: np.ndarray[Any, Any]) -> None: ...

    def wait(self, event: Event) -> None: ...

    def synchronize(self) -> None: ...

    def record(self) -> Event:
        return Event()

    def fetch(self, source: Array) -> Fetch:
        raise TypeError("what is only counted has no values")

    def _begin_capture(self, streams: list[Stream]) -> Graph:
        raise TypeError("what is only counted is not run again")


class Counting(Device):
    """Stands for ``real``, whose kernels are asked for their workspaces."""

    def __init__(self, real: Device):
        self.real, self.name, self.kernels, self.precisions = real, real.name, real.kernels, real.precisions
        self._allocated = 0

    def lanes(self, N: int) -> int:
        return self.real.lanes(N)

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Counted:
        array = Counted(self, shape, dtype)
        self._allocated += array.nbytes
        return array

    def borrow(self, values: np.ndarray[Any, Any]) -> Counted | None:
        return Counted(self, values.shape, values.dtype) if self.real.borrow(values) else None

    def free(self) -> None:
        return None

    def stream(self) -> Idle:
        return Idle(self)

    def synchronize(self) -> None: ...

    @property
    def allocated(self) -> int:
        return self._allocated

    def close(self) -> None: ...


@dataclass(frozen=True)
class Use:
    """What a network is opened for. ``size`` is that of stored images, ``kept`` how many stay on the devices."""

    spec: NetworkSpec
    devices: str
    precision: str
    size: int
    fused: bool = True
    training: bool = False
    kept: int = 0

    def footprints(self, batch_size: int) -> dict[str, Parts]:
        """What every device needs for batches of this size."""
        counting = [Counting(device) for device in open_devices(self.devices, most=min(2, self.spec.parts))]
        sides = [Side(device, self.precision, i, len(counting), self.fused) for i, device in enumerate(counting)]
        lanes = counting[0].lanes(batch_size)
        N = padded(batch_size, lanes)
        wiring = Wiring(self.spec, sides, N, lanes, 0, self.fused)
        intake = Intake(sides, N, lanes, self.spec.crop, input_fold(self.spec, self.precision))
        if self.kept:
            intake.keep(self.kept, self.size)
        one = np.zeros((1, self.size, self.size, 3), np.uint8), np.zeros((1, 3), np.int32), np.zeros((1, 3), np.float32)
        intake.images(*one, slot=0)
        wiring.read(intake.slots[0].inputs)
        if self.training:
            slot = intake.next_slot()
            if not self.kept:
                intake.images(*one, slot=slot)
            wiring.forward(train=True)
            wiring.backward(intake.slots[0].labels, batch_size, {})
        return {side.device.name: _parts(side, wiring, intake) for side in sides}

    def advice(self, batch_size: int, available: int | None, fits: str) -> str:
        """What takes how much memory, and the first half of half of ... ``batch_size`` that would fit in ``available``
        bytes on each device; ``fits`` says what to do with that number."""
        footprints = self.footprints(batch_size)
        told = [
            f"{batch_size} images at a time need {_mb(sum(parts.values()))} on {name} "
            f"({', '.join(f'{what} {_mb(nbytes)}' for what, nbytes in parts.items() if nbytes)})"
            for name, parts in footprints.items()
        ]
        if available is None:
            return "; ".join([*told, "use a smaller batch (-b)"])
        room, smaller = int(available * (1 - SPARE)), batch_size // 2
        while smaller and any(sum(parts.values()) > room for parts in self.footprints(smaller).values()):
            smaller //= 2
        remedy = fits.format(smaller) if smaller else "not even a single one fits: use a smaller network, or the CPU"
        return "; ".join([*told, remedy])

    @contextmanager
    def explained(self, batch_size: int, fits: str = "-b {} would fit") -> Iterator[None]:
        """Work with such a network: where memory runs out, the error says all of this."""
        try:
            yield
        except OutOfMemory as error:
            remedy = self.advice(batch_size, error.available, fits)
            raise OutOfMemory(error.shortage, error.available, remedy) from error


def _parts(side: Side, wiring: Wiring, intake: Intake) -> Parts:
    layers = [layer for block in wiring.blocks for layer in block if layer.side is side]
    i = side.index
    batches: list[Array] = []
    for slot in intake.slots:
        batches += [slot.inputs[i], slot.windows[i], slot.noise[i], slot.index[i]]
        batches += [*slot.images[i : i + 1], *([slot.labels] if i == 0 else [])]
    found = {
        "weights, their momentum and gradients": sum(map(_of_parameters, layers)),
        "activations and their gradients": _planned(side),
        "workspace": side.workspace.nbytes if side.workspace else 0,
        "two batches of images" if len(intake.slots) > 1 else "a batch of images": sum(a.nbytes for a in batches),
        "images that stay": sum(a.nbytes for a in intake._kept[i]) if intake._kept else 0,
    }
    return {**found, "all else": side.device.allocated - sum(found.values())}


def _planned(side: Side) -> int:
    if side.plan.shared:
        return side.plan.place()
    return sum(int(np.prod(wish.shape)) * wish.dtype.itemsize for wish in side.plan.wishes)


def _of_parameters(layer: LayerOnDevice) -> int:
    """A copy of a weight, or its gradient, may be the very array that products work on."""
    arrays = [a for p in layer.parameters for a in (p.value, p.velocity, p.copy, p._gradient) if a is not None]
    if isinstance(layer, ConvLayer):
        arrays += [*layer.filters, *layer.dfilters]
    return sum(array.nbytes for array in {id(array): array for array in arrays}.values())


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB" if nbytes >= 1e6 else f"{nbytes / 1e6:.1f} MB"
