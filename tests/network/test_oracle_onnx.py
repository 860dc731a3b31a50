"""The operations against ONNX: its node tests, models exported from PyTorch, and AlexNet run by onnxruntime.

ONNX nodes are translated to ``convnet.functional``; what cannot be is listed with a reason: nothing is skipped unseen.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from convnet import functional

onnx = pytest.importorskip("onnx", reason="onnx is not installed")


class Untranslatable(Exception):
    """We have no such operation."""


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Untranslatable(reason)


def paddings(attributes, x, window):
    """(top, bottom, left, right), with the sizes that ONNX's automatic padding keeps."""
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", "VALID"):
        top, left, bottom, right = attributes.get("pads", [0] * 4)
        return top, bottom, left, right
    result = []
    for size, w, stride in zip(x.shape[2:], window, attributes.get("strides", [1, 1]), strict=True):
        total = max((-(-size // stride) - 1) * stride + w - size, 0)
        before = total // 2 if mode == "SAME_UPPER" else total - total // 2
        result += [before, total - before]
    return tuple(result)


def conv(attributes, x, weight, bias=None):
    strides = attributes.get("strides", [1, 1])
    require(x.ndim == 4, "not two-dimensional")
    require(set(attributes.get("dilations", [1])) == {1}, "dilated")
    require(len(set(strides)) == 1, "two strides")
    padding = paddings(attributes, x, weight.shape[2:])
    return functional.conv2d(x, weight, bias, stride=strides[0], padding=padding, groups=attributes.get("group", 1))


def max_pool(attributes, x):
    size, strides = attributes["kernel_shape"], attributes.get("strides", [1, 1])
    require(x.ndim == 4, "not two-dimensional")
    require(x.dtype == np.float32, f"dtype {x.dtype}")
    require(set(attributes.get("dilations", [1])) == {1}, "dilated")
    require(len(set(size)) == len(set(strides)) == 1, "window or stride not square")
    ceil_mode = bool(attributes.get("ceil_mode", 0))
    try:
        return functional.max_pool2d(x, size[0], strides[0], padding=paddings(attributes, x, size), ceil_mode=ceil_mode)
    except ValueError as error:
        # ONNX drops windows that start behind the image, we refuse them; our limit is 15 x 15
        require("outside" not in str(error) and size[0] <= 15, str(error))
        raise


def lrn(attributes, x):
    size, alpha = attributes["size"], attributes.get("alpha", 1e-4)
    beta, k = attributes.get("beta", 0.75), attributes.get("bias", 1.0)
    return functional.local_response_norm(x, size, alpha / size, beta, k)  # ONNX divides alpha by the size


def gemm(attributes, a, b, c=None):
    alpha, beta = np.float32(attributes.get("alpha", 1)), np.float32(attributes.get("beta", 1))
    a = a.T.copy() if attributes.get("transA") else a
    b = b if attributes.get("transB") else b.T.copy()
    bias = None if c is None else np.zeros((len(a), len(b)), np.float32) + beta * c
    same = bias is not None and (bias == bias[0]).all()
    y = functional.linear(a * alpha, b, bias[0].copy() if same else None)
    return y if same or bias is None else y + bias


def softmax(attributes, x):
    axis = attributes.get("axis", -1)
    x = np.moveaxis(x, axis, -1)
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    probs = functional.softmax_cross_entropy(rows, np.zeros(len(rows), np.int64))[2]
    return np.moveaxis(probs.reshape(x.shape), -1, axis)


def cross_entropy(attributes, logits, labels, *weights):
    require(not weights and logits.ndim == 2, "weighted, or not a matrix")
    require("ignore_index" not in attributes, "a label that is ignored")
    losses = functional.softmax_cross_entropy(logits, labels)[0]
    return {b"none": losses, b"sum": losses.sum(), b"mean": losses.mean()}[attributes["reduction"]]


def momentum(attributes, rate, step, *tensors):
    """v = alpha v + beta (g + norm w), w -= rate v: our velocity is -rate v, with a beta of 1."""
    require(attributes["mode"] == b"standard", "Nesterov's momentum")
    require(attributes["beta"] == 1 or step == 0, "a beta other than 1")
    count, results = len(tensors) // 3, []
    for w, g, v in zip(tensors[:count], tensors[count : 2 * count], tensors[2 * count :], strict=True):
        decay = attributes["norm_coefficient"]
        constants = {"lr": float(rate), "momentum": attributes["alpha"], "weight_decay": decay}
        results.append(functional.sgd(w, -rate * v, g, **constants))
    return [w for w, _ in results] + [-v / rate for _, v in results]


TRANSLATORS = {
    "Conv": conv,
    "MaxPool": max_pool,
    "LRN": lrn,
    "Gemm": gemm,
    "MatMul": lambda attributes, a, b: gemm({}, a, b),
    "Relu": lambda attributes, x: functional.relu(x),
    "Softmax": softmax,
    "SoftmaxCrossEntropyLoss": cross_entropy,
    "Momentum": momentum,
    "Dropout": lambda attributes, x, *ratio: x,  # outside of training
    "Reshape": lambda attributes, x, shape: x.reshape([n or x.shape[i] for i, n in enumerate(shape)]),
}
NODE_CASES = re.compile(
    r"test_(basic_conv|conv_with|maxpool_(1d|2d|with)|lrn|gemm|matmul_2d|relu$|softmax_(?!cross)|sce_(none|sum|mean)|"
    r"(nesterov_)?momentum)"
)
# every one of these must have been run; a translator that refuses too much does not pass unseen
REQUIRED = {
    "Conv": 6, "MaxPool": 11, "LRN": 2, "Gemm": 11, "MatMul": 1, "Relu": 1, "Softmax": 7,
    "SoftmaxCrossEntropyLoss": 5, "Momentum": 1,
}  # fmt: skip


def run_node(node, inputs):
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    result = TRANSLATORS[node.op_type](attributes, *inputs)
    return result if isinstance(result, list) else [result]


def limits(case) -> dict:
    return {"rtol": min(case.rtol, 1e-5), "atol": max(case.atol, 1e-6)}


@cache
def node_cases():
    """One-node models of the onnx package. Most draw from NumPy's global generator while they are imported."""
    np.random.seed(0)  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        found = load_model_tests(kind="node")
    return [case for case in found if NODE_CASES.match(case.name) and "expanded" not in case.name]


def test_node_cases():
    done: dict[str, list[str]] = {}
    refused: dict[str, str] = {}
    for case in node_cases():
        node = case.model.graph.node[0]
        inputs, expected = case.data_sets[0]
        try:
            actual = run_node(node, inputs)
        except Untranslatable as reason:
            refused[case.name] = str(reason)
            continue
        for a, e in zip(actual, expected, strict=False):  # indices and log probabilities are not part of ours
            np.testing.assert_allclose(a, e, **limits(case), err_msg=case.name)
        done.setdefault(node.op_type, []).append(case.name)
    print("translated:", {op: len(names) for op, names in done.items()}, "refused:", refused)
    for op, count in REQUIRED.items():
        assert len(done.get(op, [])) >= count, f"only {done.get(op)} of {op} were run; refused: {refused}"
    expected_refusals = {
        "test_maxpool_1d_default", "test_maxpool_2d_uint8", "test_maxpool_2d_dilations",
        "test_maxpool_2d_ceil_output_size_reduce_by_one", "test_nesterov_momentum",
    }  # fmt: skip
    others = {name for name in refused if not name.startswith("test_sce_")}
    assert "test_maxpool_2d_dilations" in others <= expected_refusals, refused


EXPORTED = re.compile(r"test_(Conv2d|Linear|MaxPool2d|ReLU|operator_(conv|mm|addmm))(?!Transpose|transpose)")


def exported_models():
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    folders = [*(root / "pytorch-converted").glob("test_*"), *(root / "pytorch-operator").glob("test_*")]
    return sorted(folder for folder in folders if EXPORTED.match(folder.name))


def tensors(folder: Path, kind: str) -> list:
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda file: int(file.stem.rpartition("_")[2]))
    return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]


def run_graph(graph, inputs):
    """All tensors of a graph of translated nodes, by name."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in values]
    values.update(zip(names, inputs, strict=True))
    for node in graph.node:
        require(node.op_type in TRANSLATORS, f"operation {node.op_type}")
        values.update(zip(node.output, run_node(node, [values[name] for name in node.input]), strict=False))
    return values


def test_models_exported_from_pytorch():
    """Weights and outputs written by PyTorch itself, with N, C, H and W all different and filters of 3 x 2."""
    done, refused = [], {}
    for folder in exported_models():
        graph = onnx.load(str(folder / "model.onnx")).graph
        data = folder / "test_data_set_0"
        try:
            actual = run_graph(graph, tensors(data, "input"))[graph.output[0].name]
        except Untranslatable as reason:
            refused[folder.name] = str(reason)
            continue
        np.testing.assert_allclose(actual, tensors(data, "output")[0], rtol=1e-4, atol=1e-5, err_msg=folder.name)
        done.append(folder.name)
    print("run:", done, "refused:", refused)
    assert {"test_Conv2d", "test_Conv2d_groups", "test_Conv2d_padding", "test_Linear", "test_ReLU"} <= set(done)
    assert refused.get("test_Conv2d_dilated") == "dilated"
    assert len(done) >= 10


def alexnet_with_random_weights():
    """The AlexNet in the onnx package, whose weights are all alike as shipped, with He-scaled random ones."""
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_bvlc_alexnet.onnx"
    if not path.exists():
        pytest.skip("this version of onnx has no light AlexNet")
    model, random = onnx.load(str(path)), np.random.default_rng(2012)
    graph, shapes = model.graph, {}
    for tensor in graph.initializer:
        shapes[tensor.name] = onnx.numpy_helper.to_array(tensor)
    fills = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in fills:
        shape = tuple(int(n) for n in shapes[node.input[0]])
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
        graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
        graph.node.remove(node)
    model.ir_version = 8
    assert len(fills) == 16
    for node in graph.node:
        graph.output.append(onnx.ValueInfoProto(name=node.output[0])) if node is not graph.node[-1] else None
    return model


def test_alexnet_against_onnxruntime():
    """Every intermediate of the whole network: floor sizes, one-sided pooling pads, groups, flattening in CHW order."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = alexnet_with_random_weights()
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    data = next(value.name for value in session.get_inputs())
    expected = dict(zip(names, session.run(names, {data: image}), strict=True))
    actual = run_graph(model.graph, [image])
    assert len(expected) == 24
    for name, right in expected.items():
        assert actual[name].shape == right.shape, name
        error = np.abs(actual[name] - right).max() / np.abs(right).max()
        assert error < 2e-5, f"{name}: {error:.2g} of the largest value"
    assert np.ptp(expected[names[0]]) > 0


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_lrn_against_onnxruntime(size):
    """The node tests have N = C = H = W; here all differ. Only odd sizes: ONNX mirrors the window of even ones."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x = np.random.default_rng(size).uniform(-9, 9, (2, 7, 3, 4)).astype(np.float32)
    node = onnx.helper.make_node("LRN", ["x"], ["y"], size=size, alpha=0.2, beta=0.75, bias=2.0)
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, x.shape) for name in "xy"]
    graph = onnx.helper.make_graph([node], "lrn", info[:1], info[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(run_node(node, [x])[0], expected, rtol=2e-6)
    other = functional.local_response_norm(x, size, 0.2 / size * 1.01, 0.75, 2.0)
    assert not np.allclose(other, expected, rtol=2e-6)
