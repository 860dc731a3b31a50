"""What a layer does, in words."""

from __future__ import annotations

from .spec import (
    Activation,
    AvgPool,
    Blur,
    Concat,
    ContrastNorm,
    Conv,
    Dropout,
    Layer,
    Linear,
    Local,
    Lrn,
    Max,
    Mirror,
    Nailbed,
    Placed,
    Pool,
    RandPool,
    Scale,
    SpatialNorm,
    Sum,
    Weighted,
)

TIMES = "\u00d7"


def described(placed: Placed, towers: int) -> str:
    """One line, as "convolution 5 x 5, padding 2, 2 groups, relu"."""
    layer = placed.layer
    what = "; ".join(_product(term) for term in placed.terms) if placed.terms else _other(layer, towers)
    if isinstance(layer, Weighted) and layer.activation:
        what += f", {layer.activation}"
    return what


def _square(size: int, stride: int = 1, padding: int = 0) -> str:
    found = f"{size} {TIMES} {size}"
    found += f", stride {stride}" if stride > 1 else ""
    return found + (f", padding {padding}" if padding else "")


def _product(term: Placed) -> str:
    layer = term.layer
    if isinstance(layer, Linear):
        return "fully connected"
    assert isinstance(layer, (Conv, Local))
    what = "convolution" if isinstance(layer, Conv) else "local convolution"
    found = f"{what} {_square(layer.size, layer.stride, layer.padding)}"
    found += f", {term.groups} groups" if term.groups > 1 else ""
    found += " of drawn maps" if layer.connections else ""
    return found + (", a bias for every pixel" if isinstance(layer, Conv) and not layer.tied else "")


def _other(layer: Layer, towers: int) -> str:
    if isinstance(layer, (Lrn, SpatialNorm, ContrastNorm)):
        over = f"{layer.size} maps" if isinstance(layer, Lrn) else f"{_square(layer.size)} pixels"
        what = "contrast normalisation" if isinstance(layer, ContrastNorm) else "normalisation"
        what += f" over {over}, alpha {layer.alpha:g}, beta {layer.beta:g}, k {layer.k:g}"
        inside = isinstance(layer, Lrn) and not layer.across and towers > 1
        return what + (f", in each of {towers} towers" if inside else "")
    if isinstance(layer, Pool):
        return f"maximum of {_square(layer.size, layer.stride)}"
    if isinstance(layer, AvgPool):
        return f"mean of {_square(layer.size, layer.stride, layer.padding)}"
    if isinstance(layer, RandPool):
        return f"a value drawn from {_square(layer.size, layer.stride)}"
    if isinstance(layer, Dropout):
        return f"dropout of {layer.p:g}{', scaled in training' if layer.scaled else ''}"
    if isinstance(layer, Activation):
        return layer.kind
    if isinstance(layer, Scale):
        return f"times {layer.factor:g}"
    if isinstance(layer, Blur):
        return f"blur of {_square(layer.size)} pixels, standard deviation {layer.std:g}"
    if isinstance(layer, Nailbed):
        return f"every {layer.stride}th pixel"
    return {Concat: "one behind the other", Sum: "sum", Max: "largest", Mirror: "mirrored"}[type(layer)]
