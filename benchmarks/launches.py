"""The kernel launches of a training step, or of inference, as the launchers choose them for an H200; none is run.

The code that allocates and queues them runs on a device without memory, and the emulator notes what its launchers
would start on a machine of 132 multiprocessors (``note_launches`` in ``_emu``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import timeline
from convnet.devices.opening import open_device
from convnet.devices.protocol import Array, padded
from convnet.devices.protocol import handle as handle_of
from convnet.network.assemble import input_fold
from convnet.network.footprint import Counted, Counting, Idle
from convnet.network.intake import Intake
from convnet.network.layers import Side
from convnet.network.spec import NetworkSpec
from convnet.network.wiring import Wiring

PARTS = ("step", "forward")
MULTIPROCESSORS = 132
STORED = 256  # rows and columns of the images that stay on the device
ADDRESS = 1 << 40  # of every array: where they lie changes nothing, and launches of one kind are then equal


@dataclass(frozen=True)
class Launch:
    """A kernel that the ``call``-th op of the step starts. ``parameters``: alignment and bytes of each. ``flops`` and
    ``bytes`` are those of the op, every operand once, and 0 for its second kernel and those behind."""

    call: int
    layer: str
    op: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: Sequence[tuple[int, bytes]]
    flops: float
    bytes: float
    cluster: int = 1  # blocks

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


class _Nowhere(Counted):
    """An array whose address nobody may use."""

    def __init__(self, device: Any, shape: tuple[int, ...], dtype: Any, address: int = ADDRESS):
        super().__init__(device, shape, dtype)
        self.handle = address

    def view(self, shape: tuple[int, ...], offset: int = 0, dtype: Any = None) -> _Nowhere:
        return _Nowhere(self.device, shape, dtype or self.dtype, self.handle + offset * self.dtype.itemsize)


class _Noting(Idle):
    """Calls launchers, and keeps what they would have started."""

    def launch(self, kernel: Callable[..., None], *arguments: Any) -> None:
        device: Any = self.device
        layer, (flops, nbytes) = timeline.current_layer(), timeline.work(kernel.__name__, arguments)
        device.real.kernels.note_launches(MULTIPROCESSORS)
        try:
            kernel(*map(handle_of, arguments), 0)
        finally:
            noted = device.real.kernels.noted_launches()
        for signature, *rest, cluster in noted:
            name = kernel_name(signature)
            device.launches.append(Launch(device.calls, layer, kernel.__name__, name, *rest, flops, nbytes, cluster))
            flops = nbytes = 0.0  # of an op of several kernels, the first has it all
        device.calls += 1


class _Device(Counting):
    def __init__(self) -> None:
        super().__init__(open_device("emu"))
        self.launches: list[Launch] = []
        self.calls = 0

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return _Nowhere(self, shape, dtype)

    def stream(self) -> _Noting:
        return _Noting(self)


def computed(part: str, batch_size: int) -> int:
    """How many images the kernels compute: a forward pass is one of whole blocks of lanes, a step knows how many there
    are.
    """
    return padded(batch_size, open_device("emu").lanes(batch_size)) if part == "forward" else batch_size


def of(part: str, spec: NetworkSpec, batch_size: int, precision: str) -> list[Launch]:
    """In the order in which they are queued. ``part``: a "step", whose images are on the device already, as luma and
    chroma planes, and brought in by its first kernel; or "forward", from the input of the first layer to the logits, in
    test mode, as one graph has it.
    """
    device = _Device()
    side = Side(device, precision, 0, 1, shared=True)
    lanes = device.lanes(batch_size)
    N = padded(batch_size, lanes)
    wiring = Wiring(spec, [side], N, lanes, 0, fused=True)
    intake = Intake([side], N, lanes, spec.crop, input_fold(spec, precision))
    if part == "step":
        intake.keep(batch_size, STORED)
        windows, noise = np.zeros((batch_size, 3), np.int32), np.zeros((batch_size, 3), np.float32)
        intake.kept(np.arange(batch_size), windows, noise)
    wiring.read(intake.slots[0].inputs)
    wiring.forward(train=part == "step")
    if part == "step":
        wiring.backward(intake.slots[0].labels, batch_size, {})
    return device.launches


def kernel_name(signature: str) -> str:
    """The name of a kernel with its template arguments, from what GCC prints of the function; defaults are left out.

    "void convnet::{anonymous}::f(A) [with T = convnet::Tile<1>; U = float]" is "f<Tile<1>, float>".
    """
    function, _, arguments = re.sub(r"(\w+|\{anonymous\})::", "", signature).partition(" [with ")
    name = function.partition("(")[0].split()[-1]
    parts = [part.split(" = ", 1) for part in arguments.removesuffix("]").split("; ")] if arguments else []
    # types that only occur in the signature are explained there, too
    given = [value for parameter, value in parts if not re.search(r"_t$|^typename ", parameter)]
    return f"{name}<{', '.join(given)}>" if given else name


def is_kernel(kernel: str, name: str) -> bool:
    """Whether ``kernel`` is the one that nvcc calls ``name``."""
    pattern = re.escape(kernel.replace(" ", "")).replace(">", r"(,\w+)*>")  # where defaults were left out
    return re.fullmatch(pattern, name.replace(" ", "")) is not None
