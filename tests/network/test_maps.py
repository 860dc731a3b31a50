"""Layers without weights in networks, against PyTorch in float64: what no network that has a name is made of."""

from __future__ import annotations

import numpy as np
import pytest
from network_oracle import relative_error, strong_weights

import convnet
from convnet.network.spec import Conv, Linear, Mirror, NetworkSpec, TrainDefaults

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
torch.set_num_threads(1)  # small problems; its threads would wait for each other

N, CROP, CLASSES = 5, 6, 7
DEFAULTS = TrainDefaults(batch_size=8, epochs=1, lr=0.01)
LAST = Linear("scores", CLASSES, activation=None, split=False)
# of a relative error: sums of a few dozen terms, of operands that are rounded so; in bfloat16 also what lies in memory
LIMITS = {"fp32": 64 * 2.0**-24, "tf32": 4 * 2.0**-11, "bf16": 4 * 2.0**-8}


@pytest.mark.parametrize("of_images", [True, False])
def test_mirror(arithmetic, within, of_images):
    """Of the images, and of maps of two towers; it reads an odd number of columns."""
    conv, mirror = Conv("conv1", 6, 3, activation="tanh", joins=True), Mirror("mirror1")
    layers = (mirror, conv, LAST) if of_images else (conv, mirror, LAST)
    spec = NetworkSpec("small", CROP + 1, 2, layers, DEFAULTS)
    random = np.random.default_rng(0)
    images = random.standard_normal((N, 3, CROP + 1, CROP + 1), dtype=np.float32)
    labels = random.integers(0, CLASSES, N)
    options = {"devices": arithmetic.device, "precision": arithmetic.precision}
    with convnet.Network(spec, batch_size=8, **options) as net:
        weights = strong_weights(net)
        net.load_weights(weights)
        net.forward(images, train=True)
        net.backward(labels)
        gradients = net.gradients()

    def expected(mirrored):
        p = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in weights.items()}
        x = torch.tensor(images, dtype=torch.float64)
        x = x.flip(3) if mirrored and of_images else x
        x = torch.tanh(F.conv2d(x, p["conv1.weight"], p["conv1.bias"]))
        x = x.flip(3) if mirrored and not of_images else x
        loss = F.cross_entropy(F.linear(x.flatten(1), p["scores.weight"], p["scores.bias"]), torch.tensor(labels))
        return dict(zip(p, (g.numpy() for g in torch.autograd.grad(loss, list(p.values()))), strict=True))

    limit = LIMITS[arithmetic.precision]
    right, plain = expected(True), expected(False)
    for name, gradient in gradients.items():
        within(f"gradients of mirrored maps {arithmetic.precision}", relative_error(gradient, right[name]) / limit)
        assert relative_error(gradient, plain[name]) > limit
