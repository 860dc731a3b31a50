"""Training steps of a tiny network, at once and taken apart."""

from __future__ import annotations

import numpy as np

import convnet
from convnet.network.networks import network

TINY = network("alexnet-tiny", width=0.25, crop=32)
N = 6


def batches(count: int, n: int = N):
    random = np.random.default_rng(0)
    for _ in range(count):
        images = random.integers(0, 256, (n, 36, 36, 3), dtype=np.uint8)
        windows = np.stack([random.integers(0, 5, n), random.integers(0, 5, n), random.integers(0, 2, n)], 1)
        noise = random.normal(0, 5, (n, 3)).astype(np.float32)
        yield images, random.integers(0, 10, n), windows.astype(np.int32), noise


def opened(devices: str, precision: str = "fp32", fused: bool = True, frozen: tuple[str, ...] = ()):
    net = convnet.Network(TINY, devices=devices, batch_size=N, seed=3, precision=precision, fused=fused)
    net.freeze(frozen)
    return net


def in_parts(net, count: int, n: int = N, **constants):
    """Losses, ranks and weights of steps taken apart."""
    found = []
    for batch in batches(count, n):
        found.append(net.train_batch(*batch))
        net.step(**constants)
    return found, net.weights() | {f"velocity/{k}": v for k, v in net.velocity().items()}


def at_once(net, count: int, n: int = N, **constants):
    """The same by ``train_step``, all of them under way before the first result is looked at."""
    results = [net.train_step(*batch, **constants) for batch in batches(count, n)]
    return [result.get() for result in results], net.weights() | {f"velocity/{k}": v for k, v in net.velocity().items()}


def assert_same(a, b):
    for (losses, ranks), (other_losses, other_ranks) in zip(a[0], b[0], strict=True):
        np.testing.assert_array_equal(losses, other_losses)
        np.testing.assert_array_equal(ranks, other_ranks)
    assert a[1].keys() == b[1].keys()
    for name, values in a[1].items():
        np.testing.assert_array_equal(values, b[1][name], err_msg=name)
