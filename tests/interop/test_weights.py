"""Weights of torchvision and Caffe under our names: the same function as theirs; what is wrong with a file is told."""

from __future__ import annotations

import json
import re
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import convnet
from convnet import interop
from convnet.interop.weights import recognised
from convnet.network.networks import network
from convnet.network.spec import parameter_shapes

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from published import AlexNet, peer  # noqa: E402

CLASSES = 7


@pytest.fixture(scope="module")
def theirs():
    """A state dict of torchvision's AlexNet, with weights that keep the size of what they multiply."""
    torch.manual_seed(0)
    model = AlexNet(CLASSES).eval()
    for values in model.parameters():
        torch.nn.init.normal_(values, std=(2 / values[0].numel()) ** 0.5 if values.ndim > 1 else 0.1)
    return model


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(theirs.state_dict(), path)
    return path


def caffes(seed=0):
    """Arrays as Caffe has them, for pictures in blue, green and red, by layer: weight and bias."""
    random, found = np.random.default_rng(seed), {}
    for name, shape in parameter_shapes(network("bvlc_alexnet", num_classes=CLASSES)).items():
        std = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
        found[name] = (std * random.standard_normal(shape)).astype(np.float32)
    return found


@pytest.mark.slow
def test_a_state_dict_of_torchvision_computes_what_it_did(theirs, file):
    images = np.random.default_rng(1).standard_normal((2, 3, 224, 224), dtype=np.float32)
    with torch.no_grad():
        expected = theirs.double()(torch.tensor(images, dtype=torch.float64)).numpy()
        theirs.float()
    with convnet.Network("alexnet-torchvision", "cpu", 2, num_classes=CLASSES) as net:
        net.load_weights(interop.torchvision_weights(file))
        logits = net.forward(images)
        interop.load(net, file)
        np.testing.assert_array_equal(net.forward(images), logits)
    assert np.linalg.norm(logits - expected) < 3e-6 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bvlc_alexnet", "caffenet"])
def test_arrays_of_caffe_compute_what_they_did_of_blue_green_and_red(name, tmp_path):
    arrays = caffes()
    np.savez(
        tmp_path / "x.npz", **{key.replace(".weight", "_w").replace(".bias", "_b"): v for key, v in arrays.items()}
    )
    images = np.random.default_rng(1).standard_normal((2, 3, 227, 227), dtype=np.float32)
    x = torch.tensor(images[:, ::-1].copy(), dtype=torch.float64)
    with torch.no_grad():
        for layer, module in peer(name, CLASSES):
            for kind, value in module.named_parameters():
                value.copy_(torch.tensor(arrays[f"{layer}.{kind}"]))
            x = module.eval().double()(x)
    with convnet.Network(name, "cpu", 2, num_classes=CLASSES) as net:
        net.load_weights(interop.caffe_weights(tmp_path / "x.npz"))
        logits = net.forward(images)
        turned = net.forward(images[:, ::-1].copy())
    assert np.linalg.norm(logits - x.numpy()) < 3e-6 * np.linalg.norm(x.numpy())
    assert np.linalg.norm(turned - x.numpy()) > 1e-2 * np.linalg.norm(x.numpy())


@pytest.mark.parametrize("names", ["{}_w {}_b", "{}_w_0 {}_b_0", "{}_0 {}_1", "{}.weight {}.bias", "{}.0 {}.1"])
@pytest.mark.parametrize("old", [False, True])
def test_names_of_caffes_arrays(names, old, tmp_path):
    """``old``: with four extents, as blobs had in the beginning."""
    arrays, written = caffes(), {}
    for key, values in arrays.items():
        layer, kind = key.split(".")
        shape = (1,) * (4 - values.ndim) + values.shape if old else values.shape
        written[names.split()[kind == "bias"].format(layer)] = values.reshape(shape)
    np.savez(tmp_path / "x.npz", **written)
    found = interop.caffe_weights(tmp_path / "x.npz")
    assert list(found) == list(arrays)
    for key, values in found.items():
        expected = arrays[key][:, ::-1] if key == "conv1.weight" else arrays[key]
        np.testing.assert_array_equal(values, expected, err_msg=key)


def test_whose_weights_they_are(file, theirs, tmp_path):
    found = recognised(file)
    assert (found.networks, found.classes, found.network(None)) == (
        ["alexnet-torchvision"],
        CLASSES,
        "alexnet-torchvision",
    )
    assert found.network("alexnet") == "alexnet-torchvision"  # what is trained may be another network
    assert found.colours.std is not None
    wrapped = {f"module._orig_mod.{name}": values for name, values in theirs.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 1}, tmp_path / "x.pth")
    again = recognised(tmp_path / "x.pth")
    for name, values in found.weights.items():
        np.testing.assert_array_equal(values, again.weights[name])
    np.savez(
        tmp_path / "x.npz",
        **{key.replace(".", "_").replace("weight", "w").replace("bias", "b"): v for key, v in caffes().items()},
    )
    found = recognised(tmp_path / "x.npz")
    assert found.networks == ["bvlc_alexnet", "caffenet"]
    assert found.network("caffenet") == "caffenet"
    with pytest.raises(ValueError, match=r"fit bvlc_alexnet and caffenet; say with --model which network they are of"):
        found.network(None)


def test_weights_of_ours(tmp_path):
    with convnet.Network("alexnet-tiny", "cpu", 1, seed=3) as net, convnet.Network("alexnet-tiny", "cpu", 1) as other:
        safetensors.numpy.save_file(net.weights(), tmp_path / "x.safetensors")
        interop.load(other, tmp_path / "x.safetensors")
        for name, values in net.weights().items():
            np.testing.assert_array_equal(other.weights()[name], values)
        found = recognised(tmp_path / "x.safetensors")
        assert (found.networks, found.colours) == (["alexnet-tiny"], None)
    with convnet.Network("alexnet-tiny", "cpu", 1, width=0.25) as narrow:
        with pytest.raises(ValueError, match=r"conv1\.weight must be float32 of shape \(16, 3, 7, 7\)"):
            interop.load(narrow, tmp_path / "x.safetensors")
        np.savez(tmp_path / "x.npz", **narrow.weights())
    found = recognised(tmp_path / "x.npz")
    assert found.networks == []
    assert found.network("alexnet-tiny") == "alexnet-tiny"
    with pytest.raises(
        ValueError, match="have our names, and the shapes of none of our networks at full width; say with"
    ):
        found.network(None)


def without(state, name):
    return {key: values for key, values in state.items() if key != name}


CHANGES = {
    "missing": (lambda s: without(s, "features.3.bias"), "features.3.bias of torchvision's AlexNet is missing"),
    "a layer missing": (
        lambda s: without(without(s, "classifier.6.bias"), "classifier.6.weight"),
        "classifier.6.weight of torchvision's AlexNet is missing (and 1 more)",
    ),
    "extra": (
        lambda s: {**s, "features.12.weight": torch.ones(2), "features.13.weight": torch.ones(2)},
        "features.12.weight is no tensor of torchvision's AlexNet (and 1 more)",
    ),
    "another shape": (
        lambda s: {**s, "features.0.weight": torch.ones(96, 3, 11, 11)},
        "features.0.weight has shape (96, 3, 11, 11); torchvision's AlexNet has (64, 3, 11, 11)",
    ),
    "a bias of another length": (
        lambda s: {**s, "classifier.6.bias": torch.ones(8)},
        "classifier.6.bias has shape (8,); torchvision's AlexNet has (7,)",
    ),
    "a last layer without an extent": (
        lambda s: {**s, "classifier.6.weight": torch.tensor(1.0)},
        "classifier.6.weight has shape (); torchvision's AlexNet has (1, 4096)",
    ),
    "not finite": (
        lambda s: {**s, "classifier.6.bias": torch.tensor([0.0] * 6 + [float("nan")])},
        "classifier.6.bias has values that are not finite in float32",
    ),
    "too large": (
        lambda s: {**s, "classifier.6.bias": torch.tensor([0.0] * 6 + [1e300], dtype=torch.float64)},
        "classifier.6.bias has values that are not finite in float32",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_named(name, theirs, tmp_path):
    change, message = CHANGES[name]
    torch.save(change(theirs.state_dict()), tmp_path / "x.pth")
    with pytest.raises(interop.WeightsError, match=re.escape(message)) as found:
        interop.torchvision_weights(tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(found.value)
    assert "\n" not in str(found.value)


def test_what_our_own_files_say_of_themselves_must_be_true(tmp_path):
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(network("alexnet-tiny", num_classes=3, width=0.25, crop=48))
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    right = {
        "network": {"model": "alexnet-tiny", "crop": 48, "width": 0.25}, "classes": ["a", "b", "c"],
        "mean": np.full((3, 48, 48), 9, np.float32), "scale": np.full((3, 1, 1), 0.5, np.float32),
    }  # fmt: skip

    def read(**changes):
        told = {**right, **changes}
        arrays = {**weights, "input.mean": told["mean"], "input.scale": told["scale"]}
        said = {name: told[name] for name in ("network", "classes")}
        texts = {name: text if isinstance(text, str) else json.dumps(text) for name, text in said.items()}
        safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", texts)
        return recognised(tmp_path / "x.safetensors").said

    said = read()
    assert (said.model, said.options, said.classes) == ("alexnet-tiny", {"crop": 48, "width": 0.25}, ["a", "b", "c"])
    assert said.scale == [0.5] * 3
    np.testing.assert_array_equal(said.mean, right["mean"])
    options = right["network"]
    for changes in (
        {"network": ""}, {"network": "[" * 100_000}, {"network": []}, {"network": {}}, {"network": {"model": 3}},
        {"network": {**options, "model": "alexnet"}}, {"network": {**options, "model": ["alexnet-tiny"]}},
        {"network": {**options, "width": 1e300}}, {"network": {**options, "width": "1"}},
        {"network": {**options, "crop": 64}}, {"network": {**options, "crop": 10**30}},
        {"network": {**options, "__class__": 1}}, {"network": {**options, "num_classes": 3}},
        {"classes": ["a"]}, {"classes": "abc"}, {"classes": [1, 2, 3]}, {"classes": {"a": 1, "b": 2, "c": 3}},
        {"mean": np.full((3, 1, 1), 9, np.float32)}, {"mean": np.full((3, 48, 48), np.nan, np.float32)},
        {"scale": np.zeros((3, 1, 1), np.float32)}, {"scale": np.full((3, 1, 1), np.inf, np.float32)},
        {"scale": np.full(3, 0.5, np.float32)},
    ):  # fmt: skip
        with pytest.raises(interop.WeightsError, match="are not those of the network") as found:
            read(**changes)
        assert "\n" not in str(found.value)
        assert len(str(found.value)) < 400


def test_names_that_nobody_has(tmp_path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "x.pth")
    with pytest.raises(interop.WeightsError, match=r"neither the names of .*, but weight, bias"):
        recognised(tmp_path / "x.pth")
    with pytest.raises(
        interop.WeightsError, match=r"conv1\.weight of Caffe's AlexNet and CaffeNet is missing \(and 15 more\)"
    ):
        interop.caffe_weights(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(interop.WeightsError, match="but none"):
        recognised(tmp_path / "x.npz")
