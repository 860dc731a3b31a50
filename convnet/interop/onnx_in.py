"""An ONNX file as a network of ours: a chain of our operators becomes a specification with weights.

The file may come from anybody. It is read whole and never leads to another one, numbers are taken from it as they
lie there, and nothing is computed from it but what ends up as a weight. What does not fit is named with its node.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError
from ..kernels.shapes import output_size
from ..network.networks import LARGE
from ..network.spec import Conv, Dropout, Layer, Linear, Lrn, NetworkSpec, Pool, placed_layers
from ..output.files import printable
from .files import WeightsError
from .onnx_out import PRODUCER
from .onnx_tensors import Unfit, numbers, parsed, short, text, told

Values = np.ndarray[Any, Any]

OLDEST = 7  # of the operators' versions: before, binary ones said in an attribute how they broadcast
MOST_NODES = 1_000  # a network of eight layers has some thirty
MOST_STEPS = 100  # from a constant to the node that reads it
FILLED = 2**26  # numbers that a file may have made of one number each, as ConstantOfShape does
FLOAT, UINT8 = 1, 2
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")


@dataclass(frozen=True)
class OnnxNetwork:
    """What a file says. ``weights`` are float32, named and laid out as in ``Network.weights``; ``mean``, (3, 1, 1) or
    (3, crop, crop), and ``scale``, (3, 1, 1), what the file does to its input first, None where it does nothing;
    ``notes`` what was left out, a sentence each.
    """

    spec: NetworkSpec
    weights: dict[str, Values]
    mean: Values | None
    scale: Values | None
    classes: list[str]
    notes: list[str]


def read_onnx(path: str | Path) -> tuple[NetworkSpec, dict[str, Values]]:
    """The network in an ONNX file, for ``Network(spec)``, and its weights, for ``Network.load_weights``.

    It must be a chain of Conv, Relu, Tanh, LRN (also one per tower, between Split and Concat), MaxPool, Gemm or MatMul
    and Add, Flatten or Reshape, Dropout (as a layer that is scaled in training), and multiplications by a factor below
    1 (as one that is not). A Softmax at the end is left out, and so is what is done to pixels first: ``onnx_in.read``
    tells both. Raises ``WeightsError`` naming what does not fit, and where the package onnx is missing.
    """
    found = read(path)
    return found.spec, found.weights


def read(path: str | Path) -> OnnxNetwork:
    """All that ``read_onnx`` finds."""
    try:
        with told(path):
            return _Chain(parsed(path)).network()
    except DataError as error:
        raise WeightsError(str(error)) from error


class _Node:
    """One node, with its attributes as Python has them, each of the type that is asked for."""

    def __init__(self, proto: Any) -> None:
        self.op, self.name = text(proto.op_type), text(proto.name)
        self.inputs, self.outputs = [[text(name) for name in names] for names in (proto.input, proto.output)]
        self.standard = proto.domain in ("", "ai.onnx")
        self._attributes = {text(attribute.name): attribute for attribute in proto.attribute}
        self.told = f"node {short(self.name or (self.outputs or ['without a name'])[0])} ({self.op[:40]})"

    def has(self, name: str) -> bool:
        return name in self._attributes

    def _get(self, name: str, kind: int, field: str, default: Any) -> Any:
        attribute = self._attributes.get(name)
        if attribute is None:
            return default
        if attribute.type != kind:
            raise Unfit(f"its {name} is of another type than ONNX says")
        return getattr(attribute, field)

    def number(self, name: str, default: float) -> float:
        value = float(self._get(name, 1, "f", default))
        if not math.isfinite(value):
            raise Unfit(f"its {name} is {value}")
        return value

    def whole(self, name: str, default: int) -> int:
        return int(self._get(name, 2, "i", default))

    def text(self, name: str, default: str) -> str:
        return str(self._get(name, 3, "s", default.encode()).decode("latin1"))

    def tensor(self, name: str) -> Values | None:
        found = self._get(name, 4, "t", None)
        return None if found is None else numbers(found)

    def wholes(self, name: str, default: list[int]) -> list[int]:
        return [int(n) for n in self._get(name, 7, "ints", default)]

    def square(self, name: str, default: int | None = None) -> int:
        """Of an attribute with a number for rows and one for columns, which must be the same."""
        found = self.wholes(name, [] if default is None else [default, default])
        if len(found) != 2 or found[0] != found[1] or not 1 <= found[0] < 2**31:
            raise Unfit(f"its {name} is {found or 'missing'}; windows and steps must be squares, of 1 at least")
        return found[0]


class _Constants:
    """What is known before there is an image: initializers, and what a few nodes make of constants."""

    def __init__(self, graph: Any, makers: dict[str, _Node]) -> None:
        self._stored = {text(tensor.name): tensor for tensor in graph.initializer}
        self._makers = makers
        self._filled = 0
        self._read: dict[str, Values] = {}  # each once, however many nodes read it

    def known(self, name: str) -> bool:
        return name in self._stored

    def get(self, name: str) -> Values:
        """Raises ``Unfit`` for a tensor that is none."""
        if name not in self._read:
            self._read[name] = self._find(name)
        return self._read[name]

    def floats(self, name: str) -> Values:
        """As float32. Raises ``Unfit`` where they are not finite then."""
        values = self.get(name)
        if values.dtype != np.float32:
            with np.errstate(over="ignore"):
                values = self._read[name] = values.astype(np.float32) if values.dtype.kind == "f" else values
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise Unfit(f"the constant {short(name)} must be finite floating-point numbers")
        return values

    def _find(self, name: str) -> Values:
        turns: list[list[int]] = []
        for _ in range(MOST_STEPS):
            if name in self._stored:
                return _turned(numbers(self._stored[name]), turns)
            node = self._makers.get(name)
            if node is None:
                break
            if node.op == "Constant":
                return _turned(self._constant(node), turns)
            if node.op == "ConstantOfShape" and node.inputs:
                return _turned(self._fill(node), turns)
            if node.op not in ("Identity", "Transpose") or not node.inputs:
                raise Unfit(f"{short(name)} must be a constant, and is made by {node.told}")
            if node.op == "Transpose":
                turns.append(node.wholes("perm", []))
            name = node.inputs[0]
        raise Unfit(f"{short(name)} must be a constant, and is not one in the file")

    def _constant(self, node: _Node) -> Values:
        found = node.tensor("value")
        if found is None:
            if node.has("value_float"):
                return np.array(node.number("value_float", 0), np.float32)
            if node.has("value_int"):
                return np.array(node.whole("value_int", 0), np.int64)
            if node.has("value_ints"):
                return np.array(node.wholes("value_ints", []), np.int64)
            raise Unfit(f"{node.told} has no value that is a tensor of numbers")
        return found

    def _fill(self, node: _Node) -> Values:
        shape = self.get(node.inputs[0]) if self.known(node.inputs[0]) else np.zeros(0)
        sizes = [int(n) for n in shape.ravel()[:9]]
        value = node.tensor("value")
        if shape.dtype.kind != "i" or not sizes or len(sizes) > 8 or min(sizes) < 1:
            raise Unfit(f"{node.told} is to fill a shape that is no list of sizes")
        self._filled += math.prod(sizes)
        if self._filled > FILLED:
            raise Unfit(f"{node.told} fills {sizes} with one number; more than {FILLED:,} such numbers are refused")
        filling = np.zeros(1, np.float32) if value is None else value
        if filling.size != 1:
            raise Unfit(f"{node.told} fills with {filling.size} numbers, not with one")
        return np.broadcast_to(filling.reshape(()), sizes)


def _turned(values: Values, turns: list[list[int]]) -> Values:
    """By every Transpose on the way, the last first; one that does not say how reverses the axes."""
    for turn in reversed(turns):
        axes = turn or list(range(values.ndim))[::-1]
        if sorted(axes) != list(range(values.ndim)):
            raise Unfit(f"a constant of shape {list(values.shape)} is transposed by {axes[:8]}")
        values = values.transpose(axes)
    return values


# ---- the chain of nodes ----


class _Chain:
    """Follows the tensor that begins as images from node to node.

    ``shape`` is what one image has become, (C, H, W) or (F,); ``layers`` what was understood so far. ``parts`` says of
    every normalisation how many towers have one of their own.
    """

    def __init__(self, model: Any) -> None:
        graph = model.graph
        versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
        if not versions or versions[0] < OLDEST:
            found = f"version {versions[0]}" if versions else "none"
            raise Unfit(f"expected ONNX's operators of version {OLDEST} or newer, found {found}; convert the model")
        if len(graph.node) > MOST_NODES:
            raise Unfit(f"{len(graph.node):,} nodes; a network of ours has {MOST_NODES:,} at most")
        nodes = [_Node(proto) for proto in graph.node]
        makers = {name: node for node in nodes for name in node.outputs if name}
        self.constants = _Constants(graph, makers)
        self.readers: dict[str, list[_Node]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)
        self.results = {text(value.name) for value in graph.output}
        self.model, self.ours = model, model.producer_name == PRODUCER
        self.layers: list[Layer] = []
        self.weights: dict[str, Values] = {}
        self.parts: dict[str, int] = {}
        self.towers: set[int] = set()
        self.notes: list[str] = []
        self.mean: Values | None = None
        self.scale: Values | None = None
        self.padded: tuple[int, int] | None = None  # zeros before and behind, by a node in front of a convolution
        self.open = False  # may a bias or an activation still belong to the last layer?
        self.batch: int | None = None
        self.pixels_last = False
        self.shape: tuple[int, ...] = ()
        self.at, self.crop = self._input(graph)

    def _input(self, graph: Any) -> tuple[str, int]:
        """Its name, and how many pixels a side images have; begins with their shape."""
        inputs = [value for value in graph.input if not self.constants.known(text(value.name))]
        if len(inputs) != 1:
            raise Unfit(f"expected one input, the images; found {len(inputs)}")
        kind = inputs[0].type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        shown = " x ".join("n" if n is None else str(n) for n in sizes[:6])
        if len(sizes) != 4 or kind.elem_type not in (FLOAT, UINT8) or None in sizes[1:]:
            raise Unfit(
                f"expected images as input, float32 or uint8 with sizes that are known, (n, 3, size, size) or "
                f"(n, size, size, 3); found ONNX's type {kind.elem_type} and {shown or 'no sizes'}"
            )
        rest: list[int] = [int(n) for n in sizes[1:] if n is not None]
        self.batch, self.pixels_last = sizes[0], rest[0] != 3 and rest[2] == 3
        if self.pixels_last:
            rest = [rest[2], *rest[:2]]
        if rest[0] != 3 or rest[1] != rest[2] or not 1 <= rest[1] < 2**15:
            raise Unfit(f"expected square images with 3 colours, 32,767 pixels a side at most, found {shown}")
        self.shape = (rest[0], rest[1], rest[2])
        return text(inputs[0].name), rest[1]

    def network(self) -> OnnxNetwork:
        seen: set[int] = set()
        while readers := self.readers.get(self.at):
            node = readers[0]
            if len(readers) > 1:
                told = ", ".join(reader.told for reader in readers[:3])
                raise Unfit(f"{short(self.at)} is read by {told}; a network of ours has no branches")
            if id(node) in seen:
                raise Unfit(f"{node.told} reads what it makes; the file is damaged")
            seen.add(id(node))
            step = STEPS.get(node.op) if node.standard else None
            try:
                if step is None:
                    raise Unfit(f"there is no such operator here; there are {', '.join(STEPS)}")
                if not node.outputs or not node.inputs:
                    raise Unfit("it reads or makes nothing")
                if node.inputs[0] != self.at and node.op not in ("Add", "Mul"):
                    raise Unfit("our tensor must be its first input")
                if self.pixels_last and node.op not in ("Transpose", "Cast", "Identity"):
                    raise Unfit("pixels must be transposed to planes of colour first")
                if self.padded and node.op != "Conv":
                    raise Unfit("zeros around maps fit in front of a Conv alone")
                step(self, node)
            except Unfit as error:
                raise Unfit(f"{node.told} does not fit: {error}") from error
            if node.op != "Split":
                self.at = node.outputs[0]
        if self.results and self.at not in self.results:
            raise Unfit(f"the chain ends in {short(self.at)}, which is no output")
        return self._finished()

    def _finished(self) -> OnnxNetwork:
        last = self.layers[-1] if self.layers else None
        if not isinstance(last, Linear):
            raise Unfit(f"expected a fully-connected layer at the end, found {last.name if last else 'no layer'}")
        if len(self.towers) > 1:
            raise Unfit(
                f"groups of {sorted(self.towers)[:4]} maps' parts; all of a network's layers have the same towers"
            )
        towers = self.towers.pop() if self.towers else 1
        layers = [self._with_towers(layer, towers) for layer in self.layers[:-1]]
        name = printable(text(self.model.graph.name))[:60] or "onnx"
        spec = NetworkSpec(name, self.crop, towers, (*layers, replace(last, split=False)), LARGE)
        try:
            list(placed_layers(spec))
        except ValueError as error:
            raise Unfit(str(error)) from error
        return OnnxNetwork(spec, self.weights, self.mean, self.scale, self._classes(last.features), self.notes)

    def _with_towers(self, layer: Layer, towers: int) -> Layer:
        if isinstance(layer, Lrn):
            return replace(layer, across=self.parts[layer.name] < towers)
        if isinstance(layer, Linear):
            return replace(layer, split=layer.features % towers == 0)
        return layer

    def _classes(self, count: int) -> list[str]:
        """Their names, where the file has them as ours do."""
        told = {text(entry.key): text(entry.value) for entry in self.model.metadata_props}
        try:
            found = json.loads(told.get("classes", "[]"))
        except (ValueError, RecursionError):
            return []
        fits = isinstance(found, list) and len(found) == count and all(isinstance(each, str) for each in found)
        return found if fits else []

    # ---- what the steps have in common

    def _add(self, layer: Layer) -> None:
        self.layers.append(layer)
        self.open = isinstance(layer, (Conv, Linear))

    def _named(self, node: _Node, kind: str) -> str:
        """The node's own name in a file of ours, else one such as AlexNet's layers have: the number is that of the
        last layer of weights."""
        taken = {layer.name for layer in self.layers}
        if self.ours and NAME.fullmatch(node.name) and node.name not in taken:
            return str(node.name)
        count = sum(isinstance(layer, (Conv, Linear)) for layer in self.layers) + (kind in ("conv", "fc"))
        name = f"{kind}{count}"
        while name in taken:
            name += "b"
        return name

    def _other(self, node: _Node) -> Values:
        """The constant that a node of two inputs takes beside our tensor."""
        others = [name for name in node.inputs if name != self.at]
        if len(node.inputs) != 2 or len(others) != 1:
            raise Unfit("it must read our tensor and a constant")
        return self.constants.floats(others[0])

    def _weights(self, values: Values, bias: Values | None, name: str) -> None:
        """Of a layer, (K, ...) and (K,)."""
        filters = len(values)
        self.weights[f"{name}.weight"] = values
        self.weights[f"{name}.bias"] = np.zeros(filters, np.float32)
        if bias is not None:
            self._add_bias(bias, name)

    def _add_bias(self, bias: Values, name: str) -> None:
        before = self.weights[f"{name}.bias"]
        if bias.size not in (1, len(before)) or max(bias.shape, default=1) != bias.size:
            raise Unfit(f"a bias of shape {list(bias.shape)} for {len(before)} outputs")
        self.weights[f"{name}.bias"] = before + bias.reshape(-1)

    def _maps(self) -> tuple[int, int]:
        """How many, and how large."""
        if len(self.shape) != 3:
            raise Unfit(f"it needs maps, and there are {self.shape[0]} features")
        return self.shape[0], self.shape[1]

    # ---- the steps

    def conv(self, node: _Node) -> None:
        channels, size = self._maps()
        weight = self.constants.floats(_nth(node, 1))
        groups = node.whole("group", 1)
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or 0 in weight.shape:
            raise Unfit(f"its filters are of shape {list(weight.shape)}; they must be squares, (K, C, R, R)")
        filters, _, window, _ = weight.shape
        if (
            not 1 <= groups <= channels
            or channels % groups
            or filters % groups
            or weight.shape[1] != channels // groups
        ):
            raise Unfit(f"filters of shape {list(weight.shape)} in {groups} groups do not fit {channels} maps")
        if node.square("kernel_shape", window) != window or node.square("dilations", 1) != 1:
            raise Unfit("filters must be as large as kernel_shape says, and not dilated")
        stride, before, out = self._windows(node, window)
        ceil_mode = self._rounds_up(size, window, stride, before, out, usual=False)
        if groups > 1 and not self.layers:
            raise Unfit("the first convolution cannot have groups")
        if groups > 1:
            self.towers.add(groups)
        name = self._named(node, "conv")
        self._weights(weight, self.constants.floats(node.inputs[2]) if _given(node, 2) else None, name)
        self._add(Conv(name, filters, window, stride, before, groups == 1, ceil_mode, std=None, activation=None))
        self.shape, self.padded = (filters, out, out), None

    def pool(self, node: _Node) -> None:
        maps, size = self._maps()
        window = node.square("kernel_shape")
        stride, before, out = self._windows(node, window)
        if node.square("dilations", 1) != 1 or before or node.whole("storage_order", 0):
            raise Unfit("its windows must begin at the first pixel, and not be dilated")
        if node.op == "AveragePool":  # as torchvision's AlexNet has it, between sizes that are the same
            if (window, stride) != (1, 1):
                raise Unfit("averages of more than one pixel are none of our layers")
            return
        ceil_mode = self._rounds_up(size, window, stride, 0, out, usual=True)
        self._add(Pool(self._named(node, "pool"), window, stride, ceil_mode))
        self.shape = (maps, out, out)

    def _windows(self, node: _Node, window: int) -> tuple[int, int, int]:
        """Their stride, the padding above and to the left, and their number along an axis."""
        size, stride = self.shape[1], node.square("strides", 1)
        mode, ceil_mode = node.text("auto_pad", "NOTSET"), node.whole("ceil_mode", 0) == 1
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-size // stride) - 1) * stride + window - size, 0)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads = [before, before, total - before, total - before]
        else:
            pads = node.wholes("pads", [0] * 4) if mode == "NOTSET" else [0] * 4
        if self.padded:
            pads = [p + self.padded[k // 2] for k, p in enumerate(pads)]
        if len(pads) != 4 or pads[0] != pads[1] or pads[2] != pads[3] or not 0 <= min(pads) <= max(pads) < 2**31:
            raise Unfit(f"its pads are {pads[:8]}; they must be alike for rows and columns")
        before, end = pads[0], pads[2]
        try:
            out = output_size(size, window, stride, before, end, ceil_mode)
        except ValueError as error:
            raise Unfit(str(error)) from error
        if ceil_mode and (out - 1) * stride >= size + before:  # ONNX leaves out what would begin behind the image
            out -= 1
        return stride, before, out

    def _rounds_up(self, size: int, window: int, stride: int, padding: int, out: int, usual: bool) -> bool:
        """Whether a layer of ours rounds up to have ``out`` windows; what is usual where it makes no difference."""
        for ceil_mode in (usual, not usual):
            try:
                if output_size(size, window, stride, padding, padding, ceil_mode) == out:
                    return ceil_mode
            except ValueError:
                break
        raise Unfit(f"its pads leave room for {out} x {out} windows, which padding of {padding} all around does not")

    def pad(self, node: _Node) -> None:
        self._maps()
        pads = node.wholes("pads", []) if node.has("pads") else self.constants.get(_nth(node, 1)).ravel()[:9].tolist()
        zero = node.number("value", 0) if len(node.inputs) < 3 else self._scalar(node.inputs[2])
        if node.text("mode", "constant") != "constant" or zero or len(node.inputs) > 3:
            raise Unfit("it must pad rows and columns with zeros")
        if len(pads) != 8 or pads[:2] + pads[4:6] != [0] * 4 or pads[2] != pads[3] or pads[6] != pads[7]:
            raise Unfit(f"its pads are {pads[:8]}; they must be alike for rows and columns")
        if not 0 <= min(pads) <= max(pads) < 2**31:
            raise Unfit(f"its pads are {pads[:8]}")
        self.padded = (int(pads[2]), int(pads[6]))

    def _scalar(self, name: str) -> float:
        values = self.constants.get(name) if name else np.zeros(1)
        if values.size != 1:
            raise Unfit(f"{short(name)} must be one number, and is {values.size}")
        return float(values.reshape(-1)[0])

    def activation(self, node: _Node) -> None:
        last = self.layers[-1] if self.layers else None
        if not self.open or not isinstance(last, (Conv, Linear)):
            raise Unfit("an activation must be right behind a Conv, Gemm or MatMul")
        self.layers[-1] = replace(last, activation=node.op.lower())
        self.open = False

    def lrn(self, node: _Node) -> None:
        self._normalise(node, node, 1)

    def _normalise(self, named: _Node, node: _Node, parts: int) -> None:
        self._maps()
        size, name = node.whole("size", 0), self._named(named, "norm")
        if not 1 <= size <= 2**15 or size % 2 == 0:
            raise Unfit(f"windows of {size} maps: they must be odd, since ONNX has even ones mirrored")
        alpha, beta, k = node.number("alpha", 1e-4), node.number("beta", 0.75), node.number("bias", 1.0)
        self.parts[name] = parts
        self._add(Lrn(name, size, _tidy(alpha / size, size), _tidy(beta), _tidy(k)))

    def split(self, node: _Node) -> None:
        """A normalisation for each tower, and all together again."""
        maps, _ = self._maps()
        parts, axis = len(node.outputs), node.whole("axis", 0)
        sizes = (
            self.constants.get(node.inputs[1]).ravel()[:64].tolist() if _given(node, 1) else node.wholes("split", [])
        )
        if axis not in (1, -3) or maps % parts or (sizes and sizes != [maps // parts] * parts):
            raise Unfit(f"it must cut {maps} maps into {parts} equal parts, and has axis {axis} and sizes {sizes[:8]}")
        inner = [self._only(name, "LRN") for name in node.outputs]
        told = {(one.whole("size", 0), *(one.number(a, -1) for a in ("alpha", "beta", "bias"))) for one in inner}
        joins = [self._only((one.outputs or [""])[0], "Concat") for one in inner]
        if len(told) > 1 or any(join is not joins[0] for join in joins):
            raise Unfit("behind it all parts must have the same LRN, and one Concat")
        join = joins[0]
        if join.inputs != [one.outputs[0] for one in inner] or join.whole("axis", 0) not in (1, -3) or not join.outputs:
            raise Unfit(f"{join.told} must put the maps together in their order")
        if parts > 1:
            self.towers.add(parts)
        self._normalise(node, inner[0], parts)
        self.at = join.outputs[0]

    def _only(self, name: str, op: str) -> _Node:
        readers = self.readers.get(name, [])
        if len(readers) != 1 or readers[0].op != op or not readers[0].standard:
            raise Unfit(f"{short(name)} must be read by one {op} and nothing else")
        return readers[0]

    def gemm(self, node: _Node) -> None:
        if node.op == "Gemm" and node.whole("transA", 0):
            raise Unfit("its first input is transposed, which mixes images")
        weight = self.constants.floats(_nth(node, 1))
        if weight.ndim != 2 or 0 in weight.shape:
            raise Unfit(f"its weights are of shape {list(weight.shape)}; they must be a matrix")
        weight = weight if node.op == "Gemm" and node.whole("transB", 0) else weight.T
        if self.shape != (weight.shape[1],):
            shown = " x ".join(map(str, self.shape))
            raise Unfit(f"weights for {weight.shape[1]} features, and there are {shown}; is there a Flatten?")
        if node.number("alpha", 1) != 1 or node.number("beta", 1) != 1:
            raise Unfit("its alpha and beta must be 1")
        bias = self.constants.floats(node.inputs[2]) if _given(node, 2) else None
        name = self._named(node, "fc")
        self._weights(weight, bias, name)
        self._add(Linear(name, len(weight), activation=None, std=None))
        self.shape = (len(weight),)

    def flatten(self, node: _Node) -> None:
        features = math.prod(self.shape)
        if node.op == "Flatten":
            fits = node.whole("axis", 1) in (1, -len(self.shape))
        else:
            wanted = self.constants.get(_nth(node, 1)).ravel()[:9].tolist()
            first = (0, 1, self.batch) if wanted[1:] == [-1] else (-1, 0, 1, self.batch)
            fits = len(wanted) == 2 and wanted[0] in first and wanted[1] in (-1, features)
        if not fits:
            raise Unfit(f"it must make the features of an image, {features}, one row")
        self.shape, self.open = (features,), False

    def dropout(self, node: _Node) -> None:
        """Of a kind that is scaled in training, and does nothing at test."""
        if _given(node, 2):
            raise Unfit("it may be meant to drop outside of training too; export the model for inference")
        p = self._scalar(node.inputs[1]) if _given(node, 1) else node.number("ratio", 0.5)
        if not 0 <= p < 1:
            raise Unfit(f"it drops with a probability of {p}")
        if p:
            self._add(Dropout(self._named(node, "drop"), _tidy(p), scaled=True))

    def softmax(self, node: _Node) -> None:
        if self.readers.get(node.outputs[0]) or node.whole("axis", -1) not in (1, -1):
            raise Unfit("it must be the last node, over the classes")
        self.notes.append(f"{node.told}: left out; our networks end in what it is taken of")

    def nothing(self, node: _Node) -> None:
        if node.op == "Cast" and node.whole("to", FLOAT) != FLOAT:
            raise Unfit("numbers must become float32")

    def transpose(self, node: _Node) -> None:
        if not self.pixels_last or node.wholes("perm", []) != [0, 3, 1, 2]:
            raise Unfit("only pixels are transposed, to planes of colour")
        self.pixels_last = False

    def arithmetic(self, node: _Node) -> None:
        """A bias, dropout at test, or what pixels go through first."""
        values = self._other(node)
        if not self.layers:
            self._pixels(node, values)
        elif node.op == "Add" and self.open:
            self._add_bias(values, self.layers[-1].name)
        elif node.op == "Mul" and values.size == 1 and 0 < values.reshape(-1)[0] < 1:
            factor = values.reshape(-1)[0]
            self._add(Dropout(self._named(node, "drop"), round(1 - _tidy(float(factor)), 9)))
        else:
            raise Unfit(
                "constants fit as a bias right behind a layer, and as one factor between 0 and 1 (dropout at test)"
            )

    def _pixels(self, node: _Node, values: Values) -> None:
        """(pixel - mean) * scale goes on by one operation."""
        planes = values[0] if values.ndim == 4 and len(values) == 1 else values
        if planes.ndim > 3 or (planes.size > 1 and planes.shape[-3:] not in ((3, 1, 1), self.shape)):
            raise Unfit(f"a constant of shape {list(values.shape)} does not fit images of {list(self.shape)}")
        mean = np.zeros((3, 1, 1), np.float32) if self.mean is None else self.mean
        scale = np.ones((3, 1, 1), np.float32) if self.scale is None else self.scale
        with np.errstate(all="ignore"):
            if node.op in ("Sub", "Add"):
                mean = mean + (planes if node.op == "Sub" else -planes) / scale
            else:
                scale = scale * planes if node.op == "Mul" else scale / planes
        if scale.shape[-3:] not in ((), (3, 1, 1)) or not (np.isfinite(mean).all() and np.isfinite(scale).all()):
            raise Unfit("pixels must be multiplied by finite numbers, one or one for each colour")
        self.mean, self.scale = mean.astype(np.float32), scale.astype(np.float32).reshape(3, 1, 1)


Step = Callable[[_Chain, _Node], None]
STEPS: dict[str, Step] = {
    "Conv": _Chain.conv, "MaxPool": _Chain.pool, "AveragePool": _Chain.pool, "Pad": _Chain.pad,
    "Relu": _Chain.activation, "Tanh": _Chain.activation, "LRN": _Chain.lrn, "Split": _Chain.split,
    "Gemm": _Chain.gemm, "MatMul": _Chain.gemm, "Flatten": _Chain.flatten, "Reshape": _Chain.flatten,
    "Add": _Chain.arithmetic, "Sub": _Chain.arithmetic, "Mul": _Chain.arithmetic, "Div": _Chain.arithmetic,
    "Dropout": _Chain.dropout, "Softmax": _Chain.softmax, "Identity": _Chain.nothing, "Cast": _Chain.nothing,
    "Transpose": _Chain.transpose,
}  # fmt: skip


def _nth(node: _Node, index: int) -> str:
    if not _given(node, index):
        raise Unfit(f"input {index + 1} is missing")
    return str(node.inputs[index])


def _given(node: _Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] != ""


def _tidy(value: float, factor: int = 1) -> float:
    """The shortest decimal number that is the same in float32, times a factor, or the number itself."""
    stored = np.float32(value * factor)
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 9))
    return next((short for short in shorter if np.float32(short * factor) == stored), value)
