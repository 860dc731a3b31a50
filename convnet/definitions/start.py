"""Parameter files were edited while runs were trained: most published ones stand where a run ended, and would train
nothing from random weights. This tells such files, and gives the rates with which the run began.

The rates that were stepped by hand are those of weights. Comments at the end of a file say when, as in "epoch 25: set
epsw to 0.001 from 0.01" or "init epsw 0.0001 on conv1, 0.001 elsewhere"; where they say nothing, the rates are those
with which networks of that kind began.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .nodes import Conv, Data, Definition, Rate, Weighted

STEP = 10.0  # every step by hand was at least so large
LARGE, SMALL = 0.01, 0.001  # the rates at the start, of large pictures and small ones
TUNED = 0.001  # of weights that were taken from another network

_NUMBER = r"(\d{1,3}(?:\.\d{0,12})?|\.\d{1,12})(?!\d)"
_EPSW = r"\bep\w{0,2}w"  # as it is typed in haste, too
_FROM = re.compile(rf"{_EPSW}\s+(?:\w+\s+)?(?:to|ot)\s+{_NUMBER}\s+from\s+{_NUMBER}")
_INIT = re.compile(rf"\binit\s+{_EPSW}\s+(.*)")


@dataclass(frozen=True)
class FinalState:
    """``starts``: of every layer with weights, the rates (eps) of its inputs and of its bias when the run began."""

    sentence: str
    starts: dict[str, tuple[tuple[float, ...], float]]


def final_state(definition: Definition) -> FinalState | None:
    """Whether the parameter file stands where a run stepped by hand had got to: weights are frozen (rate 0), or they
    stand at a tenth or less of what they began with by the comments; most of them, where no comment says it. None
    where the file does not, or where there is none."""
    layers = [node for node in definition.nodes if isinstance(node, Weighted) and node.weights and node.bias]
    if not layers:
        return None
    told = _told(definition)
    usual = _usual(definition)
    rates = [rate for node in layers for rate in node.weights or ()]
    highest = max(usual, *(rate.eps for rate in rates))
    biases = Counter(node.bias.eps for node in layers if node.bias and node.bias.eps)
    common = biases.most_common(1)[0][0] if biases else 0.0
    starts, frozen, lowered = {}, [], 0
    for node in layers:
        begun = next((rate for target, rate in told if _means(target, node.name)), None)
        own = [_started(rate, begun, usual, highest) for rate in node.weights or ()]
        bias = node.bias.eps if node.bias else 0.0
        starts[node.name] = tuple(own), max(bias or common, 2 * max(own))
        now = [rate.eps for rate in node.weights or ()]
        if not any(now):
            frozen.append(node.name)
        else:  # what is written as .1 of .01 need not be a tenth to the last bit
            lowered += sum(eps * STEP <= start * 1.0001 for eps, start in zip(now, own, strict=True))
    stands = lowered > 0 if told else 2 * lowered > len(rates)
    if not frozen and not stands:
        return None
    reasons = []
    if stands:
        reasons.append(f"{lowered} of {len(rates)} rates of weights are a tenth or less of what they began with")
    if frozen:
        reasons.append(f"{', '.join(frozen)} {'are' if len(frozen) > 1 else 'is'} frozen (epsW=0)")
    began = sorted({rate for own, _ in starts.values() for rate in own}, reverse=True)
    source = "its comments say" if told else "is usual, where its comments say nothing"
    sentence = (
        f"{definition.parameter_file} stands where a run stepped by hand had got to: {' and '.join(reasons)}; that run "
        f"began with epsW={', '.join(f'{rate:g}' for rate in began)}, as {source}"
    )
    return FinalState(sentence, starts)


def from_start(definition: Definition) -> Definition:
    """The same network with the rates of the beginning where the file stands at an end; else as it is."""
    state = final_state(definition)
    if state is None:
        return definition
    nodes = []
    for node in definition.nodes:
        if isinstance(node, Weighted) and node.weights and node.bias:
            own, bias = state.starts[node.name]
            weights = tuple(replace(rate, eps=eps) for rate, eps in zip(node.weights, own, strict=True))
            node = replace(node, weights=weights, bias=replace(node.bias, eps=bias))
        nodes.append(node)
    return replace(definition, nodes=tuple(nodes))


def _started(rate: Rate, told: float | None, usual: float, highest: float) -> float:
    """What a rate was at first. One with a schedule was not stepped by hand, only set to 0."""
    falls = rate.schedule is not None and rate.schedule.target_factor != 1
    if falls and rate.eps:
        return rate.eps
    return max(rate.eps, told if told is not None else usual if rate.eps else highest)


def _usual(definition: Definition) -> float:
    """The rate with which runs began. Pictures are large where the first convolution takes strides."""
    pixels = {node.name for node in definition.nodes if isinstance(node, Data) and node.index == 0}
    if any(isinstance(node, Weighted) and node.weights_from for node in definition.nodes):
        return TUNED
    strides = [
        kernel.stride
        for node in definition.nodes
        if isinstance(node, Conv)
        for name, kernel in zip(node.inputs, node.kernels, strict=True)
        if name in pixels
    ]
    return LARGE if max(strides, default=1) > 1 else SMALL


def _told(definition: Definition) -> list[tuple[str, float]]:
    """What the comments say of rates at the start: layers, as they are written there ("" for all), and rates.

    The first that fits a layer counts: what is said later is of a later time, or of other runs with the same file.
    """
    found: list[tuple[str, float]] = []
    for _, comment in definition.comments:
        text = comment.lower()
        if init := _INIT.search(text):
            found += _clauses(init[1])
        for step in _FROM.finditer(text):
            rate = float(step[2])
            targets = re.findall(r"\bconv\d+|\bfc\d+", re.split(r",\s*set\b", text)[0])
            found += [(target, rate) for target in targets] or [("", rate)]
    return found


def _clauses(text: str) -> Iterator[tuple[str, float]]:
    """ "0.0001 on conv1-5, 0.01 on fc, conv6": those with a target first."""
    clauses: list[tuple[str, float]] = []
    rate: float | None = None
    for piece in text.split(","):
        number = re.match(rf"\s*{_NUMBER}\b", piece)
        if number:
            rate = float(number[1])
        if rate is None:
            return
        targets = re.findall(r"\b(?:conv\d+-\d+|conv\d+|fc\d*|conv(?= layers))", piece)
        clauses += [(target, rate) for target in targets] or ([("", rate)] if number else [])
    yield from sorted(clauses, key=lambda clause: clause[0] == "")


def _means(target: str, name: str) -> bool:
    """Whether "conv1" or "conv1-5" of a comment means the layer "conv1a"."""
    if span := re.fullmatch(r"(conv)(\d{1,3})-(\d{1,3})", target):
        number = re.match(r"conv(\d{1,3})(?!\d)", name)
        return number is not None and int(span[2]) <= int(number[1]) <= int(span[3])
    return name.startswith(target) and not (target[-1:].isdigit() and name[len(target) :][:1].isdigit())
