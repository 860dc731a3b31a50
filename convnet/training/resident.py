"""Training images that stay on the devices of a network: decoded once, at the start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ..data import Split
from ..data.planar import to_planes
from ..output.console import Console

if TYPE_CHECKING:
    from ..network.model import Network

CHUNK = 128  # images decoded between two uploads: this bounds the memory


def keep_on_device(network: Network, split: Split, workers: int, console: Console) -> None:
    """Brings all images of ``split`` to the network's devices, in order, decoding them with ``workers`` threads.

    Raises ``DeviceError`` where they do not fit.
    """
    count, size = len(split), split.size
    network.keep_images(count, size)
    half = (size + 1) // 2
    planes = tuple(np.empty((CHUNK, side, side), np.uint8) for side in (size, half, half))
    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="convnet-data") as pool:
        for first in range(0, count, CHUNK):
            present = range(first, min(first + CHUNK, count))
            for row, image in enumerate(pool.map(lambda k: to_planes(split.image(k)), present)):
                for plane, part in zip(planes, image, strict=True):
                    plane[row] = part
            luma, cb, cr = (plane[: len(present)] for plane in planes)
            network.store_images(first, luma, cb, cr)
            console.progress(present.stop, count, "images to the device")
    console.clear()
