"""Checkpoints of the 2012 program in the networks that their definition files become here."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_2012 import of_definition
from data_files import python2_pickle
from definition_files import TWISTED, write
from runs import call

import convnet.network.defined
from convnet import Network
from convnet.cli.export import main as export
from convnet.definitions.files import read
from convnet.interop import WeightsError, read_checkpoint, starts_2012
from convnet.network.defined import defined

SIDE = 8


def pair(tmp_path, layers: str = TWISTED, side: int = SIDE):
    """A definition file, read, and the path of a checkpoint of it."""
    definition = read(write(tmp_path, layers)[0])
    path = tmp_path / "3.1"
    path.write_bytes(python2_pickle(of_definition(definition, side)))
    return definition, path


def logits(found, path) -> np.ndarray:
    images = np.random.default_rng(1).standard_normal((3, 3, SIDE, SIDE), dtype=np.float32)
    with Network(found.spec, "cpu", 3) as net:
        net.load_weights(starts_2012.weights_of_checkpoint(path, found))
        return net.forward(images)


def reading(a: str, b: str, first_channels: int = 8) -> str:
    """The file, with other inputs of its second convolutions."""
    text = TWISTED.replace("inputs=rnorm1a,rnorm1b\nchannels=8,", f"inputs={a}\nchannels={first_channels},")
    text = text.replace("inputs=rnorm1b,rnorm1a\nchannels=8,", f"inputs={b}\nchannels={first_channels},")
    return text.replace("[conv2a]", "[pair]\ntype=concat\ninputs=rnorm1b,rnorm1a\n\n[conv2a]") if "pair" in a else text


TWISTS = {
    "each the other one too": TWISTED,
    "those of two layers": reading("rnorm1a,conv1a", "rnorm1b,conv1b"),
    "both in one, and its own": reading("pair,conv1a", "pair,conv1b", 16),
    "crossed over": reading("rnorm1b,conv1b", "rnorm1a,conv1a"),
}


@pytest.mark.parametrize("text", TWISTS.values(), ids=list(TWISTS))
def test_columns_compute_what_the_layers_of_the_file_do_one_by_one(tmp_path, monkeypatch, text):
    definition, path = pair(tmp_path, text)
    layers = read_checkpoint(path).layers
    together = starts_2012.connected(defined(definition, SIDE), layers)
    monkeypatch.setattr(convnet.network.defined, "in_columns", lambda *_: None)
    apart = starts_2012.connected(defined(definition, SIDE), layers)
    assert (together.spec.towers, apart.spec.towers) == (2, 1)
    assert [layer.name for layer in together.spec.layers][:3] == ["conv1", "rnorm1", "conv2"]
    assert {"conv1a", "conv1b", "both"} <= {layer.name for layer in apart.spec.layers}
    ours, theirs = logits(together, path), logits(apart, path)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(theirs - theirs[0]).max() > 0.1 * np.abs(theirs).max()  # they depend on the images


def behind_each_other(kind: str, filters: int, groups: int) -> str:
    """The file, with second layers that each read two layers of its column as one."""
    before, behind = TWISTED.index("[conv2a]"), TWISTED.index("[conv3a]")
    own = "".join(
        f"[two{c}]\ntype=concat\ninputs=rnorm1{c},conv1{c}\n\n[conv2{c}]\ntype={kind}\ninputs=two{c}\nchannels=16\n"
        f"filters={filters}\ngroups={groups}\npadding=1\nstride=2\nfilterSize=3\ninitW=0.1\npartialSum=1\n\n"
        for c in "ab"
    )
    return TWISTED[:before] + own + TWISTED[behind:]


APART = {
    "one column twice": reading("rnorm1a,rnorm1a", "rnorm1b,rnorm1b"),
    "groups of two layers as one": behind_each_other("conv", 4, 2),
    "local, of two layers as one": behind_each_other("local", 8, 1),
}


@pytest.mark.parametrize("text", APART.values(), ids=list(APART))
def test_columns_of_what_no_layer_of_towers_is_stay_apart(tmp_path, text):
    definition, path = pair(tmp_path, text)
    found = starts_2012.connected(defined(definition, SIDE), read_checkpoint(path).layers)
    assert found.spec.towers == 1
    assert np.isfinite(logits(found, path)).all()


def test_every_piece_lies_where_its_column_does(tmp_path):
    definition, path = pair(tmp_path)
    layers = read_checkpoint(path).layers
    found = starts_2012.connected(defined(definition, SIDE), layers)
    weights = starts_2012.all_weights(found, layers)
    for k, column in enumerate("ab"):
        half = slice(8 * k, 8 * k + 8)
        np.testing.assert_array_equal(weights["conv1.weight"][half], layers[f"conv1{column}"]["weights"][0])
        np.testing.assert_array_equal(weights["conv3.bias"][half], layers[f"conv3{column}"]["biases"])
        np.testing.assert_array_equal(weights["local4.weight"][:, :, half], layers[f"local4{column}"]["weights"][0])
        conv2 = layers[f"conv2{column}"]["weights"]
        own, other = weights["conv2.weight"][half, half], weights["conv2.weight"][half, 8 - 8 * k : 16 - 8 * k]
        np.testing.assert_array_equal(own, conv2[0])
        np.testing.assert_array_equal(other, conv2[1])
        fc5 = layers[f"fc5{column}"]["weights"][0]  # reads b, then a
        np.testing.assert_array_equal(weights["fc5.weight"][6 * k : 6 * k + 6], np.hstack(np.hsplit(fc5, 2)[::-1]))
        drawn = layers[f"conv3{column}"]["filterConns"][0]
        conv3 = next(layer for layer in found.spec.layers if layer.name == "conv3")
        assert conv3.connections[16 * k : 16 * k + 16] == tuple(8 * k + c for c in drawn)
    np.testing.assert_array_equal(weights["fc6.weight"], np.hstack(layers["fc6"]["weights"][::-1]))


def test_velocities_lie_as_weights_do(tmp_path):
    definition, path = pair(tmp_path)
    layers = read_checkpoint(path).layers
    found = starts_2012.connected(defined(definition, SIDE), layers)
    moved = {
        name: {**layer, "weights": layer["weightsInc"], "biases": layer["biasesInc"]} for name, layer in layers.items()
    }
    velocities, wanted = starts_2012.all_velocities(found, layers), starts_2012.all_weights(found, moved)
    assert velocities.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(velocities[name], values)
        assert values.any()
    with Network(found.spec, "cpu", 2) as net:
        net.load_velocity(velocities)


def starting(text: str, **keys: str) -> str:
    """The definition file with a line more in some sections."""
    for name, line in keys.items():
        text = text.replace(f"[{name}]\n", f"[{name}]\n{line}\n")
    return text


def test_what_layers_begin_as(tmp_path):
    _, path = pair(tmp_path)
    layers = read_checkpoint(path).layers
    text = starting(
        TWISTED, conv1a="initWFunc=initw.makew(conv1b)",
        conv1b="initWFunc=initw.makew(conv1a)\ninitBFunc=initw.makeb(conv1a)",
        conv3a="initCFunc=initw.makec(conv3b)", fc6="initWFunc=initw.makew(fc6)\ninitBFunc=initw.makeb(fc6)",
    )  # fmt: skip
    begun = defined(read(write(tmp_path, starting(text, conv1a="initBFunc=initw.makeb(conv1b)"))[0]), SIDE)
    found = starts_2012.weights_of_checkpoint(path, begun)
    assert list(found) == ["conv1.weight", "conv1.bias", "fc6.weight", "fc6.bias"]
    np.testing.assert_array_equal(found["conv1.weight"][:8], layers["conv1b"]["weights"][0])
    np.testing.assert_array_equal(found["conv1.bias"][8:], layers["conv1a"]["biases"])
    changed = {layer.name: layer for layer in starts_2012.connected(begun, layers).spec.layers}["conv3"].connections
    before = {layer.name: layer for layer in begun.spec.layers}["conv3"].connections
    assert changed[:16] == tuple(layers["conv3b"]["filterConns"][0])
    assert changed[16:] == before[16:]  # of which nothing was said
    half = defined(read(write(tmp_path, text)[0]), SIDE)
    with pytest.raises(WeightsError, match=r"takes the bias of conv1b .* and the bias of conv1a not; .* conv1\.bias"):
        starts_2012.weights_of_checkpoint(path, half)


def drop(layers, name):
    return {other: layer for other, layer in layers.items() if other != name}


MISTAKES = {
    "missing": (lambda layers: drop(layers, "conv2b"), "has no layer conv2b, which .*cfg asks for; it has conv1a"),
    "extra": (lambda layers: {**layers, "conv9": layers["conv1a"]}, "has weights of conv9, which .*cfg does not"),
    "shape": (
        lambda layers: {**layers, "conv1a": layers["conv2a"]},
        "conv1a has 2 inputs, and 1 in",
    ),
    "other filters": (
        lambda layers: {**layers, "fc5a": {**layers["fc5a"], "weights": [layers["fc5a"]["weights"][0][:, :5]]}},
        r"weights for fc5a of .*: found 6 x 5 where 6 x 400 is needed; .*another size \(--crop\)",
    ),
    "other channels": (
        lambda layers: {**layers, "conv3b": {**layers["conv3b"], "filterConns": [layers["conv3a"]["filterConns"][0]]}},
        "conv3b: the weights of input 0 are for other channels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_checkpoints_of_other_networks_are_refused_in_one_sentence(tmp_path, mistake):
    definition, path = pair(tmp_path)
    layers = read_checkpoint(path).layers
    found = starts_2012.connected(defined(definition, SIDE), layers)
    change, text = MISTAKES[mistake]
    with pytest.raises(WeightsError, match=text):
        starts_2012.all_weights(found, change(dict(layers)))


def test_channels_that_were_never_drawn_are_refused(tmp_path):
    definition, path = pair(tmp_path)
    layers = dict(read_checkpoint(path).layers)
    for wrong in (None, [0, 1], [8] * 16):
        layers["conv3a"] = {**layers["conv3a"], "filterConns": [wrong]}
        with pytest.raises(WeightsError, match=r"conv3a has no channels drawn for input 0 .* 16 numbers below 8"):
            starts_2012.connected(defined(definition, SIDE), layers)


def test_export_by_our_names(tmp_path, capsys):
    definition, path = pair(tmp_path)
    target, layer_def = tmp_path / "x.safetensors", str(tmp_path / "layers.cfg")
    options = ["--layer-def", layer_def, "-o", str(target)]
    assert call(export, str(path), *options, "--crop", str(SIDE)) == 0
    assert "weights and biases of conv1, conv2, conv3, local4, fc5, fc6\n" in capsys.readouterr().out
    arrays = safetensors.numpy.load_file(target)
    layers = read_checkpoint(path).layers
    found = starts_2012.connected(defined(definition, SIDE), layers)
    conv3 = next(layer for layer in found.spec.layers if layer.name == "conv3")
    assert tuple(arrays.pop("conv3.connections")) == conv3.connections
    wanted = starts_2012.all_weights(found, layers)
    assert arrays.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(arrays[name], values)
    target.unlink()
    assert call(export, str(path), *options) == 4  # 32 pixels
    error = capsys.readouterr().err
    assert error.startswith("convnet-export: error: the checkpoint's bias for conv3a of ")
    assert "found 8 x 5 x 5 where 8 x 17 x 17 is needed" in error
    assert call(export, str(path), "-o", str(target), "--crop", "8") == 2
    assert "--crop needs --layer-def FILE" in capsys.readouterr().err
    assert not target.exists()
