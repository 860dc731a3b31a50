"""Definition files become networks: their layers, columns found as towers, and where every weight of a file lies."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from definition_files import PAIRS, write
from strong import strong_weights

import convnet
from convnet.definitions import nodes
from convnet.definitions.files import read
from convnet.definitions.geometry import parameters, sizes
from convnet.definitions.ini import DefinitionError
from convnet.interop.definitions import read_definition
from convnet.network import defined as module
from convnet.network.defined import Defined, defined
from convnet.network.spec import (
    Activation,
    AvgPool,
    ContrastNorm,
    Conv,
    Cost,
    Dropout,
    Linear,
    Lrn,
    Mirror,
    Pace,
    Pool,
    RandPool,
    Scale,
    SpatialNorm,
    Sum,
    parameter_count,
    parameter_shapes,
    placed_layers,
)

N = 5
CHAIN, CHAIN_PARAMS = PAIRS["chain"][0].replace("sum=1\n", ""), PAIRS["chain"][1]


def of(folder: Path, layers: str, params: str | None = None, crop: int | None = None) -> Defined:
    definition, parameters = write(folder, layers, params)
    return defined(read(definition, parameters), crop)


def section(name: str, kind: str, inputs: str = "", **keys) -> str:
    lines = [f"[{name}]", f"type={kind}"] + ([f"inputs={inputs}"] if inputs else [])
    return "\n".join([*lines, *(f"{key}={value}" for key, value in keys.items()), "", ""])


def data() -> str:
    return section("data", "data", dataIdx=0) + section("labels", "data", dataIdx=1)


def conv(name: str, inputs: str, channels="3", filters="8", size="3", padding="1", **keys) -> str:
    keys = {"stride": ",".join("1" for _ in inputs.split(",")), "initW": "0.01"} | keys
    return section(
        name, "conv", inputs, channels=channels, filters=filters, filterSize=size, padding=padding, partialSum=1, **keys
    )


def fc(name: str, inputs: str, outputs: int = 6, **keys) -> str:
    weights = ",".join("0.01" for _ in inputs.split(","))
    return section(name, "fc", inputs, outputs=outputs, initW=weights, **keys)


def pool(name: str, inputs: str, channels: int = 8, **keys) -> str:
    return section(name, "pool", inputs, **{"pool": "max", "sizeX": 3, "stride": 2, "channels": channels} | keys)


def end(inputs: str = "fc") -> str:
    return section("probs", "softmax", inputs) + section("logprob", "cost.logreg", "labels,probs")


def columns(one, names="ab") -> str:
    return "".join(one(name) for name in names)


# Two columns that are joined, once in the other order, as the network of 2012 is.
TOWERS = (
    data()
    + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu", gpu="ab".index(c)))
    + columns(lambda c: section(f"rnorm1{c}", "cmrnorm", f"conv1{c}", channels=8, size=5))
    + columns(lambda c: pool(f"pool1{c}", f"rnorm1{c}"))
    + columns(lambda c: conv(f"conv2{c}", f"pool1{c}", "8", neuron="relu"))
    + conv("conv3a", "conv2a,conv2b", "8,8", "8,8", "3,3", "1,1", neuron="relu", initW="0.01,0.01")
    + conv("conv3b", "conv2b,conv2a", "8,8", "8,8", "3,3", "1,1", neuron="relu", initW="0.01,0.01")
    + columns(lambda c: conv(f"conv4{c}", f"conv3{c}", "8", neuron="relu"))
    + columns(lambda c: pool(f"pool4{c}", f"conv4{c}"))
    + fc("fc5a", "pool4a,pool4b", neuron="relu")
    + fc("fc5b", "pool4b,pool4a", neuron="relu")
    + columns(lambda c: section(f"hs5{c}", "hs", f"fc5{c}", keep=0.5))
    + fc("fc", "hs5b,hs5a", 10)
    + end()
)

PAIRED = {"a": "pool1a,pool1b", "b": "pool1b,pool1a", "c": "pool1c,pool1d", "d": "pool1d,pool1c"}

# Every file by what is in it, with the number of towers that it has here.
FILES: dict[str, tuple[str, int]] = {
    "towers": (TOWERS, 2),
    "towers joined by concat": (
        TOWERS.replace("[fc5a]", section("both", "concat", "pool4b,pool4a") + "[fc5a]")
        .replace("inputs=pool4a,pool4b\noutputs=6\ninitW=0.01,0.01", "inputs=both\noutputs=6\ninitW=0.01")
        .replace("inputs=pool4b,pool4a\noutputs=6\ninitW=0.01,0.01", "inputs=both\noutputs=6\ninitW=0.01"),
        2,
    ),
    "columns of other widths": (
        TOWERS.replace(
            conv("conv4b", "conv3b", "8", neuron="relu"), conv("conv4b", "conv3b", "8", "4", neuron="relu")
        ).replace(pool("pool4b", "conv4b"), pool("pool4b", "conv4b", 4)),
        1,
    ),
    "a path of low resolution": (
        data()
        + section("blur", "blur", "data", filterSize=3, stdev=1, channels=3)
        + section("nails", "nailbed", "blur", stride=2, channels=3)
        + columns(lambda c: conv(f"conv1{c}", "data", size="4", stride="2", neuron="relu"))
        + columns(
            lambda c: conv(f"conv2{c}", f"nails,conv1{c}", "3,8", "8,8", "3,5", "1,2", neuron="relu", initW="0.01,0.02")
        )
        + fc("fc", "conv2a,conv2b", 10)
        + end(),
        2,
    ),
    "four columns in pairs": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"), "abcd")
        + columns(lambda c: pool(f"pool1{c}", f"conv1{c}"), "abcd")
        + "".join(
            conv(f"conv2{c}", pair, "8,8", "8,8", "3,3", "1,1", neuron="relu", initW="0.01,0.01")
            for c, pair in PAIRED.items()
        )
        + fc("fc", "conv2a,conv2b,conv2c,conv2d", 10)
        + end(),
        1,
    ),
    "four columns": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"), "abcd")
        + columns(lambda c: conv(f"conv2{c}", f"conv1{c}", "8"), "abcd")
        + fc("fc", "conv2d,conv2b,conv2c,conv2a", 10)
        + end(),
        4,
    ),
    "drawn maps": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data"))
        + columns(lambda c: conv(f"conv2{c}", f"conv1{c}", "8", "4", groups=2, randSparse=1, filterChannels=8))
        + fc("fc", "conv2a,conv2b", 10)
        + end(),
        2,
    ),
    "a layer in front of the columns": (
        data()
        + conv("conv0", "data", neuron="relu")
        + section("norm0", "cmrnorm", "conv0", channels=8, size=5)
        + columns(lambda c: conv(f"conv1{c}", "norm0", "8", neuron="relu"))
        + fc("fc", "conv1a,conv1b", 10)
        + end(),
        2,
    ),
    "local in front of the columns": (
        data()
        + conv("conv0", "data", neuron="relu")
        + pool("pool0", "conv0", sizeX=8, stride=8)
        + section(
            "local0", "local", "pool0", channels=8, filters=8, filterSize=3, padding=1, stride=1, initW=0.01, groups=1
        )
        + columns(lambda c: conv(f"conv1{c}", "local0", "8", neuron="relu"))
        + fc("fc", "conv1a,conv1b", 10)
        + end(),
        1,
    ),
    "two of the same pools": (
        data()
        + conv("conv0", "data", neuron="relu")
        + columns(lambda c: pool(f"pool0{c}", "conv0"))
        + columns(lambda c: conv(f"conv1{c}", f"pool0{c}", "8", neuron="relu"))
        + fc("fc", "conv1a,conv1b", 10)
        + end(),
        1,
    ),
    "probabilities of a concat": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"))
        + columns(lambda c: pool(f"pool1{c}", f"conv1{c}"))
        + columns(lambda c: fc(f"fc2{c}", "pool1a,pool1b", 5))
        + section("both", "concat", "fc2a,fc2b")
        + end("both"),
        2,
    ),
    "probabilities of a concat of activations": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"))
        + columns(lambda c: fc(f"fc2{c}", "conv1a,conv1b", 5, neuron="relu"))
        + section("both", "concat", "fc2a,fc2b")
        + end("both"),
        2,
    ),
    "probabilities of a concat in the other order": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"))
        + columns(lambda c: fc(f"fc2{c}", "conv1a,conv1b", 5))
        + section("both", "concat", "fc2b,fc2a")
        + end("both"),
        1,
    ),
    "probabilities of a concat of two widths": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"))
        + fc("fc2a", "conv1a,conv1b", 6)
        + fc("fc2b", "conv1a,conv1b", 4)
        + section("both", "concat", "fc2b,fc2a")
        + end("both"),
        2,
    ),
    "probabilities of concats": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"))
        + columns(lambda c: fc(f"fc2{c}", "conv1a,conv1b", 4))
        + fc("fc2c", "conv1a,conv1b", 2)
        + section("both", "concat", "fc2b,fc2a")
        + section("all", "concat", "both,fc2c")
        + end("all"),
        1,
    ),
    "concat read as concat": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"))
        + section("both", "concat", "conv1b,conv1a")
        + pool("pool0", "data", 3, pool="avg", sizeX=1, stride=1)
        + section("again", "concat", "both,pool0")
        + fc("fc2", "again", 10)
        + fc("fc", "fc2", 10)
        + end(),
        2,
    ),
    "one column twice": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="relu"))
        + fc("fc2a", "conv1a,conv1b")
        + fc("fc2b", "conv1b,conv1b")
        + fc("fc", "fc2a,fc2b", 10)
        + end(),
        1,
    ),
    "columns joined by concat among others": (
        data()
        + conv("conv0", "data", neuron="relu")
        + columns(lambda c: conv(f"conv1{c}", "conv0", "8", neuron="relu"))
        + section("all", "concat", "conv1b,conv1a,conv0")
        + fc("fc", "all", 10)
        + end(),
        2,
    ),
    "neurons": (
        data()
        + columns(lambda c: conv(f"conv1{c}", "data", neuron="tanh[1.7,0.5]"))
        + columns(lambda c: pool(f"pool1{c}", f"conv1{c}", pool="avg"))
        + columns(lambda c: conv(f"conv2{c}", f"pool1{c}", "8", sharedBiases=0, neuron="linear[0.5,1]"))
        + columns(lambda c: section(f"norm2{c}", "rnorm", f"conv2{c}", channels=8, size=3))
        + columns(lambda c: section(f"relu2{c}", "neuron", f"norm2{c}", neuron="relu"))
        + fc("fc", "relu2a,relu2b", 10)
        + end(),
        2,
    ),
    "dropout, pass and sums": (CHAIN, 1),
    "older than June 2012": (PAIRS["old"][0], 1),
}


every_file = pytest.mark.parametrize("name", FILES)


@every_file
def test_columns_are_found(name, tmp_path):
    layers, towers = FILES[name]
    assert of(tmp_path, layers).spec.towers == towers


def whole(shape: tuple[int, ...], piece) -> tuple[slice, ...]:
    """The part of a tensor of this shape that a slice is: P and Q stand in front in a local layer's weights."""
    front = (slice(None),) * 2 if len(shape) == 6 else ()
    return (*front, slice(*piece.outputs), *(() if piece.inputs is None else (slice(*piece.inputs),)))


def cover(found: Defined) -> None:
    """Every weight and bias belongs to one matrix of the file, or to a bias, once."""
    counts = {name: np.zeros(shape, np.int8) for name, shape in parameter_shapes(found.spec).items()}
    for pieces in found.slices.values():
        for piece in (piece for of_input in pieces for piece in of_input):
            counts[piece.tensor][whole(counts[piece.tensor].shape, piece)] += 1
    for name, count in counts.items():
        assert (count == 1).all(), name


@every_file
def test_every_weight_has_its_place(name, tmp_path):
    layers, _ = FILES[name]
    found = of(tmp_path, layers)
    cover(found)
    assert set(found.slices) <= set(found.layers)
    for node in found.definition.nodes:
        if node.name in found.slices:
            assert len(found.slices[node.name]) == len(node.inputs) + 1


def without_dropout(spec):
    """Its masks are those of layers by their places, which differ between a network in columns and one apart."""
    return replace(spec, layers=tuple(replace(x, p=0.0) if isinstance(x, Dropout) else x for x in spec.layers))


def matrices(found: Defined, tensors, layer: str) -> list[np.ndarray]:
    """Of a layer of the file, in the order of its inputs, then the bias: cut out of ``tensors``, and put together."""
    result = []
    for pieces in found.slices[layer]:
        parts = [tensors[piece.tensor][whole(tensors[piece.tensor].shape, piece)] for piece in pieces]
        result.append(np.concatenate(parts, axis=3 if parts[0].ndim == 6 else 1) if len(parts) > 1 else parts[0])
    return result


def compare_apart(found: Defined, monkeypatch, n: int = N) -> None:
    """Beside the network whose layers are the file's, one by one: the same logits, loss and gradients."""
    monkeypatch.setattr(module, "in_columns", lambda nodes, images: None)
    apart = defined(found.definition, found.spec.crop)
    assert apart.spec.towers == 1
    random = np.random.default_rng(0)
    crop = found.spec.crop
    images = random.standard_normal((n, 3, crop, crop), dtype=np.float32)
    labels = random.integers(0, found.spec.classes, n)
    results = []
    weights: dict[str, np.ndarray] = {}
    for one in (found, apart):
        spec = replace(without_dropout(one.spec), costs=())
        with convnet.Network(spec, "cpu", batch_size=n, seed=1) as net:
            if one is found:
                weights = strong_weights(net)
                net.load_weights(weights)
            else:
                net.load_weights(
                    {
                        f"{layer}.{kind}": np.ascontiguousarray(matrix)
                        for layer in apart.slices
                        for kind, matrix in zip(kinds(net, layer), matrices(found, weights, layer), strict=True)
                    }
                )
            logits, loss = net.forward(images, train=True), net.backward(labels)
            results.append((logits, loss, net.gradients()))
            names = {layer: kinds(net, layer) for layer in apart.slices} if one is apart else {}
    (logits, loss, gradients), (logits2, loss2, gradients2) = results
    assert relative(logits2, logits) < 2e-6
    assert abs(loss - loss2) < 1e-5 * abs(loss)
    for layer, of_layer in names.items():
        for kind, matrix in zip(of_layer, matrices(found, gradients, layer), strict=True):
            assert relative(gradients2[f"{layer}.{kind}"], matrix) < 2e-5, f"{layer}.{kind}"


def kinds(net, layer: str) -> list[str]:
    return [name.partition(".")[2] for name in net.weights() if name.startswith(f"{layer}.")]


def relative(actual, expected) -> float:
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@every_file
def test_a_network_in_columns_is_that_of_its_layers(name, tmp_path, monkeypatch):
    layers, towers = FILES[name]
    found = of(tmp_path, layers, crop=16 if towers > 1 else None)
    compare_apart(found, monkeypatch)


@every_file
def test_parameters_are_those_of_its_layers(name, tmp_path):
    """By hand, from what the file says of every layer."""
    layers, _ = FILES[name]
    found = of(tmp_path, layers)
    shapes = sizes(found.definition, found.spec.crop)
    count = 0
    for node in found.definition.nodes:
        if isinstance(node, nodes.Conv):
            K, P, Q = shapes[node.name]
            pixels = P * Q if isinstance(node, nodes.Local) else 1
            count += sum(K * k.filter_channels * k.size**2 * pixels for k in node.kernels)
            count += K * (P * Q if isinstance(node, nodes.Local) or not node.tied else 1)
        elif isinstance(node, nodes.FullyConnected):
            count += node.outputs * (sum(math.prod(shapes[name]) for name in node.inputs) + 1)
    assert parameter_count(found.spec) == count


def test_towers_are_a_network_of_the_same_layers(tmp_path):
    spec = of(tmp_path, TOWERS).spec
    assert [(p.layer.name, p.K, p.groups, p.gathers) for p in placed_layers(spec)] == [
        ("conv1", 16, 1, False), ("rnorm1", 16, 1, False), ("pool1", 16, 1, False), ("conv2", 16, 2, False),
        ("conv3", 16, 1, True), ("conv4", 16, 2, False), ("pool4", 16, 1, False), ("fc5", 12, 1, True),
        ("hs5", 12, 1, False), ("fc", 10, 1, True),
    ]  # fmt: skip
    assert [layer.activation for layer in spec.layers if isinstance(layer, (Conv, Linear))] == ["relu"] * 5 + [None]
    assert spec.parts == 2
    assert spec.costs == ()
    assert (spec.crop, spec.image_size) == (32, 32)


@pytest.mark.parametrize("name", ["towers", "towers joined by concat", "four columns", "probabilities of a concat"])
def test_towers_lie_on_two_devices(name, tmp_path):
    """The same logits to the bit, and the loss of the same step."""
    spec = of(tmp_path, FILES[name][0], crop=16).spec
    found = []
    for devices in ("emu:0", "emu:0,emu:1"):
        with convnet.Network(spec, devices, batch_size=N, seed=2) as net:
            net.load_weights(strong_weights(net))
            images = np.random.default_rng(0).standard_normal((N, 3, 16, 16), dtype=np.float32)
            logits = net.forward(images, train=True)
            found.append((logits, net.backward(np.arange(N)), net.gradients(), net.exchanges()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    for tensor, gradient in found[0][2].items():
        assert relative(found[1][2][tensor], gradient) < 1e-5, tensor
    assert not found[0][3]
    assert found[1][3]


def test_drawn_maps_need_one_device(tmp_path):
    spec = of(tmp_path, FILES["drawn maps"][0], crop=16).spec
    with pytest.raises(ValueError, match="has a layer that reads drawn maps: its towers must lie on one device; got"):
        convnet.Network(spec, "emu:0,emu:1", batch_size=2)


def test_a_layer_is_ours_in_its_column(tmp_path):
    found = of(tmp_path, TOWERS)
    assert found.layers["conv3a"] == ("conv3", 0)
    assert found.layers["rnorm1b"] == ("rnorm1", 1)
    assert found.layers["fc"] == ("fc", 0)
    assert "probs" not in found.layers
    first, second, bias = found.slices["fc"]  # reads b first
    assert [(p.tensor, p.outputs, p.inputs) for p in first] == [("fc.weight", (0, 10), (6, 12))]
    assert [(p.tensor, p.outputs, p.inputs) for p in second] == [("fc.weight", (0, 10), (0, 6))]
    assert [(p.tensor, p.outputs, p.inputs) for p in bias] == [("fc.bias", (0, 10), None)]
    assert [p.inputs for p in found.slices["conv3b"][0]] == [(8, 16)]
    assert [p.outputs for p in found.slices["conv3b"][1]] == [(8, 16)]
    joined = of(tmp_path, FILES["towers joined by concat"][0])
    (whole, _), (half, _) = joined.slices["fc5a"][0], joined.slices["fc5b"][0]  # b is first there
    assert (whole.inputs, half.inputs) == ((512, 1024), (512, 1024))


def test_where_a_relu_belongs(tmp_path):
    """Behind a layer of weights, or behind a maximum of one, which it commutes with, it is that layer's; behind a norm,
    a mean, or where others read what is in front of it, it is a layer."""
    layers = (
        data()
        + conv("conv1", "data")
        + pool("pool1", "conv1", neuron="relu")
        + conv("conv2", "pool1", "8", neuron="relu")
        + section("norm2", "cmrnorm", "conv2", channels=8, size=3, neuron="relu")
        + pool("pool2", "norm2", neuron="relu")
        + conv("conv3", "pool2", "8")
        + pool("pool3", "conv3", pool="avg", neuron="relu")
        + conv("conv4", "pool3", "8", neuron="tanh[1,1]")
        + conv("conv5", "conv4", "8", neuron="tanh[1.7,0.6]")
        + conv("conv6", "conv5", "8")
        + section("relu6", "neuron", "conv6", neuron="relu")
        + section("sum", "eltsum", "conv6,relu6")
        + fc("fc", "sum", 10)
        + end()
    )
    found = of(tmp_path, layers).spec
    kinds = [(layer.name, type(layer), getattr(layer, "activation", None)) for layer in found.layers]
    assert kinds == [
        ("conv1", Conv, "relu"), ("pool1", Pool, None), ("conv2", Conv, "relu"), ("norm2", Lrn, None),
        ("norm2_neuron", Activation, None), ("pool2", Pool, None), ("pool2_neuron", Activation, None),
        ("conv3", Conv, None), ("pool3", AvgPool, None), ("pool3_neuron", Activation, None), ("conv4", Conv, "tanh"),
        ("conv5", Conv, None), ("conv5_neuron", Activation, None), ("conv6", Conv, None), ("relu6", Activation, None),
        ("sum", Sum, None), ("fc", Linear, None),
    ]  # fmt: skip
    bent = next(layer for layer in found.layers if layer.name == "conv5_neuron")
    assert (bent.kind, bent.a, bent.b) == ("tanh", 1.7, 0.6)


def test_dropout_that_is_off_still_scales(tmp_path):
    """hs of 2012, or dropout2, with enable=false multiplies by keep in training too; dropout divides what it keeps."""
    layers = (
        data()
        + fc("fc1", "data", 8, neuron="relu")
        + section("hs1", "hs", "fc1", keep=0.25)
        + fc("fc2", "hs1", 8, neuron="relu")
        + section("hs2", "hs", "fc2", keep=0.75)
        + fc("fc", "hs2", 10)
        + end()
    )
    rates = "".join(f"[{name}]\nepsW=0.01\nepsB=0.02\nmomW=0.9\nmomB=0.9\nwc=0\n\n" for name in ("fc1", "fc2", "fc"))
    spec = of(tmp_path, layers, rates + "[hs1]\nenable=false\n\n[hs2]\nenable=true\n\n[logprob]\ncoeff=1\n").spec
    assert spec.layers[1] == Scale("hs1", 0.25)
    assert spec.layers[3] == Dropout("hs2", 0.25)
    chain = of(tmp_path, CHAIN, CHAIN_PARAMS).spec
    by_name = {layer.name: layer for layer in chain.layers}
    assert by_name["kept"] == Dropout("kept", 1 - 0.8, scaled=True, inputs=by_name["kept"].inputs)
    assert by_name["halved"] == Scale("halved", 0.5, inputs=by_name["halved"].inputs)


def test_pools_norms_and_biases(tmp_path):
    layers = (
        data()
        + conv("conv1", "data", sharedBiases="false", initB=0.5, gpu=0)
        + section("rnorm1", "rnorm", "conv1", channels=8, size=3)
        + pool("pool1", "rnorm1", pool="avg", sizeX=4, stride=4, start=-2)
        + section("cnorm1", "cnorm", "pool1", channels=8, size=3)
        + section("cmr", "cmrnorm", "cnorm1", channels=8, size=5)
        + fc("fc", "cmr", 10, initB=-1)
        + end()
    )
    params = "".join(
        f"[{name}]\nepsW=0.02\nepsB=0.04\nmomW=0.9\nmomB=0.45\nwc={wc}\n\n" for name, wc in (("conv1", 0), ("fc", 3))
    ) + "".join(f"[{name}]\nscale=0.09\npow=0.5\n{more}\n" for name, more in (("rnorm1", ""), ("cnorm1", "")))
    params += "[cmr]\nscale=0.5\npow=0.75\nminDiv=2\n\n[logprob]\ncoeff=1\n"
    spec = of(tmp_path, layers, params).spec
    one, rnorm, mean, cnorm, cmr, last = spec.layers
    assert parameter_shapes(spec)["conv1.bias"] == (8, 32, 32)
    assert (one.tied, one.bias, one.pace, one.bias_pace) == (False, 0.5, Pace(decay=0.0), Pace(2.0, 0.0, 0.5))
    assert rnorm == SpatialNorm("rnorm1", 3, 0.09 / 9, 0.5, 1.0)
    assert mean == AvgPool("pool1", 4, 4, 2)
    assert cnorm == ContrastNorm("cnorm1", 3, 0.09 / 9, 0.5, 1.0)
    assert cmr == Lrn("cmr", 5, 0.5 / 5, 0.75, 2.0)
    assert (last.bias, last.pace, last.bias_pace) == (-1, Pace(decay=1.0), Pace(2.0, 0.0, 0.5))
    assert (spec.defaults.lr, spec.defaults.momentum, spec.defaults.weight_decay) == (0.02, 0.9, 3.0)
    assert [p.P for p in placed_layers(spec)] == [32, 32, 9, 9, 9, 1]


def test_mirrored_pictures_and_drawn_maps(tmp_path):
    """A rand that is told to take the maximum is one."""
    layers = (
        data()
        + section("mirrored", "href", "data", channels=3)
        + pool("drawn", "mirrored", 3, pool="rand")
        + pool("largest", "drawn", 3, pool="rand")
        + fc("fc", "largest", 10)
        + end()
    )
    rates = "[fc]\nepsW=0.01\nepsB=0.02\nmomW=0.9\nmomB=0.9\nwc=0\n\n[logprob]\ncoeff=1\n\n"
    spec = of(tmp_path, layers, rates + "[drawn]\ndoMax=0\n\n[largest]\ndoMax=1\n").spec
    assert spec.layers[:3] == (Mirror("mirrored"), RandPool("drawn", 3, 2), Pool("largest", 3, 2))
    assert [p.P for p in placed_layers(spec)] == [32, 16, 8, 1]
    with convnet.Network(spec, "cpu", batch_size=2) as net:
        images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
        net.forward(images, train=True)
        assert np.isfinite(net.backward([3, 9]))


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (section("c", "cost.crossent2", "labels,y"), "cross-entropy"),
        (section("c", "cost.rflickr", "labels,y"), "log-squared-error"),
        (section("d", "eltsum", "labels,y", coeffs="1,-1") + section("c", "cost.sum2", "d"), "squared-error"),
        (section("d", "eltsum", "y,labels", coeffs="1,-1") + section("c", "cost.sum2", "d"), "squared-error"),
    ],
)
def test_costs_of_logistic_outputs(cost, expected, tmp_path):
    read = data() if "labels" in cost else section("data", "data", dataIdx=0)
    layers = read + fc("fc", "data", 10) + section("y", "neuron", "fc", neuron="logistic") + cost
    spec = of(tmp_path, layers, crop=8).spec
    assert spec.costs == (Cost(expected, "y"),)
    with convnet.Network(spec, "cpu", batch_size=2) as net:
        images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
        net.forward(images, train=True)
        assert np.isfinite(net.backward([3, 9]))
        assert all(np.abs(gradient).max() > 0 for gradient in net.gradients().values())


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (pool("pool1", "data", 3, pool="maxabs"), r"line 9: \[pool1\] pool=maxabs is not built"),
        (pool("pool1", "data", 3, pool="rand", start=-1), r"line 9: \[pool1\] start=-1 of a draw is not built"),
        (pool("pool1", "data", 3, start=-1), r"line 9: \[pool1\] start=-1 of a maximum is not built"),
        (conv("pool1", "data", neuron="brelu"), "brelu"),
        (section("pool1", "softmax", "data"), r"line 13: \[fc\] reads pool1, which costs alone read here: not built"),
        (pool("pool1", "data", 3, outputsX=4), r"line 9: \[pool1\] outputsX is not built"),
    ],
)
def test_layers_that_are_not_built_are_refused(layers, told, tmp_path):
    """By the file, the line and the layer."""
    with pytest.raises(DefinitionError, match=rf"layers.cfg.*{told}"):
        of(tmp_path, data() + layers + fc("fc", "pool1", 10) + end())


def test_read_definition_is_what_networks_take(tmp_path):
    layers, params = write(tmp_path, TOWERS)
    spec = read_definition(layers, params, crop=16)
    assert spec.crop == 16
    with convnet.Network(spec, "cpu", batch_size=2) as net:
        assert net.forward(np.zeros((2, 3, 16, 16), np.float32)).shape == (2, 10)
        assert list(net.weights())[:4] == ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]


PLACE = os.environ.get("CONVNET_DEFINITIONS")
published = pytest.mark.skipif(
    not (PLACE and Path(PLACE).is_dir()), reason="CONVNET_DEFINITIONS names no folder with the published files"
)
ROOT = Path(PLACE or "")
LAYERS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*/layers*.cfg")) if PLACE else []
NOT_BUILT = {
    "A/layers/layers-137-tree.cfg": r"\[fc1000\] type=treefc",
    "A/layers/layers-146-2009-tree.cfg": r"\[fc1000\] type=treefc",
}
CIFAR = [
    f"V1/example-layers/layers-{name}.cfg"
    for name in ("80sec", "19pct", "18pct", "conv-local-13pct", "conv-local-11pct")
]
CIFAR.append("C2/layers/layers-cifar10-11pct.cfg")
LARGE = [f"A/layers/layers-{name}.cfg" for name in ("145", "145-half", "147", "148", "150")]
LARGE += [
    f"C2/layers/layers-imagenet-{name}.cfg"
    for name in ("1gpu", "2gpu-data", "2gpu-model", "4gpu-data", "4gpu-data-model")
]


@published
@pytest.mark.parametrize("name", LAYERS)
def test_published_files_become_networks(name):
    """With the number of parameters that the file says, each in its place; or are refused by what is not built."""
    definition = read(ROOT / name)
    if name in NOT_BUILT:
        with pytest.raises(DefinitionError, match=rf"line \d+: {NOT_BUILT[name]} is not built"):
            defined(definition)
        return
    found = defined(definition)
    assert parameter_count(found.spec) == parameters(definition, sizes(definition, found.spec.crop))
    cover(found)


@published
def test_published_columns_are_towers():
    """Of the networks that are in two columns; that of four graphics cards are joined in pairs."""
    towers = {name: defined(read(ROOT / name)).spec.towers for name in [*LARGE, "A/layers/layers-153-4gpu.cfg"]}
    assert {name.partition("layers-")[2]: count for name, count in towers.items()} == {
        "145.cfg": 2, "145-half.cfg": 1, "147.cfg": 2, "148.cfg": 2, "150.cfg": 1, "imagenet-1gpu.cfg": 1,
        "imagenet-2gpu-data.cfg": 1, "imagenet-2gpu-model.cfg": 2, "imagenet-4gpu-data.cfg": 1,
        "imagenet-4gpu-data-model.cfg": 4, "153-4gpu.cfg": 1,
    }  # fmt: skip


def trained(spec, device: str, precision: str = "fp32", steps: int = 3, n: int = 4) -> list[float]:
    """Losses on one batch, seen again and again, with weights that are strong enough to be moved by it."""
    spec = replace(without_dropout(spec), costs=())
    with convnet.Network(spec, device, batch_size=n, precision=precision, seed=1) as net:
        net.load_weights(strong_weights(net))
        random = np.random.default_rng(0)
        images = random.standard_normal((n, 3, spec.crop, spec.crop), dtype=np.float32)
        labels = random.integers(0, spec.classes, n)
        losses = []
        for _ in range(steps):
            net.forward(images, train=True)
            losses.append(net.backward(labels))
            net.step(lr=1e-4, momentum=0.5, weight_decay=0.0)
        return losses


def falls(losses: list[float]) -> bool:
    return bool(np.isfinite(losses).all()) and losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def crop_of(name: str) -> int:
    """Small, for the large ones."""
    return 24 if "local" in name or "11pct" in name else 32 if name in CIFAR else 75


@published
@pytest.mark.slow
@pytest.mark.parametrize("name", [*CIFAR, *LARGE])
def test_published_networks_train(name):
    assert falls(trained(defined(read(ROOT / name), crop_of(name)).spec, "cpu"))


@published
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*CIFAR, *LARGE])
def test_published_networks_train_in_the_emulator(name, precision):
    assert falls(trained(defined(read(ROOT / name), crop_of(name)).spec, "emu", precision))


@published
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_published_columns_are_their_layers(name, monkeypatch):
    compare_apart(defined(read(ROOT / name), 75), monkeypatch, n=2)
