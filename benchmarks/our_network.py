"""Our network under the clock: what the other side is, too, as one object with three kinds of work."""

from __future__ import annotations

import numpy as np

from benchmarks.pictures import Album, Batch
from convnet import Network

LR, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4


class OurNetwork:
    """``net`` with an ``album`` of pictures: every step starts from a batch in its device's memory.

    On a GPU that holds all pictures as luma and chroma planes. Crop, flip, mean, scale and layout are part of each of
    our steps.
    """

    def __init__(self, net: Network, album: Album, batches: list[Batch]):
        self.net, self.batches = net, batches
        self.memory = sum(net.memory().values())  # without the pictures
        self.images: list[np.ndarray] = []
        net.set_input(mean_image(net.spec.crop))
        if net.devices[0].startswith("cuda"):
            net.keep_images(*album.planes[0].shape[:2])
            net.store_images(0, *album.planes)
        else:
            self.images = [album.images[batch.indices] for batch in batches]

    def step(self, number: int) -> None:
        """Forward, loss, backward, update; nobody waits for the results."""
        k = number % len(self.batches)
        batch = self.batches[k]
        if self.images:
            self.net.train_step(self.images[k], batch.labels, batch.windows, batch.noise, LR, MOMENTUM, WEIGHT_DECAY)
        else:
            options = batch.labels, batch.windows, batch.noise, LR, MOMENTUM, WEIGHT_DECAY
            self.net.train_step_kept(batch.indices, *options)

    def train(self, number: int) -> None:
        """Forward, loss and backward: gradients are ready."""
        k = number % len(self.batches)
        batch = self.batches[k]
        if self.images:
            self.net.train_batch(self.images[k], batch.labels, batch.windows, batch.noise)
        else:
            self.net.train_batch_kept(batch.indices, batch.labels, batch.windows, batch.noise)

    def forward(self, number: int) -> None:
        """Logits in test mode, left on the device."""
        k = number % len(self.batches)
        batch = self.batches[k]
        if self.images:
            self.net._ingest("step", self.images[k], batch.windows, batch.noise)
        else:
            self.net._intake.kept(batch.indices, batch.windows, batch.noise)
        self.net._run_forward(len(batch.indices), train=False, logits=False)

    def first_logits(self) -> np.ndarray:
        """Of the first batch, in test mode."""
        self.forward(0)
        return self.net.activation(self.net.spec.layers[-1].name)

    def synchronize(self) -> None:
        for side in self.net._sides:
            side.device.synchronize()


def mean_image(crop: int) -> np.ndarray:
    """What is subtracted from every image, float32 (3, crop, crop)."""
    return np.full((3, crop, crop), 127.5, np.float32)
