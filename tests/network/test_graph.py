"""Networks that are graphs of any layers: against float64, fused and not, at once and in parts, frozen, and paced."""

from __future__ import annotations

import numpy as np
import pytest
import test_model
from graphs import CLASSES, SPECS
from strong import strong_weights

import convnet
from convnet.network.spec import (
    Layer,
    parameter_shapes,
)

N = 6
NETS = pytest.mark.parametrize("net", SPECS, ids=lambda net: net.name)


def opened(net, devices: str = "cpu", precision: str = "fp32", **options) -> convnet.Network:
    found = convnet.Network(net, devices, batch_size=N, precision=precision, seed=5, **options)
    found.load_weights(strong_weights(found))
    return found


def batches(net, count: int, n: int = N):
    """Stored images, labels, windows and noise."""
    random = np.random.default_rng(0)
    side = net.spec.crop + 2
    for _ in range(count):
        windows = np.stack([random.integers(0, 3, n), random.integers(0, 3, n), random.integers(0, 2, n)], 1)
        noise = random.normal(0, 5, (n, 3)).astype(np.float32)
        images = random.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        yield images, random.integers(0, CLASSES, n), windows.astype(np.int32), noise


def in_parts(net, count: int, **constants):
    """Losses of steps taken apart, and weights and velocities behind them."""
    losses = []
    for batch in batches(net, count):
        losses.append(net.train_batch(*batch)[0])
        net.step(**constants)
    return state(net) | {"losses": np.array(losses)}


def at_once(net, count: int, **constants):
    results = [net.train_step(*batch, **constants) for batch in batches(net, count)]
    losses = [result.get()[0] for result in results]
    return state(net) | {"losses": np.array(losses)}


def state(net):
    return net.weights() | {f"velocity of {name}": value for name, value in net.velocity().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_every_type_of_layer_is_among_them():
    found = {type(layer) for net in SPECS for layer in net.layers}
    assert found == set(Layer.__args__)


@NETS
def test_against_float64(arithmetic, within, net):
    """Logits, loss and all gradients, dropout on; a batch smaller than the network's."""
    with opened(net, arithmetic.device, arithmetic.precision) as network:
        assert parameter_shapes(net) == {name: value.shape for name, value in network.weights().items()}
        test_model.compare(network, 5, within)


@NETS
def test_fused_is_unfused(arithmetic, net):
    """Bit for bit where activations are float32; in bfloat16 the forward pass, and gradients but for roundings."""
    found = []
    for fused in (True, False):
        with opened(net, arithmetic.device, arithmetic.precision, fused=fused) as network:
            (batch,) = batches(network, 1)
            losses, ranks = network.train_batch(*batch)
            found.append({"losses": losses, "ranks": ranks} | network.gradients())
    fused, apart = found
    if arithmetic.precision != "bf16":
        assert_same(fused, apart)
        return
    for name in ("losses", "ranks"):
        np.testing.assert_array_equal(fused[name], apart[name])
    for name, value in apart.items():
        assert np.linalg.norm(fused[name] - value) <= 2.0**-7 * np.linalg.norm(value), name
