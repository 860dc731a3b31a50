"""Arrays of other libraries on a GPU, brought into the layout of ours without leaving it."""

from __future__ import annotations

from ..devices.foreign import ALIGNMENT, CudaMemory
from ..devices.protocol import Array, Stream
from ..kernels.shapes import PackShape
from . import ops


def gather(stream: Stream, memory: CudaMemory, precision: str, y: Array, N: int, lanes: int, fold: int = 1) -> None:
    """Queues a copy of float32 images, features or filters into ``y``: N of them, those that are missing zero, as
    ``layout.pack_activations`` and ``fold_images`` would have them. With one lane that is their order as it was.

    Raises ``ValueError`` where the memory cannot be read from this device, or has gaps and more than four axes.
    """
    sizes, steps = memory.shape, memory.steps
    if len(sizes) > 4:
        raise ValueError(f"an array of shape {sizes} in steps of {steps} has too many axes; make it contiguous")
    missing = 4 - len(sizes)
    (valid, C, H, W), steps = (*sizes, *(1,) * missing), (*steps, *(0,) * missing)
    offset = memory.address % ALIGNMENT // memory.dtype.itemsize
    shape = PackShape(N, valid, C, H, W, lanes, fold, offset, *steps)
    ops.pack(stream, shape, precision, stream.adopt(memory), y.view(shape.y))
