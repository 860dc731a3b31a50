"""What ``convnet-info --layer-def`` tells: the network that a definition file becomes here, and where it lies there."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..definitions import columns, files, nodes, start
from ..definitions.ini import DefinitionError
from ..network.defined import Defined, as_far_as_built, defined, not_built
from ..network.spec import IMAGES, NetworkSpec, Placed, paces, placed_layers
from ..network.words import described
from ..output.files import printable

PROGRAMS = {"V1": "cuda-convnet", "A": "the program of 2012", "C2": "cuda-convnet2"}
COSTS = {
    "softmax": "cross-entropy of the softmax of",
    "squares": "squares of",
    "squared-error": "squared error of",
    "cross-entropy": "cross-entropy of",
    "log-squared-error": "logarithm of 1 + squared error of",
}
TIMES, UNBROKEN = "\N{MULTIPLICATION SIGN}", "\N{NO-BREAK SPACE}"


def report(layer_def: str, layer_params: str | None, crop: int | None, from_start: bool) -> dict[str, Any]:
    """Everything there is to say of the files, as JSON types. Layers that are not built are told of, and left out of
    the table with those that read them. ``crop`` None is the side that is usual for such files.

    Raises ``DefinitionError`` for files that cannot be read, and for what no layer can be.
    """
    definition = files.read(Path(layer_def), None if layer_params is None else Path(layer_params))
    state = start.final_state(definition)
    refused = not_built(definition)
    begun = start.from_start(definition) if from_start else definition
    try:
        found = as_far_as_built(begun, crop) if refused else defined(begun, crop)
    except DefinitionError as wrong:
        if refused:
            raise
        refused, found = [str(wrong)], as_far_as_built(begun, crop)
    spec = found.spec
    layers = placed_layers(spec)
    own = _of_the_file(found)
    return {
        "file": definition.file,
        "parameter_file": definition.parameter_file,
        "program": PROGRAMS[definition.dialect],
        "crop": spec.crop,
        "crop_is_usual": crop is None,
        "towers": spec.towers,
        "layers": [
            {
                "name": one.layer.name,
                "what": described(one, spec.towers),
                "inputs": _inputs(one, layers),
                "output": [one.K, one.P, one.Q] if one.P > 1 else [one.K],
                "parameters": one.parameters,
                "multiply_adds": one.macs,
                "of": own[one.layer.name],
            }
            for one in layers
        ],
        "parameters": sum(one.parameters for one in layers),
        "multiply_adds": sum(one.macs for one in layers),
        "costs": _costs(spec) if not refused else [],
        "others": [] if refused else [n.name for n in definition.nodes if n.name not in found.layers],
        "not_built": refused,
        "misnamed": columns.misnamed(definition),
        "notes": list(definition.notes),
        "final_state": None if state is None else state.sentence,
        "from_start": from_start,
        "rates": [] if layer_params is None else _rates(spec),
    }


def _of_the_file(found: Defined) -> dict[str, list[dict[str, Any]]]:
    """By our layer, the file's that it consists of: name, tower (from 1; None where it is in none), GPUs."""
    gpus = columns.columns(found.definition)
    own: dict[str, list[dict[str, Any]]] = {layer.name: [] for layer in found.spec.layers}
    widths = {name: 1 + max(c for n, c in found.layers.values() if n == name) for name, _ in found.layers.values()}
    for node in found.definition.nodes:
        if node.name not in found.layers:
            continue
        (name, column), called = found.layers[node.name], node.name
        if isinstance(node, nodes.Neuron) and called == f"{node.inputs[0]}_neuron":  # no section of its own
            called = f"neuron of {node.inputs[0]}"
            if found.layers.get(node.inputs[0]) == (name, column):
                continue
        tower = column + 1 if widths[name] > 1 else None
        own[name].append({"name": called, "tower": tower, "gpus": list(gpus[node.name])})
    return {name: sorted(parts, key=lambda part: part["tower"] or 0) for name, parts in own.items()}


def _inputs(one: Placed, layers: Sequence[Placed]) -> list[str]:
    return [IMAGES if place < 0 else layers[place].layer.name for place in one.inputs]


def _costs(spec: NetworkSpec) -> list[dict[str, Any]]:
    alone = [("softmax", spec.layers[-1].name, 1.0)] if spec.layers else []
    costs = [(cost.kind, cost.input, cost.coefficient) for cost in spec.costs] or alone
    return [{"kind": kind, "of": of, "coefficient": coefficient} for kind, of, coefficient in costs]


def _rates(spec: NetworkSpec) -> list[dict[str, Any]]:
    """What tensors learn with, those that have the same together."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    base = spec.defaults
    for name, pace in paces(spec):
        numbers = base.lr * pace.lr, base.momentum * pace.momentum, base.weight_decay * pace.decay
        alike.setdefault((*(float(f"{number:.6g}") for number in numbers), pace.schedule), []).append(name)
    keys = ("rate", "momentum", "decay", "schedule")
    return [{**dict(zip(keys, rates, strict=True)), "tensors": names} for rates, names in alike.items()]


def as_text(found: dict[str, Any], width: int) -> str:
    """The report for a terminal of ``width`` columns."""
    side = f"{found['crop']} {TIMES} {found['crop']}"
    usual = ", as is usual for such files (--crop N for others)" if found["crop_is_usual"] else ""
    lines = [
        f"{found['file']}, a network of {found['program']}",
        f"images of 3 {TIMES} {side} pixels{usual}",
    ]
    if found["towers"] > 1:
        lines.append(f"{found['towers']} towers: what a layer consists of in the file is in their order")
    if found["layers"]:
        lines += ["", *_table(found, width)]
    if found["costs"]:
        lines.append("")
    for cost in found["costs"]:
        times = "" if cost["coefficient"] == 1 else f"{cost['coefficient']:g} times the "
        lines.append(f"cost: {times}{COSTS.get(cost['kind'], cost['kind'] + ' of')} {cost['of']}")
    if found["others"]:
        lines += _wrapped(f"no layers of their own here: {', '.join(found['others'])}", width, "  ")
    sections = {
        "not built here, nor what reads it" if found["layers"] else "not built here": found["not_built"],
        "what layers really are": found["misnamed"],
        "notes": found["notes"],
        "rates": [_rate(one) for one in found["rates"]],
    }
    if found["final_state"]:
        how = "the rates above are those" if found["from_start"] else "--from-start begins so"
        sections["the parameter file"] = [f"{found['final_state']}; {how}"]
    for title, sentences in sections.items():
        if sentences:
            lines += ["", title]
            for sentence in sentences:
                lines += _wrapped(f"  {sentence.removeprefix(found['file'] + ', ')}", width, "    ")
    return "\n".join(map(printable, lines))


def _table(found: dict[str, Any], width: int) -> list[str]:
    """A line of numbers for every layer, and one of words."""
    rows = [("layer", "output", "parameters", "multiply-adds", "in the file")]
    for layer in found["layers"]:
        parts = ", ".join((part["name"] + _on(part["gpus"])).replace(" ", UNBROKEN) for part in layer["of"])
        size = f" {TIMES} ".join(map(str, layer["output"]))
        counts = (f"{layer[key]:,}" if layer["parameters"] else "" for key in ("parameters", "multiply_adds"))
        rows.append((layer["name"], size, *counts, parts))
    rows.append(
        (
            "in these" if found["not_built"] else "in all",
            "",
            f"{found['parameters']:,}",
            f"{found['multiply_adds']:,}",
            "",
        )
    )
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    before = None
    for row, layer in zip(rows, [None, *found["layers"], None], strict=True):
        name, size, parameters, adds = (
            cell.rjust(w) if k > 1 else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=False))
        )
        start = f"{name}  {size}  {parameters}  {adds}  "
        first, *more = textwrap.wrap(row[-1], max(width - len(start), 24), break_long_words=False) or [""]
        lines += [start + first, *(" " * len(start) + line for line in more)]
        if layer is not None:
            reads = "" if layer["inputs"] == [before or IMAGES] else f"; reads {', '.join(layer['inputs'])}"
            indent = " " * (widths[0] + 2)
            lines += _wrapped(indent + layer["what"] + reads, width, indent)
            before = layer["name"]
    return [line.replace(UNBROKEN, " ").rstrip() for line in lines]


def _on(gpus: Sequence[int]) -> str:
    return f" (GPU {'+'.join(map(str, gpus))})" if gpus else ""


def _rate(one: dict[str, Any]) -> str:
    falls = f", {one['schedule']}" if one["schedule"] else ""
    numbers = f"{one['rate']:g}, momentum {one['momentum']:g}, decay {one['decay']:g}{falls}"
    return f"{numbers}: {', '.join(one['tensors'])}"


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, max(width, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
