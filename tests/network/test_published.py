"""The networks whose weights others have published, against the same networks written in PyTorch: every activation,
every gradient, dropout in training; and what they cannot do."""

from __future__ import annotations

import numpy as np
import pytest
import test_model

import convnet
from convnet.network.footprint import Use
from convnet.network.networks import network
from convnet.network.spec import parameter_count, placed_layers

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import network_oracle as oracle  # noqa: E402  (which needs it too)
from published import PUBLISHED, peer  # noqa: E402
from strong import strong_weights  # noqa: E402

nn = torch.nn
LIMIT = 1e-6  # of a single layer, root mean square of the error over that of the values
# what is small enough for an emulator, and has sizes that rounding up and down make different
SMALL = {"alexnet-torchvision": {"crop": 76}, "bvlc_alexnet": {"crop": 72}, "caffenet": {"crop": 72}}


def run(layers, images, ours):
    """In test mode, in float64: activations by our names, behind their ReLU; and the same with every layer reading what
    ``ours``, activations by name, says of the layer in front."""
    x = front = torch.tensor(images, dtype=torch.float64)
    whole, alone, last = {}, {}, ""
    for name, layer in layers:
        layer.eval().double()
        x = layer(x)
        if name in ("relu", "flatten", "average"):
            alone[last] = layer(alone[last])
        else:
            front = torch.tensor(ours[last], dtype=torch.float64) if last else front
            last, alone[name] = name, layer(front.flatten(1) if isinstance(layer, nn.Linear) else front)
        whole[last] = x
    return [{name: value.numpy() for name, value in part.items()} for part in (whole, alone)]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_layer_is_pytorchs(name, within):
    """Full size, random weights: activations at test with dropout in the network."""
    layers = peer(name, 1000)
    with convnet.Network(name, "cpu", batch_size=2, fused=False) as net:
        weights = strong_weights(net)
        images, _ = test_model.batch(net, 2)
        net.load_weights(weights)
        logits = net.forward(images)
        activations = {layer.name: net.activation(layer.name) for layer in net.spec.layers}
    np.testing.assert_array_equal(logits, activations["fc8"])
    for layer, module in layers:
        for kind, value in module.named_parameters():
            value.data = torch.tensor(weights[f"{layer}.{kind}"])
    with torch.no_grad():
        whole, alone = run(layers, images, activations)
    assert whole.keys() == alone.keys() == activations.keys()
    for layer, value in activations.items():
        within(f"{name}, a layer", oracle.relative_error(value, alone[layer].reshape(value.shape)) / LIMIT)
        within(f"{name}, all layers", oracle.relative_error(value, whole[layer].reshape(value.shape)) / (3 * LIMIT))


@pytest.mark.slow
def test_every_gradient_is_pytorchs(within):
    """Full size, without dropout: of the network that differs most from ours; of all of them narrow ones, below."""
    with convnet.Network("alexnet-torchvision", "cpu", batch_size=2, dropout=0.0) as net:
        test_model.compare(net, 2, within)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.3])
def test_training_is_pytorchs_on_every_device(name, dropout, device, within):
    """Narrow, dropout on: what is kept is divided by what is kept on average, on the way forward and back."""
    options = {"width": 0.125, "num_classes": 7, "dropout": dropout, **SMALL[name]}
    with convnet.Network(name, device, batch_size=6, seed=7, **options) as net:
        test_model.compare(net, 5, within)


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_is_pytorchs_on_tensor_cores(name, tensor_cores, within):
    options = {"devices": tensor_cores.device, "precision": tensor_cores.precision}
    with convnet.Network(name, batch_size=6, seed=7, width=0.125, num_classes=7, **options, **SMALL[name]) as net:
        test_model.compare(net, 5, within)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_fused_step_is_that_of_its_parts(name, device):
    """Weights after a step of ``train_step``, and of its parts one after the other, bit for bit."""
    after = []
    for fused in (True, False):
        with convnet.Network(name, device, 4, width=0.125, num_classes=7, seed=3, fused=fused, **SMALL[name]) as net:
            size = net.spec.image_size
            images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
            labels, windows, noise = np.arange(4), np.zeros((4, 3), np.int32), np.zeros((4, 3), np.float32)
            net.set_input(np.full((3, net.spec.crop, net.spec.crop), 128, np.float32), 1 / 64)
            if fused:
                net.train_step(images, labels, windows, noise, lr=0.01).get()
            else:
                net.train_batch(images, labels, windows, noise)
                net.step(lr=0.01)
            after.append(net.weights())
    for parameter, value in after[0].items():
        np.testing.assert_array_equal(value, after[1][parameter], err_msg=parameter)


def test_they_are_what_their_authors_have_published():
    """Numbers of parameters, and sizes of images, crops and maps."""
    sizes = {name: [p.P for p in placed_layers(network(name)) if p.P > 1] for name in PUBLISHED}
    assert sizes["alexnet-torchvision"] == [55, 27, 27, 13, 13, 13, 13, 6, 6]
    assert sizes["bvlc_alexnet"] == [55, 55, 27, 27, 27, 13, 13, 13, 13, 6]
    assert sizes["caffenet"] == [55, 27, 27, 27, 13, 13, 13, 13, 13, 6]
    assert [parameter_count(network(name)) for name in PUBLISHED] == [61_100_840, 60_965_224, 60_965_224]
    assert [(network(name).crop, network(name).image_size) for name in PUBLISHED] == [
        (224, 256), (227, 256), (227, 256),
    ]  # fmt: skip


def test_sizes_are_rounded_as_their_authors_do():
    """At other crops the two ways of rounding differ: windows of 3 in 18 rows are 8 rounded down, and 9 rounded up."""
    rounded = {name: [p.P for p in placed_layers(network(name, crop=80)) if p.P > 1] for name in PUBLISHED}
    assert rounded["alexnet-torchvision"][:4] == [19, 9, 9, 4]
    assert rounded["caffenet"][:5] == [18, 9, 9, 9, 4]
    assert network("alexnet-torchvision", crop=76).layers[1].ceil_mode is False
    assert [p.P for p in placed_layers(network("alexnet-torchvision", crop=76))][:2] == [18, 8]


@pytest.mark.parametrize("name", ["bvlc_alexnet", "caffenet"])
def test_normalisation_across_towers_needs_them_on_one_device(name):
    message = f'"{name}" normalises across its towers: its towers must lie on one device; got emu:0, emu:1: name'
    with pytest.raises(ValueError, match=message):
        convnet.Network(name, "emu:0,emu:1", 2, width=0.125, num_classes=7, **SMALL[name])
    assert network(name).parts == 1
    assert network("alexnet").parts == 2
    assert network(name, lrn=False).parts == 2
    with convnet.Network(name, "emu:0,emu:1", 2, width=0.125, num_classes=7, lrn=False, **SMALL[name]) as net:
        assert len(net.devices) == 2


def test_memory_is_told_of_the_devices_that_are_taken(monkeypatch):
    """With two GPUs "auto" takes one for a network that cannot be cut."""
    from convnet.devices import opening

    asked = []
    monkeypatch.setattr(
        "convnet.network.footprint.open_devices", lambda names, most: asked.append(most) or opening.open_devices("cpu")
    )
    for name in ("bvlc_alexnet", "alexnet", "alexnet-torchvision"):
        Use(network(name, width=0.125, num_classes=7), "auto", "fp32", 256).footprints(2)
    assert asked == [1, 2, 1]
