"""What a network makes of a picture, as plain arrays and numbers: no web in here.

Everything is measured on the network itself, in test mode. A "picture" is what a data set stores, uint8 (size, size,
3); the network sees the square of ``crop`` pixels in its centre.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.evaluate import softmax, top
from ..data import view_windows
from ..network.spec import Conv, Dropout, Linear, Lrn, NetworkSpec, Placed, Pool, placed_layers
from ..network.words import described

if TYPE_CHECKING:
    from ..network.model import Network

Values = np.ndarray[Any, Any]

TIMES = "\N{MULTIPLICATION SIGN}"
GUESSES = 5
STRONGEST = 3  # maps that are named for each tower
GREY = 128  # of the square that hides pixels
STEPS = 13  # places of that square along a side
FLOAT = 4  # bytes of a value that crosses, in float32
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Block:
    """What one tower of a layer answers. ``values`` (maps, H, W), H = W = 1 for features.

    ``share`` is its part of the sizes of all answers of the layer. ``colour`` says how much of the answers hangs on
    colour: the squared distance between those to the picture and to the same in grey, over the sum of both their
    squares: 0 where colour makes no difference, 1 where what answers in one is silent in the other. ``strongest``
    are the maps with the largest mean size.
    """

    values: Values
    share: float
    colour: float
    strongest: list[int]


@dataclass(frozen=True)
class Layer:
    name: str
    what: str
    gathers: bool
    crossing: int  # bytes between towers on their way in, for one picture
    blocks: list[Block]


@dataclass(frozen=True)
class Look:
    """``seen`` is the square that the network sees, uint8 (crop, crop, 3); ``guesses`` are classes and their
    probabilities, most probable first; ``drawn`` for every tower, uint8 (crop, crop, 3): see ``draw``."""

    seen: Values
    guesses: list[tuple[int, float]]
    layers: list[Layer]
    drawn: list[Values]


def checked(spec: NetworkSpec) -> NetworkSpec:
    """The network, where it is one that can be shown. Raises ``ValueError``."""
    first = spec.layers[0].name
    if not spec.is_chain or spec.first_filters != f"{first}.weight":
        raise ValueError(
            f'"{spec.name}" is no chain of layers, one in front of the other, that begins with a convolution of the '
            "images; this page shows such alone, and convnet-show others"
        )
    return spec


def answers(network: Network, pictures: Values) -> Values:
    """Probabilities (n, classes) of n pictures; activations are then those of the last ``batch_size`` or fewer."""
    window = view_windows(pictures.shape[1], network.spec.crop, 1)
    parts = (pictures[k : k + network.batch_size] for k in range(0, len(pictures), network.batch_size))
    return np.concatenate([softmax(network.evaluate_batch(part, np.tile(window, (len(part), 1)))) for part in parts])


def look(network: Network, weights: Values, picture: Values) -> Look:
    """``network`` is not fused and takes two pictures or more; ``weights`` are those of its first layer."""
    spec = network.spec
    probabilities = answers(network, np.stack([picture, in_grey(picture)]))[0]
    best = top(probabilities[None], GUESSES)[0]
    layers = [_layer(placed, spec, network.activation(placed.layer.name)) for placed in placed_layers(spec)]
    first = placed_layers(spec)[0]
    return Look(
        seen(picture, spec.crop),
        [(int(k), float(probabilities[k])) for k in best],
        layers,
        [draw(b.values, w, first, spec.crop) for b, w in zip(layers[0].blocks, halves(weights, spec), strict=True)],
    )


def seen(picture: Values, crop: int) -> Values:
    """The square in the centre."""
    ((y, x, _),) = view_windows(len(picture), crop, 1)
    return picture[y : y + crop, x : x + crop]


def in_grey(picture: Values) -> Values:
    """The same brightness everywhere, and no colour."""
    return np.repeat(np.rint(picture @ LUMA)[..., None], 3, axis=2).astype(np.uint8)


def halves(values: Values, spec: NetworkSpec, split: bool = True) -> list[Values]:
    """The parts (K / towers, ...) of values (K, ...) that belong to each tower."""
    return np.split(values, spec.towers if split else 1)


def _layer(placed: Placed, spec: NetworkSpec, activations: Values) -> Layer:
    """``activations`` (2, K, ...): those of the picture, and of the same in grey."""
    layer = placed.layer
    split = not isinstance(layer, Linear) or layer.split
    own, grey = (halves(a.reshape(placed.K, placed.P, placed.Q), spec, split) for a in activations)
    total = max(float(np.abs(activations[0]).sum(dtype=np.float64)), 1e-30)
    return Layer(
        layer.name,
        describe(placed),
        placed.gathers,
        crossing(placed, spec),
        [_block(a, g, total) for a, g in zip(own, grey, strict=True)],
    )


def _block(values: Values, grey: Values, total: float) -> Block:
    a, g = values.astype(np.float64), grey.astype(np.float64)
    sizes = np.abs(a).mean(axis=(1, 2))
    return Block(
        values,
        float(np.abs(a).sum() / total),
        float(((a - g) ** 2).sum() / max((a**2).sum() + (g**2).sum(), 1e-30)),
        [int(k) for k in np.argsort(-sizes, kind="stable")[:STRONGEST] if sizes[k] > 0],
    )


def describe(placed: Placed) -> str:
    """What a layer is, in a few words."""
    layer = placed.layer
    if isinstance(layer, Conv):
        steps = f", every {layer.stride} pixels" if layer.stride > 1 else ""
        return f"convolution {layer.size} {TIMES} {layer.size}{steps}{_behind(layer.activation)}"
    if isinstance(layer, Pool):
        return f"largest of {layer.size} {TIMES} {layer.size}, every {layer.stride}"
    if isinstance(layer, Lrn):
        return f"normalised by {layer.size} maps around"
    if isinstance(layer, Linear):
        return f"fully connected{_behind(layer.activation)}"
    if isinstance(layer, Dropout):
        return "dropout: as it is" if layer.scaled else f"dropout: times {1 - layer.p:g}, now that all are there"
    return described(placed, 1)


def _behind(activation: str | None) -> str:
    return {"relu": ", ReLU", "tanh": ", tanh"}.get(activation or "", "")


def crossing(placed: Placed, spec: NetworkSpec) -> int:
    """Bytes in float32 that leave their tower for another one on the way into a layer, for one picture: what a
    ``Network`` with a device for every tower exchanges, and as many bytes of gradients on the way back."""
    if not placed.gathers:
        return 0
    readers = spec.towers if not isinstance(placed.layer, Linear) or placed.layer.split else 1
    part = placed.C * placed.H * placed.W * FLOAT // spec.towers
    return readers * (spec.towers - 1) * part


def colour_of_filters(weights: Values) -> Values:
    """How much of each filter (K, 3, R, S) is colour, 0..1, float64 (K,): the part of its square sum that is gone when
    red, green and blue are replaced by their mean. Of filters drawn at random it is 2/3."""
    w = weights.astype(np.float64)
    bare = w - w.mean(axis=1, keepdims=True)
    return np.asarray((bare**2).sum(axis=(1, 2, 3)) / np.maximum((w**2).sum(axis=(1, 2, 3)), 1e-30))


def put_back(maps: Values, weights: Values, placed: Placed, crop: int) -> Values:
    """Where answers came from: the transpose of a convolution that reads pictures, float64 (3, crop, crop). Each answer
    in ``maps`` (K, P, Q) puts its filter of ``weights`` (K, 3, R, S), that much of it, where it was found."""
    layer = placed.layer
    assert isinstance(layer, Conv)
    P, Q = maps.shape[1:]
    R, S = weights.shape[2:]
    stride, edge = layer.stride, layer.padding
    wide = max((P - 1) * stride + R, edge + crop)
    whole = np.zeros((3, wide, wide))
    put = np.tensordot(weights.astype(np.float64), maps.astype(np.float64), axes=(0, 0))  # (3, R, S, P, Q)
    for r in range(R):
        for s in range(S):
            whole[:, r : r + stride * P : stride, s : s + stride * Q : stride] += put[:, r, s]
    return whole[:, edge : edge + crop, edge : edge + crop]


def draw(maps: Values, weights: Values, placed: Placed, crop: int) -> Values:
    """What a tower sees, as a picture: ``put_back`` with zero as mid-grey and the largest size as black or full
    brightness, uint8 (crop, crop, 3)."""
    found = put_back(maps, weights, placed, crop)
    scaled = found / max(float(np.abs(found).max()), 1e-30)
    return np.asarray(np.rint(127.5 + 127.5 * scaled), np.uint8).transpose(1, 2, 0)


def places(crop: int) -> tuple[int, list[int]]:
    """The side of the square that hides pixels, a quarter of the picture's, and where it begins along one: at every
    sixteenth."""
    side = max(crop // 4, 1)
    return side, [round(k * (crop - side) / (STEPS - 1)) for k in range(STEPS)]


def hidden(picture: Values, crop: int) -> Iterator[Values]:
    """The picture with a grey square in each place, row by row."""
    ((top_, left, _),) = view_windows(len(picture), crop, 1)
    side, starts = places(crop)
    for y in starts:
        for x in starts:
            covered = picture.copy()
            covered[top_ + y : top_ + y + side, left + x : left + x + side] = GREY
            yield covered


def occlusion(network: Network, picture: Values, classes: Sequence[int]) -> Values:
    """Which pixels matter: by how much the probability of each of ``classes`` falls, on average, where a grey square
    covers a pixel, float64 (classes, crop, crop). Negative where it rises."""
    crop = network.spec.crop
    whole = answers(network, picture[None])[0, list(classes)]
    falls = whole - answers(network, np.stack(list(hidden(picture, crop))))[:, list(classes)]
    side, starts = places(crop)
    sums, times = np.zeros((len(classes), crop, crop)), np.zeros((crop, crop))
    for k, fall in enumerate(falls):
        y, x = starts[k // STEPS], starts[k % STEPS]
        sums[:, y : y + side, x : x + side] += fall[:, None, None]
        times[y : y + side, x : x + side] += 1
    return sums / times
