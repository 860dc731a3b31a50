"""The first 17 data batches of cuda-convnet's 19 % net, as its pages recorded them in 2011: the best test there is of
whether its files train here as they did there. It needs CIFAR-10, any version, in the folder that CONVNET_CIFAR10
names.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import convnet
from convnet.data import Loader, normalisation, open_dataset, statistics
from convnet.data.minibatches import Minibatches

# nats and error of the training pictures of each data batch, while weights change
RECORDED = [
    (2.277909, 0.8796), (2.145043, 0.7804), (1.983224, 0.7243), (1.913032, 0.7020), (1.813073, 0.6724),
    (1.758718, 0.6491), (1.735701, 0.6376), (1.666571, 0.6099), (1.659595, 0.6048), (1.605653, 0.5849),
    (1.561900, 0.5653), (1.553927, 0.5610), (1.497355, 0.5384), (1.517817, 0.5448), (1.481088, 0.5260),
    (1.456526, 0.5251), (1.449469, 0.5178),
]  # fmt: skip
# behind 13 data batches, 1,027 updates: the mean size of the weights
WEIGHTS = {"conv1": 0.01411, "conv2": 0.00883, "conv3": 0.00848, "fc10": 0.001826}


def curves(folder: str, batches: int) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """Loss and error of each data batch, and the mean size of the weights behind the 13th."""
    dataset = open_dataset(folder, size=32, seed=0, ranges=("1-5", "6"))
    found = statistics(dataset, 32, 1)
    course = Minibatches(128, dataset.batches)
    assert course.steps == 395, "five batches of 10,000: 78 minibatches of 128 and one of 16 each"
    seen: list[tuple[float, float]] = []
    sizes: dict[str, float] = {}
    options = {"batch_size": 128, "crop": 32, "seed": 0, "augment": False, "statistics": found, "workers": 2}
    with (
        convnet.Network("cifar-19pct", devices="cpu", batch_size=128) as net,
        Loader(dataset.train, shuffle=False, batches=course.sizes, **options) as loader,
    ):
        net.set_input(*normalisation(found, "mean-image"))
        for epoch in range(-(-batches // 5)):
            losses, wrong = [], []
            for batch in loader.epoch(epoch):
                step = net.train_step(batch.images, batch.labels, batch.windows, batch.noise, 0.001, 0.9, 0.004)
                own, ranks = step.get()
                losses.append(own)
                wrong.append(ranks >= 1)
                if sum(map(len, losses)) == 10_000:
                    seen.append((float(np.concatenate(losses).mean()), float(np.concatenate(wrong).mean())))
                    losses, wrong = [], []
                    if len(seen) == 13:
                        sizes = {n.removesuffix(".weight"): float(np.abs(w).mean()) for n, w in net.weights().items()}
                    if len(seen) == batches:
                        return seen, sizes
    raise AssertionError(f"only {len(seen)} data batches")


def test_the_first_17_data_batches_of_the_19_per_cent_net():
    folder = os.environ.get("CONVNET_CIFAR10")
    if not folder:
        pytest.skip("CONVNET_CIFAR10 names no folder with CIFAR-10")
    seen, sizes = curves(folder, len(RECORDED))
    for number, ((loss, error), (nats, wrong)) in enumerate(zip(seen, RECORDED, strict=True), 1):
        # other weights at the start, which tells most in the first batch: learning begins in its middle
        room = 0.12 if number < 4 else 0.06
        assert loss == pytest.approx(nats, abs=room), f"data batch {number}"
        assert error == pytest.approx(wrong, abs=room / 2), f"data batch {number}"
    for layer, size in WEIGHTS.items():
        assert sizes[layer] == pytest.approx(size, rel=0.1), layer
