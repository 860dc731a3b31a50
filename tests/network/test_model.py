"""Whole networks against PyTorch: logits, loss, every gradient, every activation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from strong import strong_weights

import convnet
from convnet.network.networks import network
from convnet.network.spec import Conv, Linear, Lrn, placed_layers

NAMES = [f"{layer}.{kind}" for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
         for kind in ("weight", "bias")]  # fmt: skip


def batch(net, n: int, seed: int = 0):
    random = np.random.default_rng(seed)
    images = random.standard_normal((n, 3, net.spec.crop, net.spec.crop), dtype=np.float32)
    return images, random.integers(0, net.spec.classes, n)


def run(net, images, labels):
    """Logits, loss, gradients."""
    logits = net.forward(images, train=True)
    loss = net.backward(labels)
    return logits, loss, net.gradients()


def test_alexnet_is_the_papers():
    """Filters, sizes and connections of section 3.5 and figure 2, and the number of parameters."""
    spec = network("alexnet")
    found = {p.layer.name: (p.K, p.P, p.groups) for p in placed_layers(spec) if isinstance(p.layer, (Conv, Linear))}
    assert found == {
        "conv1": (96, 55, 1), "conv2": (256, 27, 2), "conv3": (384, 13, 1), "conv4": (384, 13, 2),
        "conv5": (256, 13, 2), "fc6": (4096, 1, 1), "fc7": (4096, 1, 1), "fc8": (1000, 1, 1),
    }  # fmt: skip
    shapes = {"conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3),
              "conv5": (256, 192, 3, 3), "fc6": (4096, 9216), "fc7": (4096, 4096), "fc8": (1000, 4096)}  # fmt: skip
    with convnet.Network("alexnet", devices="cpu", batch_size=1) as net:
        weights = net.weights()
        assert list(weights) == NAMES
        assert {name: weights[f"{name}.weight"].shape for name in shapes} == shapes
        assert sum(value.size for value in weights.values()) == net.parameters == 60_965_224
        for name in NAMES:
            if name.endswith("weight"):
                assert abs(weights[name].std() - 0.01) < 2e-4, name
                assert abs(weights[name].mean()) < 2e-4, name
            else:
                ones = name[:-5] in ("conv2", "conv4", "conv5", "fc6", "fc7")
                assert (weights[name] == (1 if ones else 0)).all(), name


def ratios(net, n: int, images, labels, results, expected) -> dict[str, float]:
    """Errors over what rounding explains (see ``network_oracle.rounding``): of all values together, and the largest."""
    import network_oracle as oracle

    logits, loss, gradients = results
    limits = oracle.rounding(list(placed_layers(net.spec)), n, net.precision)
    found = {
        "logits": oracle.relative_error(logits, expected.logits) / limits["logits"],
        "logits, largest": largest(logits, expected.logits) / (2 * limits["logits"]),
        "loss": abs(loss - expected.loss) / (limits["logits"] * abs(expected.logits).max()),
        "choices at kinks": expected.disputed / (2 * limits["logits"]),
    }
    for name, gradient in gradients.items():
        right = expected.gradients[name]
        found[f"gradient {name}"] = oracle.relative_error(gradient, right) / limits[name]
        found[f"gradient {name}, largest"] = largest(gradient, right) / (2 * limits[name])
    return found


def largest(actual, expected) -> float:
    return float(abs(actual - expected).max() / abs(expected).max())


def activations(net, images) -> dict:
    """Of every layer in training mode: from the same network with its layers apart, whose forward pass has the same
    bits."""
    changes = {"devices": ",".join(net.devices), "batch_size": net.batch_size, "precision": net.precision}
    with convnet.Network(net.spec, seed=net.seed, fused=False, **changes) as apart:
        apart.load_weights(net.weights())
        apart.forward(images, train=True)
        return {layer.name: apart.activation(layer.name) for layer in net.spec.layers}


def compare(net, n: int, within, dtype: str = "float64") -> dict[str, float]:
    """One batch in training mode through the network and the oracle; the ratios, by what they are of."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import network_oracle as oracle

    net.load_weights(strong_weights(net))
    images, labels = batch(net, n)
    results = run(net, images, labels)
    assert list(results[2]) == list(net.weights())
    outputs = activations(net, images)
    masks = oracle.dropout_masks(net.spec, n, net.seed, step=0)
    dtype = getattr(torch, dtype)
    expected = oracle.run(net.spec, net.weights(), images, labels, outputs, masks=masks, dtype=dtype)
    found = ratios(net, n, images, labels, results, expected)
    for name, ratio in found.items():
        kind = "gradient" + ", largest" * name.endswith("largest") if name.startswith("gradient") else name
        within(f"{net.spec.name} {kind}" + f" {net.precision}" * (net.precision != "fp32"), ratio)
    return found


@pytest.mark.slow
def test_alexnet_against_pytorch(within):
    """The network of the paper, full size, dropout on: logits, loss and all 16 gradients."""
    with convnet.Network("alexnet", devices="cpu", batch_size=3, seed=5) as net:
        compare(net, 3, within)


@pytest.mark.slow
def test_alexnet_in_bfloat16_against_pytorch(within):
    """Full size on the kernels for Hopper, in blocks of 64 images: logits and every layer against float64."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    import network_oracle as oracle

    with convnet.Network("alexnet", devices="emu", batch_size=64, precision="bf16", seed=5, fused=False) as net:
        net.load_weights(strong_weights(net))
        images, labels = batch(net, 4)
        logits = net.forward(images)
        outputs = {layer.name: net.activation(layer.name) for layer in net.spec.layers}
        expected = oracle.run(net.spec, net.weights(), images, labels, outputs)
        limit = oracle.rounding(list(placed_layers(net.spec)), 4, "bf16")["logits"]
        error = oracle.relative_error(logits, expected.logits)
        within("alexnet inference bf16", error / limit)
        assert error > 0.1 * limit  # as large as bfloat16 makes them: no float32 underneath
        for name, value in expected.activations.items():
            assert oracle.relative_error(outputs[name], value) <= limit, name


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiny_against_pytorch(device, within, dropout, dtype):
    """A batch smaller than the network's, so that empty lanes and rows take part."""
    with convnet.Network("alexnet-tiny", devices=device, batch_size=6, dropout=dropout, seed=7) as net:
        compare(net, 5, within, dtype)


def test_tanh_against_pytorch(device, within):
    """The whole network with tanh in place of ReLU."""
    spec = network("alexnet-tiny", activation="tanh")
    assert {layer.activation for layer in spec.layers if isinstance(layer, (Conv, Linear))} == {"tanh", None}
    with convnet.Network(spec, devices=device, batch_size=6, seed=7) as net:
        compare(net, 5, within)


def test_tanh_on_tensor_cores_against_pytorch(tensor_cores, within):
    spec = network("alexnet-tiny", activation="tanh")
    options = {"devices": tensor_cores.device, "precision": tensor_cores.precision}
    with convnet.Network(spec, batch_size=6, seed=7, **options) as net:
        compare(net, 5, within)


@pytest.mark.parametrize(("batch_size", "n"), [(6, 5), (64, 61)])
def test_tiny_on_tensor_cores_against_pytorch(tensor_cores, within, batch_size, n):
    """Against float64 without any rounding: the errors are those of rounded operands, not larger, and not smaller.

    Blocks of 64 images have kernels of their own on Hopper.
    """
    options = {"devices": tensor_cores.device, "precision": tensor_cores.precision}
    with convnet.Network("alexnet-tiny", batch_size=batch_size, seed=7, **options) as net:
        found = compare(net, n, within)
        errors = {name: ratio for name, ratio in found.items() if name.startswith(("logits", "gradient"))}
        assert min(ratio for name, ratio in errors.items() if "largest" not in name) > 0.1, errors


def test_inference_scales_dropped_layers(device, within):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    import network_oracle as oracle

    with convnet.Network("alexnet-tiny", devices=device, batch_size=4, fused=False) as net:
        net.load_weights(strong_weights(net))
        images, labels = batch(net, 4)
        logits = net.forward(images)
        outputs = {layer.name: net.activation(layer.name) for layer in net.spec.layers}
        expected = oracle.run(net.spec, net.weights(), images, labels, outputs)
        limit = oracle.rounding(list(placed_layers(net.spec)), 4)["logits"]
        within("alexnet-tiny inference", oracle.relative_error(logits, expected.logits) / limit)
        for name, value in expected.activations.items():
            assert outputs[name].shape == value.shape
            assert oracle.relative_error(outputs[name], value) <= limit, name
        np.testing.assert_array_equal(outputs["fc8"], logits)


def test_wrong_networks_fail():
    """Small mistakes of a network that the comparison with PyTorch must notice."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    import network_oracle as oracle

    def changed(spec, kind, **values):
        return replace(spec, layers=tuple(replace(x, **values) if isinstance(x, kind) else x for x in spec.layers))

    with convnet.Network("alexnet-tiny", devices="cpu", batch_size=5, seed=7) as net:
        weights = strong_weights(net)
        net.load_weights(weights)
        images, labels = batch(net, 5)
        results = run(net, images, labels)
        outputs = activations(net, images)
        masks = oracle.dropout_masks(net.spec, 5, net.seed, step=0)
        swapped = weights["conv4.weight"].copy()
        swapped[:48] = weights["conv4.weight"][48:]

        def worst(spec=net.spec, weights=weights, labels=labels, masks=masks, **more):
            expected = oracle.run(spec, weights, images, labels, outputs, masks=masks, **more)
            return max(ratios(net, 5, images, labels, results, expected).values())

        assert worst() <= 1
        assert worst(lrn_towers=1) > 1
        assert worst(spec=changed(net.spec, Lrn, alpha=1e-4 / 5)) > 1
        assert worst(spec=changed(net.spec, Lrn, size=4)) > 1
        assert worst(weights={**weights, "conv4.weight": swapped}) > 1
        assert worst(weights={**weights, "conv2.bias": weights["conv2.bias"] * 0}) > 1
        assert worst(labels=(labels + 1) % 10) > 1
        assert worst(masks=oracle.dropout_masks(net.spec, 5, net.seed, step=1)) > 1
        assert worst(masks=oracle.dropout_masks(net.spec, 5, net.seed + 1, step=0)) > 1
        assert worst(masks=None) > 1
