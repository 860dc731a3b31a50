"""Networks as ONNX: what onnxruntime computes from our files, and what we read from files, ours and others'."""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from strong import strong_weights

import convnet
from convnet.interop import WeightsError, check_onnx, export_onnx, onnx_in, read_onnx
from convnet.interop.onnx_out import LIMIT, TOLERANCE, onnx_file
from convnet.interop.weights import recognised
from convnet.network.networks import NETWORKS, network
from convnet.network.spec import (
    AvgPool,
    Conv,
    Dropout,
    Linear,
    Local,
    Lrn,
    NetworkSpec,
    Pool,
    SpatialNorm,
    parameter_shapes,
)

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
helper, from_array = onnx.helper, onnx.numpy_helper.from_array

# crops that leave something over where sizes round up, and at which every layer still has a pixel
SMALL = {name: {"width": 0.1, "crop": 101} for name in NETWORKS} | {"alexnet-tiny": {"width": 0.3}}
WITHOUT = (AvgPool, Local, SpatialNorm)  # layers that are not written
OTHERS = [name for name in NETWORKS if any(isinstance(layer, WITHOUT) for layer in network(name).layers)]
ABLATIONS = {
    "as it is": {},
    "no lrn": {"lrn": False},
    "no overlap": {"overlap": False},
    "one tower": {"towers": 1},
    "no joins": {"joins": False},
    "no joins, one tower": {"joins": False, "towers": 1},
    "no dropout": {"dropout": 0.0},
    "dropout of a third": {"dropout": 1 / 3},
    "tanh": {"activation": "tanh"},
    "three classes": {"num_classes": 3},
}


def made(spec: str | NetworkSpec, seed: int = 1, **changes) -> convnet.Network:
    """With all activations there to be looked at, weights of which every one matters, and its own mean and scale."""
    net = convnet.Network(spec, devices="cpu", batch_size=3, fused=False, **changes)
    net.load_weights(strong_weights(net, seed))
    random = np.random.default_rng(seed)
    crop = net.spec.crop
    net.set_input(random.uniform(90, 150, (3, crop, crop)).astype(np.float32), [1 / 50, 1 / 60, 1 / 70])
    return net


def floats(crop: int, n: int = 3) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 3, crop, crop), dtype=np.float32)


def pictures(crop: int, n: int = 3) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, crop, crop, 3), dtype=np.uint8)


def all_outputs(model, images) -> dict[str, np.ndarray]:
    """Every tensor in the graph, as onnxruntime computes it."""
    model = onnx.ModelProto.FromString(model if isinstance(model, bytes) else model.SerializeToString())
    known = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output[:1] if name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: images}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def apart(ours, theirs) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def told(spec: NetworkSpec) -> NetworkSpec:
    """Without what a file does not say, since nothing is computed from it at test: how weights begin, what is usual in
    training, which of the layers without groups might have some, and how sizes round where nothing is left over."""
    layers = []
    for layer in spec.layers:
        if isinstance(layer, Conv):
            layer = replace(layer, std=None, bias=0.0, joins=layer.joins or spec.towers == 1 or layer is spec.layers[0])
        elif isinstance(layer, Linear):
            layer = replace(layer, std=None, bias=0.0)
        elif isinstance(layer, Lrn):
            layer = replace(layer, across=layer.across and spec.towers > 1)
        elif isinstance(layer, Pool):
            layer = replace(layer, ceil_mode=True)
        elif isinstance(layer, Dropout):
            layer = replace(layer, p=round(layer.p, 6))  # written in float32
        layers.append(layer)
    none = network("alexnet").defaults
    return replace(spec, layers=tuple(layers), defaults=none, input_scale=1.0, surround=1.0)


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_other_layers_are_refused(name, tmp_path):
    spec = network(name, width=0.1)
    first = next(layer.name for layer in spec.layers if isinstance(layer, WITHOUT))
    with made(spec) as net, pytest.raises(ValueError, match=f"{first}: networks with layers of its kind, or with"):
        export_onnx(net, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(OTHERS)))
def test_every_network_goes_out_and_comes_back(name, ablation, tmp_path):
    changes = {**SMALL[name], **ABLATIONS[ablation]}
    with made(name, **changes) as net:
        crop, images = net.spec.crop, floats(net.spec.crop)
        export_onnx(net, tmp_path / "x.onnx")
        content = (tmp_path / "x.onnx").read_bytes()
        onnx.checker.check_model(onnx.ModelProto.FromString(content), full_check=True)
        assert check_onnx(net, tmp_path / "x.onnx", [images, images[:1]]) < TOLERANCE  # of any number of images
        logits = net.forward(images)
        theirs = all_outputs(content, images)
        for layer in net.spec.layers[:-1]:
            assert (
                apart(net.activation(layer.name), theirs[layer.name].reshape(net.activation(layer.name).shape))
                < TOLERANCE
            )
        spec, weights = read_onnx(tmp_path / "x.onnx")
        assert told(spec) == told(net.spec)
        assert all((weights[key] == values).all() for key, values in net.weights().items())
        with convnet.Network(spec, devices="cpu", batch_size=3) as again:
            again.load_weights(weights)
            assert apart(again.forward(images), logits) < TOLERANCE
    with made(name, **changes) as net:  # pictures, with mean and scale inside
        export_onnx(net, tmp_path / "u.onnx", pictures=True, classes=[str(k) for k in range(net.spec.classes)])
        seen = pictures(crop)
        assert check_onnx(net, tmp_path / "u.onnx", [seen, seen[:2]]) < TOLERANCE
        found = onnx_in.read(tmp_path / "u.onnx")
        mean, scale = net.input()
        assert told(found.spec) == told(net.spec)
        assert found.classes == [str(k) for k in range(net.spec.classes)]
        assert (found.mean == mean).all()
        assert (found.scale.ravel() == np.asarray(scale, np.float32)).all()


@pytest.mark.slow
def test_alexnet_itself(tmp_path):
    with made("alexnet") as net:
        export_onnx(net, tmp_path / "x.onnx", pictures=True)
        assert check_onnx(net, tmp_path / "x.onnx", [pictures(224)]) < TOLERANCE
        spec, weights = read_onnx(tmp_path / "x.onnx")
        assert told(spec) == told(net.spec)
        assert all((weights[key] == values).all() for key, values in net.weights().items())


def test_a_network_of_odd_kinds_goes_out_and_comes_back(tmp_path):
    """What no network of NETWORKS has: four towers, a pooling layer in front, no activation, padding with rounding up,
    windows beside each other, dropout of maps."""
    layers = (
        Pool("pool0", 2, 2, ceil_mode=False),
        Conv("one", 16, 3, stride=2, padding=1, ceil_mode=True, activation=None),
        Lrn("norm", 3, alpha=0.3, beta=0.5, k=0.7),
        Dropout("thin", 0.25),
        Conv("two", 24, 3, padding=2, activation="tanh"),
        Lrn("wide", 7, alpha=0.1, across=True),
        Pool("pool", 3, 3),
        Linear("three", 20, activation="tanh"),
        Linear("four", 7, activation="relu", split=False),
    )
    spec = NetworkSpec("odd", 32, 4, layers, network("alexnet").defaults)
    with made(spec) as net:
        export_onnx(net, tmp_path / "x.onnx")
        assert check_onnx(net, tmp_path / "x.onnx", [floats(32)]) < TOLERANCE
        found, weights = read_onnx(tmp_path / "x.onnx")
        with convnet.Network(found, devices="cpu", batch_size=3, fused=False) as again:
            again.load_weights(weights)
            assert (again.forward(floats(32)) == net.forward(floats(32))).all()
        assert [layer.name for layer in found.layers] == [layer.name for layer in layers]


def changed(content: bytes, change) -> bytes:
    model = onnx.ModelProto.FromString(content)
    change(model.graph)
    return model.SerializeToString()


def named(graph, op: str, index: int = 0):
    return [node for node in graph.node if node.op_type == op][index]


def attribute(node, name: str):
    return next(each for each in node.attribute if each.name == name)


def one_lrn(graph) -> None:
    """Over both towers."""
    split, first, second, concat = (
        named(graph, op, k) for op, k in (("Split", 0), ("LRN", 0), ("LRN", 1), ("Concat", 0))
    )
    first.input[0], first.output[0] = split.input[0], concat.output[0]
    for node in (split, second, concat):
        graph.node.remove(node)


def shifted(graph) -> None:
    pads = attribute(named(graph, "Conv"), "pads")
    pads.ints[:] = [*pads.ints[2:], *pads.ints[:2]]


def alpha_as_ours(graph) -> None:
    for node in graph.node:
        if node.op_type == "LRN":
            attribute(node, "alpha").f /= 5


def without_dropout(graph) -> None:
    for tensor in graph.initializer:
        if tensor.name.endswith(".factor"):
            tensor.CopyFrom(from_array(np.float32(1), tensor.name))


@pytest.mark.parametrize("mistake", [one_lrn, shifted, alpha_as_ours, without_dropout], ids=lambda f: f.__name__)
def test_the_check_sees_what_onnx_sees_otherwise(mistake):
    with made("alexnet-tiny", **SMALL["alexnet-tiny"], num_classes=4) as net:
        content = onnx_file(net.spec, net.weights())
        assert check_onnx(net, content, [floats(64)]) < TOLERANCE
        assert check_onnx(net, changed(content, mistake), [floats(64)]) > 20 * TOLERANCE


def test_numbers_that_are_none_are_no_agreement():
    with made("alexnet-tiny", **SMALL["alexnet-tiny"]) as net:
        content = onnx_file(net.spec, {**net.weights(), "fc8.bias": np.full(10, np.nan, np.float32)})
        assert not check_onnx(net, content, [floats(64), floats(64)]) <= TOLERANCE


def test_what_onnx_cannot_say_is_refused():
    spec = network("alexnet-tiny")
    even = replace(spec, layers=tuple(replace(p, size=4) if isinstance(p, Lrn) else p for p in spec.layers))
    with pytest.raises(ValueError, match=r"norm1: ONNX has windows of 4 maps mirrored.*odd"):
        onnx_file(even, {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(spec).items()})
    with pytest.raises(ValueError, match=r"at most 2 GiB, and .* parameters of 4 bytes are more"):
        onnx_file(network("alexnet", width=4), {})
    assert LIMIT == 2**31


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_sentence(missing, monkeypatch, tmp_path):
    with made("alexnet-tiny", **SMALL["alexnet-tiny"]) as net:
        content = onnx_file(net.spec, net.weights())
        (tmp_path / "x.onnx").write_bytes(content)
        monkeypatch.setitem(sys.modules, missing, None)
        remedy = re.escape('pip install "convnet[onnx]"')
        if missing == "onnxruntime":
            with pytest.raises(ValueError, match=f"onnxruntime is needed: {remedy}"):
                check_onnx(net, content, [floats(64)])
            return
        with pytest.raises(ValueError, match=f"to write ONNX files the package onnx is needed: {remedy}"):
            export_onnx(net, tmp_path / "y.onnx")
        with pytest.raises(WeightsError, match=f"to read ONNX files the package onnx is needed: {remedy}"):
            read_onnx(tmp_path / "x.onnx")
        assert not (tmp_path / "y.onnx").exists()


# ---- graphs of others


def test_the_alexnet_of_caffe_with_random_weights(tmp_path):
    """The graph in the onnx package: every intermediate tensor against onnxruntime's."""
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_bvlc_alexnet.onnx"
    if not light.exists():
        pytest.skip("this version of onnx has no light AlexNet")
    spec, weights = read_onnx(light)  # as it is, every weight the same number
    assert {float(values.min()) for values in weights.values()} == {float(weights["fc8.bias"].max())}
    model, random = onnx.load(str(light)), np.random.default_rng(2012)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fills = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    assert len(fills) == 16
    for node in fills:
        shape = [int(n) for n in stored[node.input[0]]]
        deviation = np.float32(np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)
        values = random.standard_normal(shape, dtype=np.float32) * deviation
        model.graph.initializer.append(from_array(values, node.output[0]))
        model.graph.node.remove(node)
    model.ir_version = 8
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    found = onnx_in.read(tmp_path / "x.onnx")
    assert found.spec == spec
    known = recognised(tmp_path / "x.onnx")  # as Caffe's, whose pictures are blue, green, red
    assert known.networks == ["bvlc_alexnet", "caffenet"]
    assert (known.weights["conv1.weight"] == found.weights["conv1.weight"][:, ::-1]).all()
    assert (known.weights["fc6.weight"] == found.weights["fc6.weight"]).all()
    assert ["Softmax" in note for note in found.notes] == [True]
    assert [layer.across for layer in spec.layers if isinstance(layer, Lrn)] == [True, True]
    images = floats(224, 1)
    theirs = all_outputs(model, images)
    with convnet.Network(spec, devices="cpu", batch_size=1, fused=False) as net:
        net.load_weights(found.weights)
        logits = net.forward(images)
        ends = (
            "conv1 1 norm1 2 pool1 3 conv2 5 norm2 6 pool2 7 conv3 9 conv4 11 conv5 13 pool5 14 fc6 17 drop6 18 fc7 21"
        )
        pairs = iter(f"{ends} drop7 22".split())
        for name, number in zip(pairs, pairs, strict=True):
            assert apart(net.activation(name), theirs[f"r{number}"]) < TOLERANCE, name
        assert apart(logits, theirs["r24"]) < TOLERANCE


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32) / 4


def model_of(nodes, constants, size=(3, 12, 12), kind=1, opset=13, output="y", given="x"):
    taken = helper.make_tensor_value_info(given, kind, ["n", *size])
    made_of = helper.make_tensor_value_info(output, 1, None)
    tensors = [from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "theirs", [taken], [made_of], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7 if opset == 13 else 10)


def chain(*steps, **options):
    """Nodes one behind the other, from x to y: (op, attributes, constants behind our tensor)."""
    nodes, constants, at = [], {}, "x"
    for index, (op, attributes, *others) in enumerate(steps):
        names = []
        for values in others:
            names.append(f"c{index}{len(names)}")
            constants[names[-1]] = values
        output = "y" if index == len(steps) - 1 else f"t{index}"
        nodes.append(helper.make_node(op, [at, *names], [output], f"n{index}", **attributes))
        at = output
    return model_of(nodes, constants, **options)


HEAD = (("Flatten", {}), ("Gemm", {"transB": 1}, random(5, 8 * 36), random(5)))
CONV = ("Conv", {"strides": [2, 2], "pads": [1] * 4}, random(8, 3, 3, 3), random(8))
OTHERS = {
    "MatMul and Add": chain(CONV, ("Flatten", {}), ("MatMul", {}, random(288, 5)), ("Add", {}, random(5))),
    "Gemm as it is": chain(CONV, ("Relu", {}), ("Flatten", {}), ("Gemm", {}, random(288, 5), random(1, 5))),
    "a bias of maps": chain(("Conv", CONV[1], CONV[2]), ("Add", {}, random(1, 8, 1, 1)), ("Tanh", {}), *HEAD),
    "no bias at all": chain(("Conv", CONV[1], CONV[2]), ("Relu", {}), ("Flatten", {}), ("MatMul", {}, random(288, 5))),
    "Pad": chain(
        ("Pad", {}, np.array([0, 0, 1, 1, 0, 0, 2, 2])), ("Conv", {"strides": [2, 2]}, CONV[2]), ("Relu", {}),
        ("Flatten", {}), ("Gemm", {"transB": 1}, random(5, 8 * 49)),
    ),
    "SAME_UPPER": chain(
        ("Conv", {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, random(8, 3, 3, 3)), ("Relu", {}), *HEAD),
    "SAME_LOWER": chain(
        ("Conv", {"strides": [2, 2], "auto_pad": "SAME_LOWER"}, random(8, 3, 3, 3)), ("Relu", {}), *HEAD),
    "pads at the end": chain(
        ("Conv", {"strides": [5, 5], "pads": [0, 0, 1, 1]}, random(8, 3, 3, 3)), ("Flatten", {}),
        ("MatMul", {}, random(72, 5)),
    ),
    "pooling that rounds up": chain(
        CONV, ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}), ("Flatten", {}),
        ("MatMul", {}, random(72, 5)),
    ),
    "pooling that would begin behind the maps": chain(
        CONV, ("MaxPool", {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}), ("Flatten", {}),
        ("MatMul", {}, random(32, 5)), opset=22,  # whose shapes are those that onnxruntime has always computed
    ),
    "a convolution behind the image": chain(
        ("Conv", {"strides": [7, 7], "pads": [0, 0, 4, 4]}, random(8, 3, 2, 2), random(8)), ("Flatten", {}),
        ("MatMul", {}, random(72, 5)),
    ),
    "pooling that rounds down": chain(
        CONV, ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]}), ("Flatten", {}), ("MatMul", {}, random(32, 5))
    ),
    "nothing in between": chain(
        CONV, ("Identity", {}), ("Relu", {}), ("Cast", {"to": 1}), ("AveragePool", {"kernel_shape": [1, 1]}), *HEAD
    ),
    "Reshape": chain(CONV, ("Reshape", {}, np.array([-1, 288])), HEAD[1]),
    "Dropout": chain(CONV, ("Dropout", {}, np.float32(0.3)), *HEAD),
    "a factor": chain(CONV, ("Relu", {}), ("Mul", {}, np.float32(0.7)), *HEAD),
    "LRN with what is usual": chain(CONV, ("LRN", {"size": 3}), *HEAD),
    "Softmax": chain(CONV, *HEAD, ("Softmax", {})),
    "pixels, prepared inside": chain(
        ("Sub", {}, random(3, 1, 1)), ("Div", {}, random(3, 1, 1)), ("Mul", {}, np.float32(2)),
        ("Add", {}, random(1, 3, 12, 12)), CONV, *HEAD,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_graphs_of_others_are_read(name, tmp_path):
    model = OTHERS[name]
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    found, images = onnx_in.read(tmp_path / "x.onnx"), floats(12)
    x = images if found.mean is None else (images - found.mean) * found.scale
    with convnet.Network(found.spec, devices="cpu", batch_size=3) as net:
        net.load_weights(found.weights)
        ours = net.forward(np.ascontiguousarray(x, np.float32))
    theirs = all_outputs(model, images)
    assert apart(ours, theirs[model.graph.node[-1].input[0] if name == "Softmax" else "y"]) < TOLERANCE
    assert bool(found.notes) == (name == "Softmax")
    assert (found.mean is not None) == (name == "pixels, prepared inside")


@pytest.mark.parametrize(("kind", "exact"), [("f8", True), ("f2", False)])
@pytest.mark.parametrize("raw", [True, False])
def test_numbers_of_other_widths_and_ways_to_be_written(kind, exact, raw, tmp_path):
    model = chain(CONV, *HEAD)
    before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        values = before[tensor.name].astype(kind)
        proto = {"f8": 11, "f2": 10}[kind]
        given = values.tobytes() if raw else values.ravel().tolist()
        tensor.CopyFrom(helper.make_tensor(tensor.name, proto, values.shape, given, raw=raw))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    _, weights = read_onnx(tmp_path / "x.onnx")
    expected = before["c00"].astype(kind).astype(np.float32)
    assert (weights["conv1.weight"] == expected).all()
    assert (expected == before["c00"]).all() == exact
    assert weights["conv1.weight"].dtype == np.float32


def test_constants_are_found_behind_nodes(tmp_path):
    """A Constant, one that is transposed, and one that others only name."""
    model = chain(CONV, ("Flatten", {}), ("Gemm", {"transB": 1}, random(5, 288), random(5)))
    expected = all_outputs(model, floats(12))["y"]
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    turned = from_array(np.ascontiguousarray(onnx.numpy_helper.to_array(stored["c20"]).T), "turned")
    graph.initializer.remove(stored["c20"])
    graph.initializer.append(turned)
    graph.initializer.remove(stored["c01"])
    for node in (
        helper.make_node("Transpose", ["turned"], ["c20"]),
        helper.make_node("Identity", ["inner"], ["c01"]),
        helper.make_node("Constant", [], ["inner"], value=from_array(onnx.numpy_helper.to_array(stored["c01"]))),
    ):
        graph.node.insert(0, node)
    assert apart(all_outputs(model, floats(12))["y"], expected) < TOLERANCE
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    spec, weights = read_onnx(tmp_path / "x.onnx")
    with convnet.Network(spec, devices="cpu", batch_size=3) as net:
        net.load_weights(weights)
        assert apart(net.forward(floats(12)), expected) < TOLERANCE


def test_a_model_that_pytorch_wrote(tmp_path):
    """PyTorch's own exporter, and its Dropout, pooling to a size, and flattening by Reshape or Flatten."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 8, 5, stride=2, padding=2), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(8, 12, 3, groups=2), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d((4, 4)), torch.nn.Flatten(),
        torch.nn.Dropout(0.5), torch.nn.Linear(192, 10), torch.nn.ReLU(), torch.nn.Linear(10, 4), torch.nn.Softmax(1),
    ]  # fmt: skip
    model = torch.nn.Sequential(*layers).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its older exporter, which needs no further package
        torch.onnx.export(model, torch.zeros(1, 3, 28, 28), str(tmp_path / "x.onnx"), dynamo=False)
    found = onnx_in.read(tmp_path / "x.onnx")
    with convnet.Network(found.spec, devices="cpu", batch_size=3) as net, torch.no_grad():
        net.load_weights(found.weights)
        expected = model[:-1](torch.tensor(floats(28))).numpy()
        assert apart(net.forward(floats(28)), expected) < TOLERANCE
    assert [layer.name for layer in found.spec.layers] == ["conv1", "pool1", "conv2", "fc3", "fc4"]


# ---- what does not fit, and what is hostile


def add(op: str, at: str = "y", **attributes):
    """A change: one more node behind the last."""

    def change(model) -> None:
        model.graph.node.append(helper.make_node(op, [at], ["z"], "last", **attributes))
        model.graph.output[0].name = "z"

    return change


def external(model) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")


def tensor(**fields):
    def change(model) -> None:
        for name, value in fields.items():
            if name == "dims":
                del model.graph.initializer[0].dims[:]
                model.graph.initializer[0].dims.extend(value)
            else:
                setattr(model.graph.initializer[0], name, value)

    return change


def given(*sizes, kind: int = 1):
    def change(model) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", kind, sizes))

    return change


def node(index: int, **fields):
    """A change of a node: its op, its inputs, or attributes."""

    def change(model) -> None:
        one = model.graph.node[index]
        for name, value in fields.items():
            if name in ("op_type", "domain"):
                setattr(one, name, value)
            elif name in ("input", "output"):
                field = getattr(one, name)
                del field[:]
                field.extend(value)
            else:
                kept = [each for each in one.attribute if each.name != name]
                del one.attribute[:]
                one.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def circle(model) -> None:
    model.graph.node[2].input[0] = "t2"
    model.graph.node[1].output[0] = "t9"
    model.graph.node[0].output[0] = "t2"


def branches(model) -> None:
    model.graph.node.append(helper.make_node("Relu", ["t0"], ["side"], "aside"))


def filled(model) -> None:
    graph = model.graph
    graph.initializer.remove(graph.initializer[0])
    graph.initializer.append(from_array(np.array([2**20, 3, 2**10, 2**10]), "shape"))
    graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["c00"], "fill"))


def identities(model) -> None:
    for k in range(200):
        model.graph.node.append(helper.make_node("Identity", [f"i{k + 1}"], [f"i{k}"]))
    model.graph.node[0].input[1] = "i0"


def many(model) -> None:
    model.graph.node.extend([onnx.NodeProto()] * 5000)


def two_inputs(model) -> None:
    model.graph.input.append(helper.make_tensor_value_info("z", 1, [1]))


REFUSED = {
    "another op": (
        add("Sigmoid"),
        r"node 'last' \(Sigmoid\) does not fit: there is no such operator here; there are Conv,",
    ),
    "another domain": (node(1, domain="com.microsoft"), r"node 'n1' \(Relu\) does not fit: there is no such operator"),
    "control flow": (add("If"), r"node 'last' \(If\) does not fit"),
    "a Relu behind pooling": (node(2, op_type="Relu"), r"node 'n2' \(Relu\).*right behind a Conv, Gemm or MatMul"),
    "a Softmax in the middle": (node(1, op_type="Softmax"), r"node 'n1' \(Softmax\).*must be the last node"),
    "average pooling": (node(2, op_type="AveragePool"), r"node 'n2' \(AveragePool\).*averages of more than one pixel"),
    "dilated": (node(0, dilations=[2, 2]), r"node 'n0' \(Conv\).*not dilated"),
    "dilated pooling": (node(2, dilations=[2, 2]), r"node 'n2' \(MaxPool\).*not be dilated"),
    "two strides": (node(0, strides=[1, 2]), r"node 'n0' \(Conv\).*its strides is \[1, 2\]; .* squares"),
    "no stride": (node(0, strides=[0, 0]), r"node 'n0' \(Conv\).*its strides is \[0, 0\]"),
    "unlike pads": (node(0, pads=[0, 1, 0, 1]), r"node 'n0' \(Conv\).*its pads are \[0, 1, 0, 1\]"),
    "more pads at the end": (node(0, pads=[0, 0, 7, 7]), r"node 'n0' \(Conv\).*room for 9 x 9 windows"),
    "endless pads": (node(0, pads=[0, 0, 2**62, 2**62]), r"node 'n0' \(Conv\).*its pads are"),
    "pooling with pads": (node(2, pads=[1] * 4), r"node 'n2' \(MaxPool\).*must begin at the first pixel"),
    "a window too large": (node(2, kernel_shape=[99, 99]), r"node 'n2' \(MaxPool\).*does not fit a size of 6"),
    "an attribute of another type": (node(0, strides=1.5), r"node 'n0' \(Conv\).*its strides is of another type"),
    "groups that do not divide": (node(0, group=2), r"node 'n0' \(Conv\).*in 2 groups do not fit 3 maps"),
    "the first in groups": (node(0, group=3), r"node 'n0' \(Conv\).*in 3 groups do not fit"),
    "no weights": (node(0, input=["x"]), r"node 'n0' \(Conv\).*input 2 is missing"),
    "weights that are computed": (node(0, input=["x", "x"]), r"node 'n0' \(Conv\).*'x' must be a constant"),
    "weights and images exchanged": (node(4, input=["c40", "t3"]), r"node 'n4' \(Gemm\).*must be its first input"),
    "features of other number": (node(4, transB=0), r"node 'n4' \(Gemm\).*weights for 5 features, and there are 72"),
    "no Flatten": (node(3, op_type="Identity"), r"node 'n4' \(Gemm\).*there are 8 x 3 x 3; is there a Flatten\?"),
    "Flatten of images": (node(3, axis=0), r"node 'n3' \(Flatten\).*the features of an image, 72, one row"),
    "a factor of the weights": (node(4, alpha=2.0), r"node 'n4' \(Gemm\).*alpha and beta must be 1"),
    "even LRN": (node(2, op_type="LRN", size=4), r"node 'n2' \(LRN\).*windows of 4 maps: they must be odd"),
    "nothing read": (node(1, input=["nowhere"]), "ends in 't0', which is no output"),
    "no layer": (node(0, op_type="Identity"), r"node 'n1' \(Relu\)"),
    "ends in pooling": (node(2, output=["y"]), "a fully-connected layer at the end, found pool1"),
    "branches": (branches, r"'t0' is read by node 'n1' \(Relu\), node 'aside' \(Relu\); .* no branches"),
    "a circle": (circle, r"node 'n2' \(MaxPool\)"),
    "another file": (external, "the tensor 'c00' of shape .* lies in another file"),
    "huge": (tensor(dims=[2**40, 2**40]), r"of shape \[1099511627776, 1099511627776\] cannot be"),
    "negative": (tensor(dims=[-1, 3, 3, 3]), r"of shape \[-1, 3, 3, 3\] cannot be"),
    "too few numbers": (tensor(dims=[8, 3, 3, 4]), "has not as many numbers as that"),
    "an odd number of bytes": (tensor(raw_data=b"abc"), "has not as many numbers as that"),
    "an unknown type": (tensor(data_type=99), "is of ONNX's type 99"),
    "text": (tensor(data_type=8), "is of ONNX's type 8"),
    "bfloat16": (tensor(data_type=16), "is of ONNX's type 16; numbers must be float16, 32 or 64"),
    "whole numbers": (tensor(data_type=6), "the constant 'c00' must be finite floating-point numbers"),
    "not finite": (tensor(raw_data=np.full(216, np.inf, "f4").tobytes()), "'c00' must be finite"),
    "filled without end": (filled, r"node 'fill' \(ConstantOfShape\) fills \[1048576, 3, 1024, 1024\].*refused"),
    "named without end": (identities, "'i100' must be a constant"),
    "5,000 nodes": (many, "5,005 nodes; a network of ours has 1,000 at most"),
    "two inputs": (two_inputs, "expected one input, the images; found 2"),
    "sizes not known": (given(None, 3, None, None), "with sizes that are known.*found ONNX's type 1 and n x 3 x n x n"),
    "grey": (given(None, 1, 12, 12), "square images with 3 colours.*found n x 1 x 12 x 12"),
    "not square": (given(None, 3, 12, 13), "square images with 3 colours.*found n x 3 x 12 x 13"),
    "huge images": (given(None, 3, 2**40, 2**40), "32,767 pixels a side at most"),
    "no images": (given(None, 12), "expected images as input.*found ONNX's type 1 and n x 12"),
    "images of whole numbers": (given(None, 3, 12, 12, kind=7), "expected images as input.*ONNX's type 7"),
    "pixels last": (given(None, 12, 12, 3), r"node 'n0' \(Conv\).*pixels must be transposed"),
    "old operators": (
        lambda model: setattr(model.opset_import[0], "version", 6),
        "of version 7 or newer, found version 6",
    ),
    "no operators": (lambda model: model.opset_import.pop(), "of version 7 or newer, found none"),
    "control characters": (add("Si\ng\x1bmoid"), r"\(Si\\ng\\x1bmoid\) does not fit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_named_in_one_sentence(what, tmp_path):
    change, text = REFUSED[what]
    model = chain(
        CONV, ("Relu", {}), ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("Flatten", {}),
        ("Gemm", {"transB": 1}, random(5, 72), random(5)),
    )  # fmt: skip
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    read_onnx(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    (tmp_path / "secret.bin").write_bytes(b"x" * 864)
    with pytest.raises(WeightsError) as refused:
        read_onnx(path)
    assert re.search(text, str(refused.value)), refused.value
    assert str(refused.value).startswith(f"'{path}': ")
    assert str(refused.value).isprintable()


def split_of(change):
    """A file of ours with two towers, and one change of its graph."""
    with made("alexnet-tiny", **SMALL["alexnet-tiny"]) as net:
        return changed(onnx_file(net.spec, net.weights()), change)


def other_alpha(graph) -> None:
    attribute(named(graph, "LRN"), "alpha").f *= 2


def crossed(graph) -> None:
    concat = named(graph, "Concat")
    concat.input[:] = concat.input[::-1]


def unequal(graph) -> None:
    (sizes,) = (tensor for tensor in graph.initializer if tensor.name == "norm1.sizes")
    sizes.CopyFrom(from_array(np.array([4, 12]), sizes.name))


def other_towers(graph) -> None:
    attribute(named(graph, "Conv", 3), "group").i = 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (other_alpha, r"node 'norm1' \(Split\).*the same LRN"),
        (crossed, r"node 'norm1' \(Split\).*must put the maps together in their order"),
        (unequal, r"node 'norm1' \(Split\).*must cut 16 maps into 2 equal parts.*\[4, 12\]"),
        (other_towers, r"node 'conv4' \(Conv\).*in 4 groups do not fit"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_towers_that_are_none(change, text, tmp_path):
    (tmp_path / "x.onnx").write_bytes(split_of(change))
    with pytest.raises(WeightsError, match=text):
        read_onnx(tmp_path / "x.onnx")


@pytest.mark.parametrize("content", [b"", b"no protocol buffers", b"\x0a" * 1000, b"\x3a\xff\xff\xff\xff\x7f"])
def test_what_is_no_onnx_file(content, tmp_path):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.onnx': (a damaged ONNX file|expected ONNX's operators)"):
        read_onnx(tmp_path / "x.onnx")


def test_files_that_are_not_there_and_folders(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read '.*none.onnx': No such file"):
        read_onnx(tmp_path / "none.onnx")
    with pytest.raises(WeightsError, match=r"cannot read '.*': Is a directory"):
        read_onnx(tmp_path)


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_a_constant_that_many_layers_share_lies_in_memory_once(kind, tmp_path):
    shared = random(96, 96, 1, 1)
    steps = [("Conv", {}, random(96, 3, 1, 1)), *[("Conv", {})] * 200, ("Flatten", {}), ("MatMul", {}, random(96, 2))]
    model = chain(*steps, size=(3, 1, 1))
    for one in model.graph.node[1:201]:
        one.input.append("shared")
    model.graph.initializer.append(from_array(shared.astype(kind), "shared"))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    _, weights = read_onnx(tmp_path / "x.onnx")
    assert (
        len({values.__array_interface__["data"] for name, values in weights.items() if values.shape == shared.shape})
        == 1
    )


def test_names_of_classes_that_are_none_are_left_out(tmp_path):
    with made("alexnet-tiny", **SMALL["alexnet-tiny"], num_classes=2) as net:
        for names in (json.dumps(["a"]), json.dumps([1, 2]), "[" * 5000, "9" * 5000, "{}"):
            model = onnx.ModelProto.FromString(onnx_file(net.spec, net.weights()))
            helper.set_model_props(model, {"classes": names})
            (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
            assert onnx_in.read(tmp_path / "x.onnx").classes == []
