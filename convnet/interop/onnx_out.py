"""A network as an ONNX file, of opset 13, that computes what ``Network.forward`` does at test.

What ONNX sees otherwise than we do: its LRN divides alpha by the window's size, and goes over all maps, so that every
tower has an LRN of its own between a Split and a Concat; what windows of ours read behind the image, where sizes round
up, is padding at the end; the factor 1 - p of dropout at test is a multiplication, and Dropout that which is scaled in
training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..network.spec import Conv, Dropout, Linear, Local, Lrn, NetworkSpec, Placed, Pool, parameter_count, placed_layers
from ..output.files import write_atomically
from ..version import __version__

if TYPE_CHECKING:
    from ..network.model import Network

Values = np.ndarray[Any, Any]
Input = tuple[Values, Sequence[float]]  # what pictures go through: a mean, (3, crop, crop), and a factor per channel

OPSET, IR = 13, 7  # the version of the operators, and that of the file format which came with it
PRODUCER = "convnet"
LIMIT = 2**31  # bytes that a file of protocol buffers can have
TOLERANCE = 1e-5  # of the largest logit
REMEDY = 'pip install "convnet[onnx]"'


def export_onnx(network: Network, path: str | Path, *, pictures: bool = False, classes: Sequence[str] = ()) -> None:
    """Writes ``network`` as ONNX: one input, float32 (n, 3, crop, crop) "images" as ``Network.forward`` takes them, or
    with ``pictures`` uint8 (n, crop, crop, 3) "pictures", red green blue, from which the file subtracts the mean and
    which it multiplies by the scale of ``Network.set_input``; one output, "logits" float32 (n, classes); n is free.

    Every layer's output is a tensor of the layer's name, and weights are initializers named and laid out as in
    ``Network.weights``. Names of ``classes``, in order, are kept in the metadata. Raises ``ValueError`` where the
    package onnx is missing or ONNX cannot say it, ``OSError`` where the file cannot be written.
    """
    sees = network.input() if pictures else None
    write_atomically(Path(path), onnx_file(network.spec, network.weights(), sees, classes))


def onnx_file(
    spec: NetworkSpec,
    weights: Mapping[str, Values],
    sees: Input | None = None,
    classes: Sequence[str] = (),
    network: str = "",
) -> bytes:
    """The content of the file: ``sees`` is what pictures go through, None where the file takes float images.
    ``network`` is kept in the metadata, too."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise ValueError(f"to write ONNX files the package onnx is needed: {REMEDY}") from error
    if 4 * parameter_count(spec) > LIMIT - 2**20:
        raise ValueError(
            f"an ONNX file holds at most 2 GiB, and {parameter_count(spec):,} parameters of 4 bytes are more; "
            "export to .safetensors or .npz, or take a smaller network"
        )
    crop, graph = spec.crop, _Graph()
    if sees is None:
        x, taken = "images", helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, crop, crop])
    else:
        taken = helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["n", crop, crop, 3])
        mean = graph.constant("input.mean", np.asarray(sees[0], np.float32))
        scale = graph.constant("input.scale", np.asarray(sees[1], np.float32).reshape(3, 1, 1))
        x = graph.add("Transpose", "input.planes", "pictures", perm=[0, 3, 1, 2])
        x = graph.add("Cast", "input.floats", x, to=TensorProto.FLOAT)
        x = graph.add("Sub", "input.centred", x, mean)
        x = graph.add("Mul", "input.images", x, scale)
    if odd := unlike_others(spec):
        raise _unwritten(odd)
    for placed in placed_layers(spec):
        last = placed.index == len(spec.layers) - 1
        x = _layer(graph, x, placed, spec.towers, weights, "logits" if last else placed.layer.name)
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", spec.classes])
    made = helper.make_graph(graph.nodes, spec.name, [taken], [given], graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        made, opset_imports=opsets, ir_version=IR, producer_name=PRODUCER, producer_version=__version__
    )
    texts = {"classes": json.dumps(list(classes))} if classes else {}
    helper.set_model_props(model, texts | ({"network": network} if network else {}))
    content: bytes = model.SerializeToString()
    return content


def unlike_others(spec: NetworkSpec) -> str | None:
    """The first layer that is not what other programs' sequences of layers have: one that does not read the one in
    front of it alone, reads maps in an order of its own, or has a bias for every pixel."""
    for placed in placed_layers(spec):
        layer = placed.layer
        own_order = isinstance(layer, (Conv, Local)) and layer.connections
        if placed.inputs != (placed.index - 1,) or own_order or (isinstance(layer, Conv) and not layer.tied):
            return layer.name
    return None


def _unwritten(layer: str) -> ValueError:
    return ValueError(
        f"{layer}: networks with layers of its kind, or with layers that do not read the one in front of them alone, "
        "are not written as ONNX; export to .safetensors or .npz"
    )


class _Graph:
    """Nodes in order, each with one output, and what is known before: both are named in the file."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.maps = True  # is the tensor at the end one of maps, (n, C, H, W), or of features, (n, F)?

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """A node of this name, and a tensor of the same that is its output."""
        return self.add_to(op, name, [name], *inputs, **attributes)

    def add_to(self, op: str, name: str, outputs: list[str], *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), outputs, name, **attributes))
        return outputs[0]

    def constant(self, name: str, values: Values) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name


def _layer(graph: _Graph, x: str, placed: Placed, towers: int, weights: Mapping[str, Values], y: str) -> str:
    """Adds what a layer does to the tensor ``x``; its output is ``y``."""
    layer = placed.layer
    if not graph.maps and not isinstance(layer, (Linear, Dropout)):
        raise ValueError(
            f"{layer.name}: ONNX has maps no more behind a fully-connected layer; put it in front of those"
        )
    if isinstance(layer, (Conv, Linear)):
        operands = [graph.constant(name, weights[name]) for name in (f"{layer.name}.weight", f"{layer.name}.bias")]
        summed = y if layer.activation is None else f"{layer.name}.sum"
        if isinstance(layer, Conv):
            attributes = {"kernel_shape": [layer.size] * 2, "strides": [layer.stride] * 2, "group": placed.groups}
            pads = _pads(placed, layer.size, layer.stride, layer.padding)
            graph.add_to("Conv", layer.name, [summed], x, *operands, pads=pads, **attributes)
        else:
            if graph.maps:
                x = graph.add("Flatten", f"{layer.name}.features", x, axis=1)
                graph.maps = False
            graph.add_to("Gemm", layer.name, [summed], x, *operands, transB=1)
        if layer.activation is not None:
            op = {"relu": "Relu", "tanh": "Tanh"}[layer.activation]
            graph.add_to(op, f"{layer.name}.{layer.activation}", [y], summed)
        return y
    if isinstance(layer, Pool):
        size, stride = [layer.size] * 2, [layer.stride] * 2
        pads = _pads(placed, layer.size, layer.stride, 0)
        return graph.add_to("MaxPool", layer.name, [y], x, kernel_shape=size, strides=stride, pads=pads)
    if isinstance(layer, Dropout) and layer.scaled:
        ratio = graph.constant(f"{layer.name}.ratio", np.asarray(layer.p, np.float32))
        return graph.add_to("Dropout", layer.name, [y], x, ratio)
    if isinstance(layer, Dropout):
        factor = graph.constant(f"{layer.name}.factor", np.asarray(1 - layer.p, np.float32))
        return graph.add_to("Mul", layer.name, [y], x, factor)
    if isinstance(layer, Lrn):
        return _lrn(graph, x, placed, layer, towers, y)
    raise _unwritten(layer.name)


def _lrn(graph: _Graph, x: str, placed: Placed, layer: Lrn, towers: int, y: str) -> str:
    if layer.size % 2 == 0:
        raise ValueError(
            f"{layer.name}: ONNX has windows of {layer.size} maps mirrored, and onnxruntime none of even size; "
            "export a network whose normalisation windows are odd"
        )
    attributes = {"size": layer.size, "alpha": layer.alpha * layer.size, "beta": layer.beta, "bias": layer.k}
    if towers == 1 or layer.across:
        return graph.add_to("LRN", layer.name, [y], x, **attributes)
    sizes = graph.constant(f"{layer.name}.sizes", np.full(towers, placed.C // towers, np.int64))
    parts = [f"{layer.name}.part{tower}" for tower in range(towers)]
    graph.add_to("Split", layer.name, parts, x, sizes, axis=1)
    normalised = [graph.add("LRN", f"{layer.name}.tower{t}", part, **attributes) for t, part in enumerate(parts)]
    return graph.add_to("Concat", f"{layer.name}.joined", [y], *normalised, axis=1)


def _pads(placed: Placed, size: int, stride: int, padding: int) -> list[int]:
    """Top, left, bottom, right."""
    end = end_padding(placed, size, stride, padding)
    return [padding, padding, end, end]


def end_padding(placed: Placed, size: int, stride: int, padding: int) -> int:
    """Behind the last row and column: as much as the last window reads, and no less than what was asked for."""
    return max((placed.P - 1) * stride + size - placed.H - padding, padding)


def check_onnx(network: Network, model: str | Path | bytes, batches: Sequence[Values]) -> float:
    """The largest difference between the logits of onnxruntime and of ``network`` over the largest of the latter, in
    the worst of some batches: float32 (n, 3, crop, crop), or uint8 (n, crop, crop, 3) for a file that takes pictures.

    ``model`` is a file, or its content. More than ``TOLERANCE``, or not a number, is a mistake of one of both. Raises
    ``ValueError`` where onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"to check an ONNX file onnxruntime is needed: {REMEDY}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    content = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name, worst = session.get_inputs()[0].name, 0.0
    for images in batches:
        if images.dtype == np.uint8:
            ours = network.evaluate_batch(images, np.zeros((len(images), 3), np.int32))
        else:
            ours = network.forward(images)
        theirs = session.run(None, {name: images})[0]
        largest = max(np.abs(ours).max(), np.finfo(np.float32).tiny)
        worst = float(np.maximum(worst, np.abs(theirs - ours).max() / largest))  # which keeps NaN
    return worst
