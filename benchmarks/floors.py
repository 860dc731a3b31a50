"""The least time that a machine needs for so many operations and bytes, and for a whole training step.

Rates are what well-tuned programs reach on an H200, not data-sheet peaks: dense products on random data, and a copy
within device memory, read and written bytes together. They are assumptions to measure against, not measurements of this
project. Other machines have no floors here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from convnet.network.spec import Conv, Dropout, Linear, Lrn, NetworkSpec, Placed, Pool, placed_layers

# products per second as FLOP/s, by precision: wgmma in bf16 and tf32, FFMA in fp32
FLOPS = {"bf16": 790e12, "tf32": 395e12, "fp32": 54e12}
BYTES = 4.3e12

# What a step consists of; "forward" is inference, the others are training.
PARTS = ("forward", "forward+backward", "step")


def seconds(flops: float, nbytes: float, precision: str) -> float:
    """max(arithmetic, memory) on an H200."""
    return max(flops / FLOPS[precision], nbytes / BYTES)


def bound(flops: float, nbytes: float, precision: str) -> str:
    """ "math" or "memory", whichever takes longer."""
    return "math" if flops / FLOPS[precision] >= nbytes / BYTES else "memory"


@dataclass(frozen=True)
class Work:
    """One kernel of the plan, with the least there is to do: every operand read and every result written once."""

    layer: str
    name: str  # "forward", "backward data", ...
    flops: float
    bytes: float


def plan(spec: NetworkSpec, N: int, precision: str, part: str = "step") -> list[Work]:
    """The kernels of ``part`` with everything fused that can be.

    Bias, ReLU and dropout and their backward passes are part of the products; normalisation and the pooling behind it
    are one kernel each way, which computes again what it does not keep; the update of a fully-connected layer is part
    of its weights' gradient, which never reaches memory; convolutions are updated together. Biases are not counted,
    nor is the place of each maximum.
    """
    size = 2 if precision == "bf16" else 4
    update = 16 + (2 if precision == "bf16" else 0)  # bytes per weight: value and velocity, both ways, and the copy
    layers = [p for p in placed_layers(spec) if not isinstance(p.layer, Dropout)]
    forward: list[Work] = []
    backward: list[Work] = []  # from the first layer to the last
    convolutions = 0  # weights
    for number, p in enumerate(layers):
        x, y = (float(size * N * elements) for elements in (p.C * p.H * p.W, p.K * p.P * p.Q))
        if isinstance(p.layer, (Conv, Linear)):
            below = layers[number - 1].layer
            name, weights, flops = p.layer.name, p.parameters - p.K, 2.0 * N * p.macs
            forward.append(Work(name, "forward", flops, x + y + size * weights))
            if isinstance(p.layer, Conv) or part != "step":
                backward.append(Work(name, "backward filter", flops, x + y + 4 * weights))
            else:
                backward.append(Work(name, "backward filter and update", flops, x + y + update * weights))
            convolutions += weights if isinstance(p.layer, Conv) else 0
            if number:  # where x lies behind a ReLU it says what that let through; normalisation does that by itself
                masked = not isinstance(below, Lrn) and not _normalised(layers, number - 1)
                backward.append(Work(name, "backward data", flops, x + y + size * weights + (x if masked else 0.0)))
        elif isinstance(p.layer, Pool) and _normalised(layers, number):
            normalised = layers[number - 1].layer.name
            forward.append(Work(f"{normalised}+{p.layer.name}", "forward", 0.0, x + y))
            backward.append(Work(f"{normalised}+{p.layer.name}", "backward", 0.0, 2 * x + y))
        elif isinstance(p.layer, Pool):
            forward.append(Work(p.layer.name, "forward", 0.0, x + y))
            backward.append(Work(p.layer.name, "backward", 0.0, 2 * x + y))
        elif number + 1 == len(layers) or not _normalised(layers, number + 1):
            forward.append(Work(p.layer.name, "forward", 0.0, 2 * x))
            backward.append(Work(p.layer.name, "backward", 0.0, 3 * x))
    if part == "forward":
        return forward
    loss = Work("softmax", "loss", 0.0, 2.0 * size * N * spec.classes)
    updates = [Work("convolutions", "update", 0.0, (update + 4.0) * convolutions)] if part == "step" else []
    return [*forward, loss, *reversed(backward), *updates]


def _normalised(layers: list[Placed], number: int) -> bool:
    """Whether layer ``number`` pools what the layer in front of it normalises."""
    return number > 0 and isinstance(layers[number].layer, Pool) and isinstance(layers[number - 1].layer, Lrn)


def total(works: Iterable[Work], precision: str) -> float:
    """Seconds that a chain of perfect kernels takes, one after the other."""
    return sum(seconds(work.flops, work.bytes, precision) for work in works)
