"""Networks as data: their layers, sizes, parameters and FLOPs, and which layers see all towers.

A network of T towers is one sequence of layers whose channels are cut into T equal parts. A layer that does not
``join`` reads its own tower's part only (a grouped convolution); one that joins reads the parts of all. Where the
towers live is not said here.

The numbers of ``alexnet`` are the paper's (Krizhevsky, Sutskever, Hinton 2012); LRN's alpha is not divided by the
window size.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from .shapes import output_size

ACTIVATIONS = ("relu", "tanh")


@dataclass(frozen=True)
class Conv:
    """Convolution with bias and activation: "relu" or "tanh". ``std`` None means sqrt(2 / fan-in) (He et al. 2015)."""

    name: str
    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    joins: bool = False
    ceil_mode: bool = False
    std: float | None = 0.01
    bias: float = 0.0
    activation: str = "relu"


@dataclass(frozen=True)
class Lrn:
    """Local response normalisation across the maps of one tower."""

    name: str
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0


@dataclass(frozen=True)
class Pool:
    """Max-pooling; windows overlap where stride < size. Rounds up, as cuda-convnet does."""

    name: str
    size: int = 3
    stride: int = 2


@dataclass(frozen=True)
class Linear:
    """Fully-connected layer; it always joins. ``split`` False: not cut into towers, lives on the first device."""

    name: str
    features: int
    activation: str | None = "relu"
    split: bool = True
    std: float | None = 0.01
    bias: float = 0.0


@dataclass(frozen=True)
class Dropout:
    """Zeroes features with probability ``p`` in training, multiplies by 1 - p at test."""

    name: str
    p: float = 0.5


Layer = Conv | Lrn | Pool | Linear | Dropout


@dataclass(frozen=True)
class TrainDefaults:
    """What ``convnet-train`` uses where the user says nothing."""

    batch_size: int
    epochs: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "plateau"
    patience: int = 3


@dataclass(frozen=True)
class NetworkSpec:
    """A network: ``crop`` x ``crop`` images with 3 channels in, ``classes`` logits out.

    ``input_scale`` multiplies pixels (0..255, mean subtracted) on their way in.
    """

    name: str
    crop: int
    towers: int
    layers: tuple[Layer, ...]
    defaults: TrainDefaults
    input_scale: float = 1.0

    @property
    def image_size(self) -> int:
        """Side of the stored images that crops are taken from: 256 for crops of 224."""
        return round(self.crop * 256 / 224)

    @property
    def classes(self) -> int:
        last = self.layers[-1]
        assert isinstance(last, Linear)
        return last.features


@dataclass(frozen=True)
class Placed:
    """A layer with the sizes of its whole input and output, all towers together; H = W = 1 for features."""

    layer: Layer
    index: int
    C: int
    H: int
    W: int
    K: int
    P: int
    Q: int
    groups: int = field(default=1)  # of a convolution, all towers on one device
    gathers: bool = field(default=False)  # reads the parts of all towers, and its input is cut into parts

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        if isinstance(self.layer, Conv):
            return self.K * (self.C // self.groups) * self.layer.size**2 + self.K
        if isinstance(self.layer, Linear):
            return self.C * self.H * self.W * self.K + self.K
        return 0

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass over one image."""
        if isinstance(self.layer, (Conv, Linear)):
            return (self.parameters - self.K) * self.P * self.Q
        return 0


def placed_layers(spec: NetworkSpec) -> Iterator[Placed]:
    """The layers in order, each with its sizes. Raises ``ValueError`` where the sizes do not work out, naming the
    layer.
    """
    C, H, W = 3, spec.crop, spec.crop
    split = False  # is the current activation cut into towers?
    for index, layer in enumerate(spec.layers):
        K, P, Q, groups, gathers = C, H, W, 1, False
        try:
            if isinstance(layer, Conv):
                gathers = layer.joins and split
                groups = 1 if layer.joins or not split else spec.towers
                K = layer.filters
                P = Q = output_size(H, layer.size, layer.stride, layer.padding, layer.padding, layer.ceil_mode)
                split = spec.towers > 1
            elif isinstance(layer, Pool):
                P = Q = output_size(H, layer.size, layer.stride, 0, 0, ceil_mode=True)
            elif isinstance(layer, Linear):
                gathers, K, P, Q = split, layer.features, 1, 1
                split = layer.split and spec.towers > 1
            if isinstance(layer, (Conv, Linear)) and layer.activation not in (*ACTIVATIONS, None):
                raise ValueError(f'activation must be {" or ".join(ACTIVATIONS)}, got "{layer.activation}"')
            if (split and K % spec.towers) or (C % groups):
                raise ValueError(f"{K} outputs of {C} inputs cannot be cut into {spec.towers} towers")
        except ValueError as error:
            raise ValueError(f'network "{spec.name}" with crop {spec.crop}, layer {layer.name}: {error}') from None
        yield Placed(layer, index, C, H, W, K, P, Q, groups, gathers)
        C, H, W = K, P, Q


def parameter_count(spec: NetworkSpec) -> int:
    """Weights and biases of the whole network."""
    return sum(placed.parameters for placed in placed_layers(spec))


PAPER = TrainDefaults(batch_size=128, epochs=90, lr=0.01)


def _alexnet() -> NetworkSpec:
    return NetworkSpec(
        "alexnet",
        crop=224,
        towers=2,
        layers=(
            Conv("conv1", 96, 11, stride=4, joins=True, ceil_mode=True),
            Lrn("norm1"),
            Pool("pool1"),
            Conv("conv2", 256, 5, padding=2, bias=1.0),
            Lrn("norm2"),
            Pool("pool2"),
            Conv("conv3", 384, 3, padding=1, joins=True),
            Conv("conv4", 384, 3, padding=1, bias=1.0),
            Conv("conv5", 256, 3, padding=1, bias=1.0),
            Pool("pool5"),
            Linear("fc6", 4096, bias=1.0),
            Dropout("drop6"),
            Linear("fc7", 4096, bias=1.0),
            Dropout("drop7"),
            Linear("fc8", 1000, activation=None, split=False),
        ),
        defaults=PAPER,
    )


def _alexnet_1gpu() -> NetworkSpec:
    """The paper's comparison network on one GPU: half of the maps, fc6 and fc7 as wide as the two towers together."""
    filters = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192, "conv5": 256}
    layers = tuple(
        replace(layer, filters=filters[layer.name]) if isinstance(layer, Conv) else layer for layer in _alexnet().layers
    )
    return NetworkSpec("alexnet-1gpu", crop=224, towers=1, layers=layers, defaults=PAPER)


def _alexnet_tiny() -> NetworkSpec:
    """The same eight layers, narrow, on 64x64 images: 30 -> 15 -> 7 -> 3 pixels instead of 55 -> 27 -> 13 -> 6.

    Chosen to learn within minutes: inputs of unit size, an LRN fit for such small activations, and weights scaled to
    their fan-in but in the first layer, whose filters then show what they learn, and in the last.
    """
    return NetworkSpec(
        "alexnet-tiny",
        crop=64,
        towers=2,
        layers=(
            Conv("conv1", 32, 7, stride=2, joins=True, ceil_mode=True),
            Lrn("norm1", alpha=1e-2, k=1.0),
            Pool("pool1"),
            Conv("conv2", 64, 5, padding=2, std=None),
            Lrn("norm2", alpha=1e-2, k=1.0),
            Pool("pool2"),
            Conv("conv3", 96, 3, padding=1, joins=True, std=None),
            Conv("conv4", 96, 3, padding=1, std=None),
            Conv("conv5", 64, 3, padding=1, std=None),
            Pool("pool5"),
            Linear("fc6", 256, std=None),
            Dropout("drop6"),
            Linear("fc7", 256, std=None),
            Dropout("drop7"),
            Linear("fc8", 10, activation=None, split=False),
        ),
        defaults=TrainDefaults(batch_size=64, epochs=6, lr=0.01, patience=1),
        input_scale=1 / 64,
    )


NETWORKS: dict[str, Callable[[], NetworkSpec]] = {
    "alexnet": _alexnet,
    "alexnet-tiny": _alexnet_tiny,
    "alexnet-1gpu": _alexnet_1gpu,
}


def network(
    name: str,
    *,
    num_classes: int | None = None,
    crop: int | None = None,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float | None = None,
) -> NetworkSpec:
    """A network by name, changed where asked.

    ``width`` multiplies the number of filters and features (rounded to multiples of 8 per tower, at least 8);
    ``activation`` is what follows every layer of weights but the last: "relu" or "tanh";
    ``dropout`` is the probability of dropping, 0 removes the layers. Raises ``ValueError`` for unknown names and
    impossible values.
    """
    if name not in NETWORKS:
        close = difflib.get_close_matches(name, NETWORKS, 1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise ValueError(f'no network is called "{name}"; there are {", ".join(NETWORKS)}{hint}')
    spec = NETWORKS[name]()
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not 0 < width <= 16:
        raise ValueError(f"width must lie in (0, 16], got {width}")
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    step = 8 * spec.towers

    def scaled(size: int) -> int:
        return size if width == 1.0 else max(step, round(size * width / step) * step)

    layers: list[Layer] = []
    for layer in spec.layers:
        if isinstance(layer, Conv):
            layers.append(replace(layer, filters=scaled(layer.filters), activation=activation))
        elif isinstance(layer, Linear) and layer.split:
            layers.append(replace(layer, features=scaled(layer.features), activation=activation))
        elif isinstance(layer, Linear):
            layers.append(replace(layer, features=num_classes or layer.features))
        elif isinstance(layer, Dropout):
            p = layer.p if dropout is None else dropout
            layers += [replace(layer, p=p)] if p > 0 else []
        else:
            layers.append(layer)
    changed = replace(spec, crop=crop or spec.crop, layers=tuple(layers))
    list(placed_layers(changed))  # raises where a layer does not fit
    return changed
