"""What one wants to know of a network that was cut over several GPUs: where each layer lies, and what it is."""

from __future__ import annotations

import re

from .nodes import Conv, Definition, FullyConnected, Local, Node, Norm, Pool

# What a norm of this kind looks at: norms are called after others of them more often than not.
NORMS = {
    "cmrnorm": "it divides by the squares of the maps around each map, at the same pixel",
    "rnorm": "it divides by the squares of the pixels around each pixel, of the same map",
    "cnorm": "it divides by the variance of the pixels around each pixel, of the same map",
}


def columns(definition: Definition) -> dict[str, tuple[int, ...]]:
    """The GPUs of every node: those it names, else those of its first input; () where nobody names any."""
    found: dict[str, tuple[int, ...]] = {}
    for node in definition.nodes:
        found[node.name] = node.gpu or (found[node.inputs[0]] if node.inputs else ())
    return found


def misnamed(definition: Definition) -> list[str]:
    """One sentence for every layer whose name says another type than it has, as ``rnorm1a`` of type cmrnorm."""
    words = {"conv", "local", "fc", "pool", *NORMS}
    sentences = []
    for node in definition.nodes:
        kind = _kind(node)
        word = re.match(r"[a-z]*", node.name.lower())
        if kind and word and word[0] in words and word[0] != kind:
            more = f": {NORMS[kind]}" if kind in NORMS else ""
            sentences.append(f"{definition.file}, line {node.line}: {node.name} is of type {kind}{more}")
    return sentences


def _kind(node: Node) -> str:
    """The type by its word in the files; "" for nodes whose names promise nothing."""
    if isinstance(node, Norm):
        return node.kind
    types = {Conv: "conv", Local: "local", FullyConnected: "fc", Pool: "pool"}
    return types.get(type(node), "")
