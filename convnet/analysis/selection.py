"""Which kernel a product takes: for the layers of a network, or for one shape. What ``convnet-info --kernels`` shows.

The answers come from the emulator, which is compiled from the kernels' own sources and plays any architecture, so that
they are those of a GPU, and need none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from ..devices.opening import open_device
from ..devices.protocol import Device, padded
from ..kernels.precision import PRECISIONS
from ..kernels.shapes import ConvShape, LinearShape
from ..network import assemble, networks, spec

ARCHITECTURES = (80, 90)
CONV_PASSES = ("conv_forward", "conv_backward_data", "conv_backward_filter")
LINEAR_PASSES = ("linear_forward", "linear_backward_data", "linear_backward_filter")
Problem = tuple[str, str, "ConvShape | LinearShape"]  # layer, op, shape


def network_problems(network: spec.NetworkSpec, precision: str, N: int, lanes: int) -> Iterator[Problem]:
    """Every product of a training step with all towers on one device."""
    for placed in spec.placed_layers(network):
        shape: ConvShape | LinearShape
        if isinstance(placed.layer, spec.Conv):
            shape = assemble.conv_shape(placed, 1, N, lanes)
            if placed.index == 0 and assemble.input_fold(network, precision) > 1:
                shape = shape.folded
        elif isinstance(placed.layer, spec.Linear):
            shape = assemble.linear_shape(placed, 1, N, lanes)
        else:
            continue
        for op in CONV_PASSES if isinstance(shape, ConvShape) else LINEAR_PASSES:
            if placed.index > 0 or op != "conv_backward_data":  # nobody needs the gradient of the images
                yield placed.layer.name, op, shape


def shape_problems(text: str, device: Device) -> list[Problem]:
    """Every pass of the problem that ``text`` describes, such as "N=128 C=96 H=27 W=27 K=256 R=5 S=5 padding=2".

    Without R it is a fully-connected layer: "N=128 C=9216 K=4096". Raises ``ValueError``.
    """
    values: dict[str, int] = {}
    wanted: tuple[str, ...] = ("N", "C", "K")
    optional: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        name, _, number = part.partition("=")
        if not number.isdigit():
            raise ValueError(f'--shape: "{part}" is not a letter and its size, such as N=128')
        values[name] = int(number)
    if "R" in values:
        wanted, optional = ("N", "C", "H", "W", "K", "R"), {"S": values["R"], "stride": 1, "padding": 0, "groups": 1}
    missing, unknown = set(wanted) - set(values), set(values) - set(wanted) - set(optional)
    if missing or unknown:
        kind = "a convolution" if "R" in values else "a fully-connected layer (a convolution where R is given)"
        raise ValueError(
            f"--shape: {kind} needs {', '.join(wanted)}{' and takes ' if optional else ''}{', '.join(optional)}; "
            f"missing {', '.join(sorted(missing)) or 'none'}, unknown {', '.join(sorted(unknown)) or 'none'}"
        )
    options: dict[str, Any] = {**optional, **values}
    lanes = device.lanes(max(options["N"], 1))
    options["N"] = padded(options["N"], lanes)
    if "R" not in values:
        return [("", op, LinearShape(**options, lanes=lanes)) for op in LINEAR_PASSES]
    return [("", op, ConvShape.of(**options, lanes=lanes)) for op in CONV_PASSES]


def report(
    model: str = "alexnet",
    batch_size: int = 128,
    precisions: Sequence[str] = PRECISIONS,
    shape: str | None = None,
) -> dict[str, Any]:
    """The choices, and the tables they were made from, as JSON types."""
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    device = open_device("emu")
    lanes = device.lanes(batch_size)
    N = padded(batch_size, lanes)
    choices = []
    for precision in precisions:
        device.check_precision(precision)
        if shape is None:
            problems = list(network_problems(networks.network(model), precision, N, lanes))
        else:
            problems = shape_problems(shape, device)
        for layer, op, problem in problems:
            for architecture in ARCHITECTURES:
                kernel = choice(device, op, problem, precision, architecture)
                choices.append({
                    "layer": layer, "op": op, "precision": precision, "architecture": architecture,
                    "kernel": kernel, "shape": dataclasses.asdict(problem),
                })  # fmt: skip
    what: dict[str, Any] = {"model": model, "batch_size": batch_size} if shape is None else {"shape": shape}
    ops = {c["op"] for c in choices}
    table = [row for row in device.kernels.variants() if row["precision"] in precisions and row["op"] in ops]
    return {**what, "choices": choices, "kernels": table}


def choice(device: Device, op: str, shape: ConvShape | LinearShape, precision: str, architecture: int) -> str:
    """The kernel's name. Raises ``ValueError`` for impossible shapes."""
    kernels = device.kernels
    ask = getattr(kernels, f"{op.partition('_')[0]}_variant")
    kernels.set_architecture(architecture)
    try:
        return str(ask(op, shape, precision))
    finally:
        kernels.set_architecture(ARCHITECTURES[-1])  # what the emulator plays by itself


def as_text(found: dict[str, Any]) -> str:
    """The choices as one table, a column for every precision, or two where architectures differ, and the kernels."""
    if "model" in found:
        title = f"kernels of {found['model']}, {found['batch_size']} images"
    else:
        title = f"kernels for {found['shape']}"
    cells: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for c in found["choices"]:
        cells.setdefault((c["layer"], c["op"]), {})[c["precision"], c["architecture"]] = c["kernel"]
    columns: list[tuple[str, tuple[str, int]]] = []
    for precision in dict.fromkeys(c["precision"] for c in found["choices"]):
        keys = [(precision, architecture) for architecture in ARCHITECTURES]
        same = all(len({row[key] for key in keys}) == 1 for row in cells.values())
        columns += [(precision, keys[0])] if same else [(f"{p} on sm_{a}", (p, a)) for p, a in keys]
    rows = [("layer and pass", *(header for header, _ in columns))]
    rows += [(f"{layer} {op}".strip(), *(row[key] for _, key in columns)) for (layer, op), row in cells.items()]
    kernels = [("kernel", "op", "precision", "on", "tile", "taken for")]
    kernels += [
        (row["name"], row["op"], row["precision"], _runs_on(row["architecture"]), row["tile"], row["when"])
        for row in found["kernels"]
    ]
    return f"{title}\n\n{_table(rows)}\n\nall kernels, in the order of preference\n\n{_table(kernels)}"


def _runs_on(architecture: int) -> str:
    return "sm_90a" if architecture == 90 else f"sm_{architecture} and up"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
