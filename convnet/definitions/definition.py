"""Reads a definition file, and the parameter file beside it, into nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from .ini import DefinitionError, Ini, Section, Value, error, shown
from .nodes import (
    Blur,
    Concat,
    Conv,
    Cost,
    Data,
    Definition,
    Dropout,
    EltMax,
    EltSum,
    FullyConnected,
    Href,
    Kernel,
    Local,
    Nailbed,
    Neuron,
    Node,
    Norm,
    Pool,
    Rate,
    Schedule,
    Softmax,
    Source,
    TreeFC,
    Unknown,
    Weighted,
)

LARGEST = 10**6  # of what is counted
LARGEST_REAL = 1e30  # float32 can take it
MOST_INPUTS = 100  # of a layer
YES, NO = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
# How many numbers stand in brackets behind the name.
NEURONS = {
    "ident": 0, "logistic": 0, "relu": 0, "nrelu": 0, "brelu": 1, "tanh": 2, "abs": 0, "square": 0, "sqrt": 0,
    "linear": 2, "softrelu": 0, "drelu": 1, "log": 1,
}  # fmt: skip
SCHEDULES = ("linear", "exp", "dexp", "jdexp")
STEPPED = ("dexp", "jdexp")
COSTS = ("logreg", "sum2", "crossent", "crossent2", "rflickr", "gsum2", "tica", "msm", "bce", "dce")
# Types of those programs, and of their forks, that no published file has.
OTHERS = (
    "resize", "rscale", "rgb2yuv", "rgb2lab", "crop", "sum", "sfc", "cmpool", "union", "fcdropo", "fcdropc", "fcdropcf",
)  # fmt: skip
# What the programs can do to weights, or links, and we cannot.
CONSTRAINTS = {
    "wball": "a limit of every filter's norm",
    "wcNormMin": "a least spread of every filter",
    "wcNormMax": "a largest spread of every filter",
}
SUPER = {"superEps": "rates divided by the gradient's spread", "superMom": "averages of that spread"}
LINKS = {"quantF": "activations rounded between devices", "quantB": "gradients rounded between devices"}
# Keys of programs older than the one that the files are read by, and what ignoring them comes to.
LOST = {"sched": "rates stay constant; the program that knew this key is lost, schedW and schedB came after it"}
NAME = re.compile(r"[!-+\--~]{1,100}")  # printable, without spaces and commas


class _Keys:
    """The values of a section, checked as they are asked for."""

    def __init__(self, section: Section, what: str, inputs: int, repeat: bool) -> None:
        self.section, self.what = section, what
        self.inputs, self.repeat = inputs, repeat
        self.asked: set[str] = set()

    def wrong(self, key: str, value: Value, rule: str) -> DefinitionError:
        return error(value.file, value.line, f"[{self.section.name}] {key}={shown(value.text)}: {rule}")

    def refuse(self, rule: str) -> DefinitionError:
        return error(self.section.file, self.section.line, f"[{self.section.name}] {rule}")

    def get(self, key: str) -> Value | None:
        self.asked.add(key.lower())
        return self.section.get(key.lower())

    def need(self, key: str) -> Value:
        value = self.get(key)
        if value is None:
            raise self.refuse(f"has no {key}, which {self.what} needs")
        return value

    def whole(self, key: str, low: int, default: int | None = None) -> int:
        value = self.need(key) if default is None else self.get(key)
        return default if value is None and default is not None else self._whole(key, value, low)

    def real(self, key: str, default: float | None = None, low: float = -LARGEST_REAL) -> float:
        value = self.need(key) if default is None else self.get(key)
        return default if value is None and default is not None else self._real(key, value, low)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self.need(key) if default is None else self.get(key)
        if value is None:
            return bool(default)
        if value.text.lower() in YES + NO:
            return value.text.lower() in YES
        raise self.wrong(key, value, f"must be one of {', '.join(YES + NO)}")

    def wholes(self, key: str, low: int, default: int | None = None) -> tuple[int, ...]:
        """One for each input."""
        found = self.listed(key, needed=default is None)
        return (default or 0,) * self.inputs if found is None else tuple(self._whole(key, v, low) for v in found)

    def reals(self, key: str, default: float | None = None, low: float = -LARGEST_REAL) -> tuple[float, ...]:
        """One for each input."""
        found = self.listed(key, needed=default is None)
        return (default or 0.0,) * self.inputs if found is None else tuple(self._real(key, v, low) for v in found)

    def flags(self, key: str) -> tuple[bool, ...]:
        """One for each input; false where nothing is said, or anything but true and 1."""
        found = self.listed(key, needed=False)
        return (False,) * self.inputs if found is None else tuple(v.text.lower() in ("true", "1") for v in found)

    def listed(self, key: str, *, needed: bool) -> list[Value] | None:
        value = self.need(key) if needed else self.get(key)
        if value is None:
            return None
        found = split(value)
        if len(found) == 1 and self.repeat:
            return found * self.inputs
        if len(found) != self.inputs:
            rule = f"has {len(found)} entries for {self.inputs} inputs" + (", one serves all" if self.repeat else "")
            raise self.wrong(key, value, rule)
        return found

    def _whole(self, key: str, value: Value | None, low: int) -> int:
        assert value is not None
        if re.fullmatch(r"[+-]?\d{1,9}", value.text, re.ASCII) and low <= int(value.text) <= LARGEST:
            return int(value.text)
        raise self.wrong(key, value, f"must be a whole number from {low} to {LARGEST:,}")

    def _real(self, key: str, value: Value | None, low: float = -LARGEST_REAL) -> float:
        assert value is not None
        number = real(value.text)
        if number is None or number < low:
            raise self.wrong(key, value, "must be a number" + (f" from {low:g} on" if low > -LARGEST_REAL else ""))
        return number


def split(value: Value) -> list[Value]:
    """The entries of a list."""
    return [Value(text.strip(), value.file, value.line) for text in value.text.split(",")]


def real(text: str) -> float | None:
    """A number that float32 can take."""
    if re.fullmatch(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?", text, re.ASCII):
        number = float(text)
        return number if abs(number) <= LARGEST_REAL else None
    return None


class _Notes:
    """Sentences, each once, with the first line that it is about and the layers."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[tuple[int, str]]] = {}

    def add(self, file: str, line: int, layer: str, text: str) -> None:
        self.found.setdefault((file, text), []).append((line, layer))

    def sentences(self) -> Iterator[str]:
        for (file, text), places in self.found.items():
            names = [f"[{name}]" for _, name in places]
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            yield f"{file}, line {min(line for line, _ in places)}: {some}: {text}"


class _Layer(NamedTuple):
    """A section of the definition file, and what it is read with."""

    keys: _Keys
    params: _Keys | None  # None where there is no parameter file
    dialect: str
    common: dict[str, Any]  # what a Node has
    notes: _Notes

    def limit(self, text: str) -> None:
        """A rule of their kernels that ours do not have."""
        section = self.keys.section
        self.notes.add(section.file, section.line, section.name, f"{text}, which its program refused; here it is built")

    def unbuilt(self, key: str, what: str, value: Value) -> None:
        text = f"{key}, {what}, is not built: training goes on without"
        self.notes.add(value.file, value.line, self.keys.section.name, text)


def described(layers: Ini, params: Ini | None = None) -> Definition:
    """The network that the two files describe; without the second, rates are None.

    Raises ``DefinitionError`` for what no layer can be, and where something is missing that one needs.
    """
    for section in layers.sections.values():
        if not NAME.fullmatch(section.name):
            raise error(section.file, section.line, f"{shown(section.name)} is no name of a layer")
    network = _Network(layers, params, _dialect(layers))
    for section in layers.sections.values():
        network.add(section)
    for name, line in network.unread.items():
        raise error(layers.file, line, f"[{name}] is read by no layer and is no cost")
    if not network.nodes:
        raise DefinitionError(f"{layers.file}: has no layer")
    return Definition(
        layers.file,
        None if params is None else params.file,
        network.dialect,
        tuple(network.nodes.values()),
        tuple(network.told()),
        () if params is None else params.comments,
    )


class _Network:
    """What has been read so far."""

    def __init__(self, layers: Ini, params: Ini | None, dialect: str) -> None:
        self.layers, self.params, self.dialect = layers, params, dialect
        self.nodes: dict[str, Node] = {}
        self.outputs: dict[str, str] = {}  # by a section's name, the node that its users read
        self.unread: dict[str, int] = {}  # sections without a user so far, with their lines
        self.keys: list[_Keys] = []
        self.notes = _Notes()

    def add(self, section: Section) -> None:
        type_, names = _type(section), self._inputs(section)
        keys = _Keys(section, type_, len(names), self.dialect == "C2")
        build = _cost if type_.startswith("cost.") and type_[5:] in COSTS else _BUILDERS.get(type_)
        if build is None:
            known = ", ".join([*_BUILDERS, *(f"cost.{kind}" for kind in COSTS)])
            raise keys.refuse(f"type={shown(type_)} is no type; known: {known}")
        if (type_ == "data") != (not names):
            rule = "reads nothing, and has inputs" if names else "has no inputs, which every layer but data needs"
            raise keys.refuse(f"({type_}) {rule}")
        keys.asked |= {"type", "inputs"}
        gpu = keys.get("gpu")
        common = {
            "name": section.name,
            "line": section.line,
            "inputs": tuple(self.outputs[name] for name in names),
            "gpu": () if gpu is None else tuple(keys._whole("gpu", entry, -1) for entry in split(gpu)),
        }
        params = _params_of(type_, self.params, keys, self.dialect)
        layer = _Layer(keys, params, self.dialect, common, self.notes)
        node = build(layer)
        _check_inputs(node, self.nodes, keys)
        for key, what in LINKS.items() if params else ():
            if params and (value := params.get(key)) is not None and value.text != "default":
                layer.unbuilt(key, what, value)
        self.keys += [keys, params] if params else [keys]
        if not isinstance(node, Cost):
            self.unread[section.name] = section.line
        if isinstance(node, Neuron) and node.kind == "ident":
            self.outputs[section.name] = node.inputs[0]
            return
        self.nodes[section.name] = node
        self.outputs[section.name] = section.name
        if not isinstance(node, (Data, Neuron, Cost)) and (value := keys.get("neuron")) is not None:
            self._detach(_neuron(value, keys), value, keys)

    def _inputs(self, section: Section) -> list[str]:
        value = section.get("inputs")
        names = [] if value is None else [entry.text for entry in split(value)]
        for name in names[: MOST_INPUTS + 1]:
            if name not in self.outputs or isinstance(self.nodes.get(name), Cost):
                where = (
                    "a cost" if name in self.nodes else "not above it" if name in self.layers.sections else "nowhere"
                )
                raise error(section.file, section.line, f"[{section.name}] reads {shown(name)}, which is {where}")
            self.unread.pop(name, None)
        if len(names) > MOST_INPUTS:
            raise error(
                section.file, section.line, f"[{section.name}] has {len(names):,} inputs, more than {MOST_INPUTS}"
            )
        return names

    def _detach(self, neuron: Neuron, value: Value, keys: _Keys) -> None:
        """A node behind the layer ``neuron.name``, which all its users read."""
        if neuron.kind == "ident":
            return
        name = f"{neuron.name}_neuron"
        if name in self.layers.sections:
            raise keys.wrong("neuron", value, f"it would be called {name}, as another layer is")
        self.nodes[name] = replace(neuron, name=name, line=value.line, inputs=(neuron.name,))
        self.outputs[neuron.name] = name

    def told(self) -> Iterator[str]:
        """The notes, with those about what no layer has asked for."""
        for keys in self.keys:
            for key, value in keys.section.values.items():
                if key not in keys.asked:
                    text = f"{shown(key)} is ignored: {LOST.get(key, 'such layers have no such key')}"
                    self.notes.add(value.file, value.line, keys.section.name, text)
        for name, section in self.params.sections.items() if self.params else ():
            if name not in self.layers.sections:
                self.notes.add(section.file, section.line, shown(name)[1:-1], "no layer is called so; ignored")
        return self.notes.sentences()


def _dialect(layers: Ini) -> str:
    keys = {key for section in layers.sections.values() for key in section.values} | layers.defaults.keys()
    types = {_type(section) for section in layers.sections.values()}
    if "sumwidth" in keys or types & {"pass", "dropout", "dropout2"}:
        return "C2"
    return "A" if "gpu" in keys or types & {"hs", "treefc"} else "V1"


def _type(section: Section) -> str:
    value = section.get("type")
    if value is None:
        raise error(section.file, section.line, f"[{section.name}] has no type, which every layer needs")
    return value.text


def _params_of(type_: str, params: Ini | None, keys: _Keys, dialect: str) -> _Keys | None:
    """The layer's section of the parameter file: an empty one where it has none and needs none."""
    if params is None:
        return None
    section = params.sections.get(keys.section.name)
    if section is None:
        needs = type_ in ("conv", "local", "fc", "treefc", "hs", "dropout", "dropout2") or type_.startswith("cost.")
        needs |= type_ in NORMS and keys.section.get("sizex") is None
        needs |= type_ == "pool" and keys.need("pool").text == "rand"
        if needs or (type_ == "eltsum" and dialect == "C2"):
            raise keys.refuse(f"has no section in {params.file}, which {type_} needs")
        section = Section(keys.section.name, params.file, 0, {}, params.defaults)
    return _Keys(section, type_, keys.inputs, dialect == "C2")


def _check_inputs(node: Node, made: dict[str, Node], keys: _Keys) -> None:
    """How many a layer reads, and what the labels are compared with."""
    count = len(node.inputs)
    single = isinstance(node, (TreeFC, Pool, Norm, Neuron, Dropout, Softmax, Blur, Nailbed, Href))
    if single and count != 1:
        raise keys.refuse(f"({keys.what}) reads one layer, got {count}")
    if isinstance(node, EltMax) and count < 2:
        raise keys.refuse(f"({keys.what}) reads two layers or more, got {count}")
    if isinstance(node, Cost) and node.kind == "logreg":
        if count != 2:
            raise keys.refuse(f"({keys.what}) reads labels and a softmax, got {count} inputs")
        if not isinstance(made.get(node.inputs[1]), Softmax):
            raise keys.refuse(f"({keys.what}) reads {node.inputs[1]}, which is no softmax, as its second input")
    for source in node.weight_sources if isinstance(node, Weighted) else ():
        owner = node if source and source.layer == node.name else made.get(source.layer) if source else None
        if source is None:
            continue
        if not isinstance(owner, Weighted) or source.index >= len(owner.inputs):
            raise keys.refuse(
                f"weightSource: no {shown(source.layer)} with weights for an input {source.index} is above it"
            )


# ---- a function for each type ----


def _data(layer: _Layer) -> Node:
    keys = layer.keys
    end = keys.get("end")
    stop = None if end is None else keys.whole("end", 1)
    start = keys.whole("start", 0, 0)
    if stop is not None and stop <= start:
        raise keys.refuse(f"has no rows from start={start} to end={stop}")
    return Data(**layer.common, index=keys.whole("dataIdx", 0), start=start, end=stop)


def _weighted(layer: _Layer) -> dict[str, Any]:
    """What all layers with weights have."""
    keys = layer.keys
    sources = keys.listed("weightSource", needed=False) or []
    fields: dict[str, Any] = {
        **layer.common,
        "init_b": keys.real("initB", 0.0),
        "weight_sources": tuple(_source(entry, keys) for entry in sources) or (None,) * keys.inputs,
        "weights_from": _checkpoint(keys, "initWFunc", "initw.makew"),
        "bias_from": _checkpoint(keys, "initBFunc", "initw.makeb"),
    }
    if layer.params is not None:
        fields |= _rates(layer, layer.params)
    return fields


def _source(value: Value, keys: _Keys) -> Source | None:
    if not value.text:
        return None
    found = re.fullmatch(r"([^\[\]]+)(?:\[(\d{1,6})\])?", value.text, re.ASCII)
    if found is None:
        raise keys.wrong("weightSource", value, "must be LAYER or LAYER[INPUT]")
    return Source(found[1], int(found[2] or 0))


def _checkpoint(keys: _Keys, key: str, known: str) -> str | None:
    """The layer that a function of the published files takes from a checkpoint. No function is ever run."""
    value = keys.get(key)
    if value is None:
        return None
    found = re.fullmatch(rf"{re.escape(known)}\(\s*([^(),\s]+)\s*\)", value.text)
    if found is None or not NAME.fullmatch(found[1]):
        raise keys.wrong(key, value, f"names a Python function, which is not run; {known}(LAYER) alone is understood")
    return found[1]


def _rates(layer: _Layer, params: _Keys) -> dict[str, Any]:
    momentum = params.reals("momW", low=0.0)
    decay = params.reals("wc", None if layer.dialect == "V1" else 0.0, low=0.0)
    sched_w, sched_b = _schedule_of(params, "schedW"), _schedule_of(params, "schedB")
    weights = [_eps(params, "epsW", value) for value in params.listed("epsW", needed=True) or []]
    eps, falling = _eps(params, "epsB", params.need("epsB"))
    for key, what in CONSTRAINTS.items():
        if (value := params.get(key)) is not None and any(params.reals(key)):
            layer.unbuilt(key, what, value)
    for key, what in SUPER.items():
        if (value := params.get(key)) is not None and params.real(key):
            layer.unbuilt(key, what, value)
    if (value := params.get("updatePeriod")) is not None and any(
        period > 1 for period in params.wholes("updatePeriod", 0)
    ):
        layer.unbuilt("updatePeriod", "an update every so many minibatches", value)
    return {
        "weights": tuple(
            Rate(rate, mom, wc, own or sched_w) for (rate, own), mom, wc in zip(weights, momentum, decay, strict=True)
        ),
        "bias": Rate(eps, params.real("momB", low=0.0), 0.0, falling or sched_b),
    }


def _eps(params: _Keys, key: str, value: Value) -> tuple[float, Schedule | None]:
    """A rate: a number, or cuda-convnet2's NAME[base=..;tgtFactor=..;numSteps=..]."""
    if "[" not in value.text:
        return params._real(key, value, 0.0), None
    kind, entries = _bracket(params, key, value, ";")
    named = _named(params, key, value, entries, ("base", "tgtfactor", "numsteps"))
    if named.get("base", -1.0) < 0:
        raise params.wrong(key, value, "needs a base that is not negative")
    return named["base"], _schedule(params, key, value, kind, named.get("tgtfactor"), 0.0, named.get("numsteps"))


def _schedule_of(params: _Keys, key: str) -> Schedule | None:
    """``schedW`` and ``schedB``: keyed; or positional, as in files that are older than the keys."""
    value = params.get(key)
    if value is None or value.text == "default":
        return None
    kind, entries = _bracket(params, key, value, ",")
    if any("=" in entry for entry in entries):
        named = _named(params, key, value, entries, ("tgtfactor", "noisestdev", "numsteps"))
        target, noise, steps = (named.get(name) for name in ("tgtfactor", "noisestdev", "numsteps"))
    else:
        numbers = [number for number in map(real, entries) if number is not None]
        if len(numbers) < len(entries) or len(numbers) > 3:
            raise params.wrong(key, value, "needs one to three numbers: target factor, noise, steps")
        target, *rest = numbers
        steps = rest.pop() if rest and kind in STEPPED else None
        noise = rest.pop() if rest else None
        if rest:
            raise params.wrong(key, value, f"has three numbers, and {kind} has no steps")
    return _schedule(params, key, value, kind, target, noise or 0.0, steps)


def _bracket(params: _Keys, key: str, value: Value, separator: str) -> tuple[str, list[str]]:
    found = re.fullmatch(r"(\w+)\s*\[([^\[\]]*)\]", value.text)
    if found is None:
        raise params.wrong(key, value, "must be default or NAME[...]")
    return found[1], [entry.strip() for entry in found[2].split(separator)]


def _named(params: _Keys, key: str, value: Value, entries: list[str], known: tuple[str, ...]) -> dict[str, float]:
    named: dict[str, float] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        name, number = name.strip().lower(), real(text.strip())
        if not equals or name not in known or name in named or number is None:
            raise params.wrong(
                key, value, f"has the entry {shown(entry)}; known are {', '.join(known)}, each with a number"
            )
        named[name] = number
    return named


def _schedule(
    params: _Keys, key: str, value: Value, kind: str, target: float | None, noise: float, steps: float | None
) -> Schedule | None:
    if kind in ("const", "default"):
        return None
    if kind not in SCHEDULES:
        raise params.wrong(key, value, f"{shown(kind)} is no schedule; known: default, const, {', '.join(SCHEDULES)}")
    if target is None or not 1e-9 <= target <= 1e9 or not 0 <= noise <= 1e9:
        raise params.wrong(key, value, f"{kind} needs a target factor above 0, and noise that is not negative")
    if kind not in STEPPED:
        if steps is not None:
            raise params.wrong(key, value, f"{kind} has no steps")
        return Schedule(kind, target, noise)
    if steps is None or steps != int(steps) or not 2 <= steps <= LARGEST:
        raise params.wrong(key, value, f"{kind} needs a whole number of steps from 2 on")
    return Schedule(kind, target, noise, int(steps))


def _kernels(layer: _Layer) -> tuple[Kernel, ...]:
    keys = layer.keys
    channels, filters, size = keys.wholes("channels", 1), keys.wholes("filters", 1), keys.wholes("filterSize", 1)
    padding, stride, groups = keys.wholes("padding", 0, 0), keys.wholes("stride", 1, 1), keys.wholes("groups", 1, 1)
    sparse, std = keys.flags("randSparse"), keys.reals("initW")
    drawn = keys.wholes("filterChannels", 1) if keys.get("filterChannels") is not None else None
    found = []
    for i, (c, f, g) in enumerate(zip(channels, filters, groups, strict=True)):
        where = f"input {i}: " if len(channels) > 1 else ""
        if c % g:
            raise keys.refuse(f"{where}{c} channels cannot be cut into {g} groups")
        own = drawn[i] if drawn is not None and sparse[i] else c // g
        if sparse[i] and (g == 1 or own > c or c % own or (g * own) % c):
            raise keys.refuse(
                f"{where}randSparse with {g} groups of filterChannels={own} of {c} channels: needs groups, a "
                "divisor of the channels, and every channel equally often"
            )
        if (c > 3 and c % 4) or (g > 1 and c % (4 * g)):
            layer.limit(f"{where}{c} channels in {g} groups, not four by four in each")
        if f % 16:
            layer.limit(f"{where}{f} filters in a group, not a multiple of 16")
        found.append(Kernel(c, f, size[i], padding[i], stride[i], g, own, sparse[i], std[i]))
    if len({kernel.filters * kernel.groups for kernel in found}) > 1:
        totals = ", ".join(f"{kernel.filters} x {kernel.groups}" for kernel in found)
        raise keys.refuse(f"filters x groups differ between its inputs ({totals}), whose outputs are added")
    return tuple(found)


def _conv(layer: _Layer) -> Node:
    keys = layer.keys
    keys.whole("sumWidth" if layer.dialect == "C2" else "partialSum", 0)  # how their sums were cut: no other result
    return Conv(
        **_weighted(layer),
        kernels=_kernels(layer),
        tied=keys.flag("sharedBiases", True),
        modules=keys.whole("modulesX", 0, 0) if layer.dialect == "C2" else 0,
        connections_from=_checkpoint(keys, "initCFunc", "initw.makec"),
    )


def _local(layer: _Layer) -> Node:
    made_by = _checkpoint(layer.keys, "initCFunc", "initw.makec")
    return Local(**_weighted(layer), kernels=_kernels(layer), tied=False, connections_from=made_by)


def _fc(layer: _Layer) -> Node:
    return FullyConnected(**_weighted(layer), outputs=layer.keys.whole("outputs", 1), std=layer.keys.reals("initW"))


def _treefc(layer: _Layer) -> Node:
    return TreeFC(**_weighted(layer), std=layer.keys.reals("initW"))


def _pool(layer: _Layer) -> Node:
    keys = layer.keys
    value = keys.need("pool")
    if value.text not in ("max", "avg", "maxabs", "rand"):
        raise keys.wrong("pool", value, "must be max, avg, maxabs or rand")
    kind = "sum" if value.text == "avg" and layer.dialect == "C2" and keys.flag("sum", False) else value.text
    size, stride = keys.whole("sizeX", 1), keys.whole("stride", 1)
    if stride > size:
        raise keys.refuse(f"stride={stride} leaves out pixels between windows of sizeX={size}")
    return Pool(
        **layer.common,
        kind=kind,
        channels=keys.whole("channels", 1),
        size=size,
        stride=stride,
        start=keys.whole("start", -LARGEST, 0),
        outputs=keys.whole("outputsX", 0, 0),
        do_max=kind == "rand" and layer.params is not None and layer.params.flag("doMax", False),
    )


def _norm(layer: _Layer) -> Node:
    keys, kind, params = layer.keys, layer.keys.what, layer.params
    channels = keys.whole("channels", 1)
    old = keys.get("size") is None and keys.get("sizeX") is not None  # before June 2012 all of it stood here
    size = keys.whole("sizeX" if old else "size", 1)
    if kind == "cmrnorm" and not 2 <= size <= channels:
        raise keys.refuse(f"size={size}: must be from 2 to the number of channels, {channels}")
    if kind == "cmrnorm" and channels % 16:
        layer.limit(f"{channels} channels, not a multiple of 16")
    scale = power = minimum = None
    if old and (params is None or params.get("scale") is None):
        scale, power, minimum = keys.real("scale", low=0.0), keys.real("pow"), 1.0
    elif params is not None:
        scale, power, minimum = params.real("scale", low=0.0), params.real("pow"), 1.0
        if layer.dialect == "C2" or (layer.dialect == "A" and kind == "cmrnorm"):
            minimum = params.real("minDiv", 1.0)
    if minimum is not None and minimum <= 0:
        raise keys.refuse(f"minDiv={minimum:g} must be above 0")
    return Norm(
        **layer.common,
        kind=kind,
        channels=channels,
        size=size,
        blocked=keys.flag("blocked", False),
        scale=scale,
        pow=power,
        min_div=minimum,
    )


def _neuron(value: Value, keys: _Keys) -> Neuron:
    found = re.fullmatch(r"(\w+)(?:\[([^\[\]]*)\])?", value.text, re.ASCII)
    numbers = [] if found is None or found[2] is None else [real(entry.strip()) for entry in found[2].split(",")]
    if found is None or NEURONS.get(found[1]) != len(numbers) or None in numbers:
        known = ", ".join(name + ("", "[a]", "[a,b]")[count] for name, count in NEURONS.items())
        raise keys.wrong("neuron", value, f"is no neuron; known: {known}")
    a, b = [*numbers, None, None][:2]
    return Neuron(name=keys.section.name, line=keys.section.line, kind=found[1], a=a, b=b)


def _neuron_layer(layer: _Layer) -> Node:
    return replace(_neuron(layer.keys.need("neuron"), layer.keys), **layer.common)


def _dropout(layer: _Layer) -> Node:
    keys, params = layer.keys, layer.params
    if keys.what == "hs":
        keep, enabled = keys.real("keep"), params is None or params.flag("enable")
    else:
        keep, enabled = (0.5, True) if params is None else (params.real("keep", 0.5), params.flag("enable", True))
    if not 0 < keep <= 1:
        raise keys.refuse(f"keep={keep:g} must be above 0 and at most 1")
    return Dropout(**layer.common, keep=keep, enabled=enabled, scaled=keys.what == "dropout")


def _softmax(layer: _Layer) -> Node:
    return Softmax(**layer.common)


def _eltsum(layer: _Layer) -> Node:
    holder = layer.params if layer.dialect == "C2" else layer.keys
    return EltSum(**layer.common, coeffs=None if holder is None else holder.reals("coeffs", 1.0))


def _eltmax(layer: _Layer) -> Node:
    return EltMax(**layer.common)


def _concat(layer: _Layer) -> Node:
    return Concat(**layer.common)


def _blur(layer: _Layer) -> Node:
    keys = layer.keys
    size, std = keys.whole("filterSize", 1), keys.real("stdev")
    if size not in (3, 5, 7, 9) or std <= 0:
        raise keys.refuse(f"filterSize={size}, stdev={std:g}: must be 3, 5, 7 or 9, and above 0")
    return Blur(**layer.common, channels=keys.whole("channels", 1), size=size, std=std)


def _nailbed(layer: _Layer) -> Node:
    return Nailbed(**layer.common, channels=layer.keys.whole("channels", 1), stride=layer.keys.whole("stride", 1))


def _href(layer: _Layer) -> Node:
    return Href(**layer.common, channels=layer.keys.whole("channels", 1))


def _cost(layer: _Layer) -> Node:
    coeff, topk = None, 1
    if layer.params is not None:
        coeff, topk = layer.params.real("coeff"), layer.params.whole("topk", 1, 1)
    return Cost(**layer.common, kind=layer.keys.what.removeprefix("cost."), coeff=coeff, topk=topk)


def _unknown(layer: _Layer) -> Node:
    layer.keys.asked |= layer.keys.section.values.keys()
    if layer.params is not None:
        layer.params.asked |= layer.params.section.values.keys()
    return Unknown(**layer.common, type=layer.keys.what)


NORMS = ("cmrnorm", "rnorm", "cnorm")
_BUILDERS: dict[str, Callable[[_Layer], Node]] = {
    "data": _data, "conv": _conv, "local": _local, "fc": _fc, "treefc": _treefc, "pool": _pool,
    "rnorm": _norm, "cnorm": _norm, "cmrnorm": _norm, "neuron": _neuron_layer, "hs": _dropout, "dropout": _dropout,
    "dropout2": _dropout, "softmax": _softmax, "eltsum": _eltsum, "eltmax": _eltmax, "concat": _concat,
    "pass": _concat, "blur": _blur, "nailbed": _nailbed, "href": _href, **dict.fromkeys(OTHERS, _unknown),
}  # fmt: skip
