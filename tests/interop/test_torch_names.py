"""Weights under PyTorch's names: the Sequential of the card's code computes what our network does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from strong import strong_weights

import convnet
from convnet.interop import torchvision_weights
from convnet.interop.arrays import safetensors_file
from convnet.interop.torch_names import torch_code, torch_weights
from convnet.network.networks import NETWORKS, network
from convnet.network.spec import AvgPool, Dropout, Local, Lrn, SpatialNorm, parameter_shapes

torch = pytest.importorskip("torch", reason="torch is not installed")

ABLATIONS = {
    "as it is": {},
    "no lrn": {"lrn": False},
    "no overlap": {"overlap": False},
    "one tower": {"towers": 1},
    "no joins": {"joins": False},
    "dropout": {"dropout": 0.3},
    "tanh": {"activation": "tanh"},
}


WITHOUT = (AvgPool, Local, SpatialNorm)  # layers that torch_code has no module for
OTHERS = [name for name in NETWORKS if any(isinstance(layer, WITHOUT) for layer in network(name).layers)]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(OTHERS)))
def test_the_code_and_the_weights_make_the_same_network(name, ablation):
    crop = 64 if name == "alexnet-tiny" else 101
    with convnet.Network(
        name, devices="cpu", batch_size=2, width=0.1, crop=crop, num_classes=7, **ABLATIONS[ablation]
    ) as net:
        net.load_weights(strong_weights(net))
        scope: dict = {}
        exec(torch_code(net.spec), scope)
        theirs = scope["network"].eval()
        theirs.load_state_dict({key: torch.tensor(w) for key, w in torch_weights(net.spec, net.weights()).items()})
        images = np.random.default_rng(0).standard_normal((2, 3, crop, crop), dtype=np.float32)
        with torch.no_grad():
            expected = theirs(torch.tensor(images)).numpy()
        assert np.abs(net.forward(images) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", OTHERS)
def test_networks_without_such_code_are_refused(name):
    spec = network(name)
    first = next(layer.name for layer in spec.layers if isinstance(layer, WITHOUT))
    with pytest.raises(ValueError, match=f"--names torch: {first} has no module of PyTorch's; take --names convnet"):
        torch_code(spec)


def test_torchvision_s_alexnet_has_its_own_names():
    spec = network("alexnet-torchvision", num_classes=5)
    weights = {name: np.full(shape, 1, np.float32) for name, shape in parameter_shapes(spec).items()}
    found = {name: values.shape for name, values in torch_weights(spec, weights).items()}
    assert found["features.0.weight"] == (64, 3, 11, 11)
    assert found["features.3.weight"] == (192, 64, 5, 5)
    assert found["features.6.bias"] == (384,)
    assert found["features.8.weight"] == (256, 384, 3, 3)
    assert found["features.10.weight"] == (256, 256, 3, 3)
    assert found["classifier.1.weight"] == (4096, 9216)
    assert found["classifier.4.weight"] == (4096, 4096)
    assert found["classifier.6.bias"] == (5,)
    assert len(found) == 16
    assert "torchvision.models.alexnet(num_classes=5)" in torch_code(spec)


@pytest.mark.slow
def test_torchvision_s_names_come_back_in(tmp_path):
    spec = network("alexnet-torchvision", num_classes=5)
    shapes = parameter_shapes(spec)
    weights = {name: np.full(shape, k, np.float32) for k, (name, shape) in enumerate(shapes.items())}
    pixels = {"input.mean": np.ones((3, 224, 224), np.float32), "input.scale": np.ones((3, 1, 1), np.float32)}
    (tmp_path / "x.safetensors").write_bytes(
        safetensors_file({**torch_weights(spec, weights), **pixels}, list("abcde"))
    )
    found = torchvision_weights(tmp_path / "x.safetensors")
    assert {name: (values.shape, values.flat[0]) for name, values in found.items()} == {
        name: (values.shape, values.flat[0]) for name, values in weights.items()
    }


def test_dropout_that_is_not_scaled_leaves_its_factor_in_the_weights_behind_it():
    spec = network("alexnet-tiny", dropout=0.25)
    weights = {name: np.full(shape, 2, np.float32) for name, shape in parameter_shapes(spec).items()}
    values = {name: float(each.flat[0]) for name, each in torch_weights(spec, weights).items() if "weight" in name}
    assert list(values.values()) == [2.0] * 6 + [1.5] * 2  # fc7 and fc8


def test_a_factor_that_cannot_pass_a_normalisation_is_refused():
    spec = network("alexnet-tiny")
    first = next(index for index, layer in enumerate(spec.layers) if isinstance(layer, Lrn))
    moved = replace(spec, layers=(*spec.layers[:first], Dropout("thin"), *spec.layers[first:]))
    weights = {name: np.ones(shape, np.float32) for name, shape in parameter_shapes(moved).items()}
    with pytest.raises(ValueError, match=r"dropout in front of norm1 is not scaled in training.*--names convnet"):
        torch_weights(moved, weights)
    scaled = replace(spec, layers=(*spec.layers[:first], Dropout("thin", scaled=True), *spec.layers[first:]))
    assert len(torch_weights(scaled, weights)) == 16
