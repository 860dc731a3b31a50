"""Layers without weights in networks, against PyTorch in float64: what no network that has a name is made of."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from network_oracle import relative_error
from strong import strong_weights

import convnet
from convnet.network.spec import Conv, Linear, Mirror, NetworkSpec, RandPool, TrainDefaults

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


@pytest.mark.parametrize("devices", [1, 2])
def test_stochastic_pooling(arithmetic, within, devices):
    """The step decides the draws; at test the means of them are used, and towers draw alike wherever they lie."""
    if devices > 1 and arithmetic.device == "cpu":
        pytest.skip("there is one CPU")
    layers = (Conv("conv1", 6, 3, activation="tanh", joins=True), RandPool("pool1"), LAST)
    spec = NetworkSpec("small", CROP + 2, 2, layers, DEFAULTS)
    random = np.random.default_rng(0)
    images = random.standard_normal((N, 3, CROP + 2, CROP + 2), dtype=np.float32)
    labels = random.integers(0, CLASSES, N)
    names = [arithmetic.device] if devices == 1 else [f"{arithmetic.device}:{i}" for i in range(2)]
    options = {"devices": ",".join(names), "precision": arithmetic.precision}
    draws = []
    with convnet.Network(spec, batch_size=8, seed=11, fused=False, **options) as net:
        weights = strong_weights(net)
        net.load_weights(weights)
        for step in range(2):
            net.steps_done = step
            net.forward(images, train=True)
            maps, drawn = net.activation("conv1"), net.activation("pool1")
            places = reference.rand_pool_places(maps, 3, 2, 0, 0, 3, 3, 11, step, 1)
            flat = places.reshape(N, 6, -1)
            np.testing.assert_array_equal(
                drawn.reshape(flat.shape), np.take_along_axis(maps.reshape(N, 6, -1), flat, 2)
            )
            net.backward(labels)
            draws.append((places, net.gradients()))
        logits = net.forward(images)
    assert (draws[0][0] != draws[1][0]).any()

    def pooled(x, places):
        if places is None:
            weight = x.clamp(min=0).unfold(2, 3, 2).unfold(3, 3, 2).flatten(4)
            largest = x.unfold(2, 3, 2).unfold(3, 3, 2).flatten(4).amax(4)
            total = weight.sum(4)
            return torch.where(total > 0, (weight**2).sum(4) / torch.where(total > 0, total, 1), largest)
        return x.flatten(2).gather(2, torch.tensor(places).flatten(2))

    def outputs(places, p):
        x = torch.tanh(F.conv2d(torch.tensor(images, dtype=torch.float64), p["conv1.weight"], p["conv1.bias"]))
        x = F.pad(x, (0, 1, 0, 1), value=-1e9) if places is None else x  # the windows overhang
        return F.linear(pooled(x, places).flatten(1), p["scores.weight"], p["scores.bias"])

    limit = LIMITS[arithmetic.precision]
    p = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in weights.items()}
    within(f"means of draws {arithmetic.precision}", relative_error(logits, outputs(None, p).detach().numpy()) / limit)
    for step, (places, gradients) in enumerate(draws):
        loss = F.cross_entropy(outputs(places, p), torch.tensor(labels))
        right = dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))
        for name, gradient in gradients.items():
            within(f"gradients of draws {arithmetic.precision}", relative_error(gradient, right[name].numpy()) / limit)
        assert any(relative_error(draws[1 - step][1][name], right[name].numpy()) > limit for name in right)
