"""The networks that have names, and what can be changed of them.

The numbers of ``alexnet`` are the paper's (Krizhevsky, Sutskever, Hinton 2012); LRN's alpha is not divided by the
window size. ``alexnet-torchvision``, ``bvlc_alexnet`` and ``caffenet`` are those whose weights others have published:
the same function that torchvision's and Caffe's models of these names compute.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .spec import (
    Activation,
    AvgPool,
    Conv,
    Dropout,
    Layer,
    Linear,
    Local,
    Lrn,
    NetworkSpec,
    Pace,
    Pool,
    Scale,
    SpatialNorm,
    TrainDefaults,
    Weighted,
    parameter_shapes,
    placed_layers,
)

INITS = ("he", "paper")

# inputs of unit size, for weights that keep what they multiply at its size
LARGE = TrainDefaults(batch_size=128, epochs=90, lr=0.01, normalisation="mean-std")


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
        defaults=LARGE,
    )


def _alexnet_6conv() -> NetworkSpec:
    """The paper's network for pre-training on more classes: a sixth convolution over the last pooling layer. Its size
    is that of the 2012 program's net 146, both towers read by each.
    """
    spec = _alexnet()
    behind = [layer.name for layer in spec.layers].index("pool5") + 1
    sixth = Conv("conv6", 256, 3, padding=1, joins=True, bias=1.0)
    return replace(spec, name="alexnet-6conv", layers=(*spec.layers[:behind], sixth, *spec.layers[behind:]))


def _alexnet_1gpu() -> NetworkSpec:
    return replace(_with_one_tower(_alexnet()), name="alexnet-1gpu")


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
        defaults=TrainDefaults(batch_size=64, epochs=6, lr=0.016),
        input_scale=1 / 64,
    )


def _alexnet_torchvision() -> NetworkSpec:
    """torchvision's, after Krizhevsky 2014: one tower of fewer maps, no normalisation, sizes rounded down, and dropout
    in front of the layers that it is for. Its average pooling to 6x6 does nothing to crops of 224, and is left out.
    """
    return NetworkSpec(
        "alexnet-torchvision",
        crop=224,
        towers=1,
        layers=(
            Conv("conv1", 64, 11, stride=4, padding=2, std=None),
            Pool("pool1", ceil_mode=False),
            Conv("conv2", 192, 5, padding=2, std=None),
            Pool("pool2", ceil_mode=False),
            Conv("conv3", 384, 3, padding=1, std=None),
            Conv("conv4", 256, 3, padding=1, std=None),
            Conv("conv5", 256, 3, padding=1, std=None),
            Pool("pool5", ceil_mode=False),
            Dropout("drop6", scaled=True),
            Linear("fc6", 4096, std=None),
            Dropout("drop7", scaled=True),
            Linear("fc7", 4096, std=None),
            Linear("fc8", 1000, activation=None, split=False, std=None),
        ),
        defaults=LARGE,
    )


def _bvlc_alexnet() -> NetworkSpec:
    """Caffe's: crops of 227 from images of 256, normalisation across both towers with alpha over the size of the
    window, dropout scaled in training.
    """
    return NetworkSpec(
        "bvlc_alexnet",
        crop=227,
        towers=2,
        layers=(
            Conv("conv1", 96, 11, stride=4, joins=True, std=None),
            Lrn("norm1", alpha=1e-4 / 5, k=1.0, across=True),
            Pool("pool1"),
            Conv("conv2", 256, 5, padding=2, std=None),
            Lrn("norm2", alpha=1e-4 / 5, k=1.0, across=True),
            Pool("pool2"),
            Conv("conv3", 384, 3, padding=1, joins=True, std=None),
            Conv("conv4", 384, 3, padding=1, std=None),
            Conv("conv5", 256, 3, padding=1, std=None),
            Pool("pool5"),
            Linear("fc6", 4096, std=None),
            Dropout("drop6", scaled=True),
            Linear("fc7", 4096, std=None),
            Dropout("drop7", scaled=True),
            Linear("fc8", 1000, activation=None, split=False, std=None),
        ),
        defaults=LARGE,
        surround=256 / 227,
    )


def _caffenet() -> NetworkSpec:
    """Caffe's reference network: the same with pooling in front of normalisation."""
    spec = _bvlc_alexnet()
    conv1, norm1, pool1, conv2, norm2, pool2, *others = spec.layers
    return replace(spec, name="caffenet", layers=(conv1, pool1, norm1, conv2, pool2, norm2, *others))


# of the 2012 program's nets for CIFAR-10: pixels as they are, and weights and steps to match
CIFAR = TrainDefaults(batch_size=128, epochs=30, lr=0.001, weight_decay=0.004, init="paper")
FASTER = Pace(lr=2.0, decay=0.0)  # their biases


def _decay(factor: float) -> Pace:
    """Of weights whose decay is so many times 0.004."""
    return Pace(decay=factor)


def _small(name: str, *layers: Layer, crop: int = 32, defaults: TrainDefaults = CIFAR) -> NetworkSpec:
    """One tower on small images, cropped from 32 x 32 ones; the biases of those of 2012 learn twice as fast."""
    paced = (replace(x, bias_pace=FASTER) if isinstance(x, Weighted) and defaults is CIFAR else x for x in layers)
    return NetworkSpec(name, crop, 1, tuple(paced), defaults, surround=32 / crop)


def _of_5x5(name: str, maps: int, std: float, **options: Any) -> Conv:
    return Conv(name, maps, 5, padding=2, std=std, ceil_mode=True, **options)


def _cifar_80sec() -> NetworkSpec:
    """26 % error after 80 seconds, its file says. A maximum commutes with a ReLU: theirs stands behind the pooling."""
    return _small(
        "cifar-80sec",
        _of_5x5("conv1", 32, 1e-4),
        Pool("pool1"),
        _of_5x5("conv2", 32, 0.01),
        AvgPool("pool2"),
        _of_5x5("conv3", 64, 0.01),
        AvgPool("pool3"),
        Linear("fc64", 64, std=0.1, pace=_decay(7.5)),
        Linear("fc10", 10, activation=None, split=False, std=0.1, pace=_decay(7.5)),
    )


def _cifar_19pct() -> NetworkSpec:
    return _small(
        "cifar-19pct",
        _of_5x5("conv1", 32, 1e-4),
        Pool("pool1"),
        _of_5x5("conv2", 32, 0.01),
        AvgPool("pool2"),
        _of_5x5("conv3", 64, 0.01),
        AvgPool("pool3"),
        Linear("fc10", 10, activation=None, split=False, std=0.01, pace=_decay(750.0)),
    )


def _cifar_18pct() -> NetworkSpec:
    """The same with normalisation within each map."""
    return _small(
        "cifar-18pct",
        _of_5x5("conv1", 32, 1e-4),
        Pool("pool1"),
        SpatialNorm("norm1", 3, alpha=5e-5 / 9, beta=0.75),
        _of_5x5("conv2", 32, 0.01),
        AvgPool("pool2"),
        SpatialNorm("norm2", 3, alpha=5e-5 / 9, beta=0.75),
        _of_5x5("conv3", 64, 0.01),
        AvgPool("pool3"),
        Linear("fc10", 10, activation=None, split=False, std=0.01, pace=_decay(250.0)),
    )


def _cifar_13pct() -> NetworkSpec:
    """Two layers whose filters no pixels share, over two whose pixels do."""
    return _small(
        "cifar-13pct",
        _of_5x5("conv1", 64, 1e-4, pace=_decay(0.0)),
        Pool("pool1"),
        _of_5x5("conv2", 64, 0.01, pace=_decay(0.0)),
        Pool("pool2"),
        Local("local3", 32, 3, padding=1, std=0.04),
        Local("local4", 32, 3, padding=1, std=0.04),
        Linear("fc10", 10, activation=None, split=False, std=0.01),
        crop=24,
    )


def _cifar_11pct() -> NetworkSpec:
    """The best of them: more local filters, and normalisation across maps, as in the network of 2012."""
    return _small(
        "cifar-11pct",
        _of_5x5("conv1", 64, 1e-4, pace=_decay(0.0)),
        Pool("pool1"),
        Lrn("norm1", 9, alpha=1e-3 / 9, k=1.0),
        _of_5x5("conv2", 64, 0.01, pace=_decay(0.0)),
        Lrn("norm2", 9, alpha=1e-3 / 9, k=1.0),
        Pool("pool2"),
        Local("local3", 64, 3, padding=1, std=0.04),
        Local("local4", 32, 3, padding=1, std=0.04),
        Linear("fc10", 10, activation=None, split=False, std=0.01, pace=_decay(2.5)),
        crop=24,
    )


def _lenet5() -> NetworkSpec:
    """LeCun, Bottou, Bengio and Haffner 1998, with three channels in, means for their trained sums, every map read by
    the third layer, and a softmax on top.
    """
    return _small(
        "lenet5",
        Conv("conv1", 6, 5, std=None, activation="tanh"),
        AvgPool("pool2", 2, 2),
        Conv("conv3", 16, 5, std=None, activation="tanh"),
        AvgPool("pool4", 2, 2),
        Conv("conv5", 120, 5, std=None, activation="tanh"),
        Linear("fc6", 84, activation="tanh", std=None),
        Linear("fc7", 10, activation=None, split=False, std=None),
        defaults=TrainDefaults(batch_size=64, epochs=10, lr=0.02, normalisation="mean-std", init="paper"),
    )


NETWORKS: dict[str, Callable[[], NetworkSpec]] = {
    "alexnet": _alexnet,
    "alexnet-tiny": _alexnet_tiny,
    "alexnet-6conv": _alexnet_6conv,
    "alexnet-1gpu": _alexnet_1gpu,
    "alexnet-torchvision": _alexnet_torchvision,
    "bvlc_alexnet": _bvlc_alexnet,
    "caffenet": _caffenet,
    "cifar-80sec": _cifar_80sec,
    "cifar-19pct": _cifar_19pct,
    "cifar-18pct": _cifar_18pct,
    "cifar-13pct": _cifar_13pct,
    "cifar-11pct": _cifar_11pct,
    "lenet5": _lenet5,
}


def network(
    name: str,
    *,
    num_classes: int | None = None,
    crop: int | None = None,
    width: float = 1.0,
    activation: str | None = None,
    dropout: float | None = None,
    towers: int | None = None,
    lrn: bool = True,
    overlap: bool = True,
    joins: bool = True,
    init: str = "paper",
    definition: Mapping[str, Any] | None = None,
) -> NetworkSpec:
    """A network by name, changed where asked.

    ``width`` multiplies the number of filters and features (rounded to multiples of 8 per tower, at least 8);
    ``activation`` is what follows every layer of weights that something follows: "relu" or "tanh", None leaves the
    network's; ``dropout`` is the probability
    of dropping, 0 removes the layers. The paper's comparisons: ``towers`` 1 makes one tower of half the maps, ``lrn``
    False leaves the normalisation out, ``overlap`` False makes pooling windows as large as their stride, ``joins``
    False keeps the towers apart up to the last layer. ``init`` "he" starts from weights scaled to their layer's
    fan-in, without biases; "paper" from what the layers say, the paper's for ``alexnet``. Raises ``ValueError`` for
    unknown names and impossible values.

    ``definition`` is what a pair of files of 2012 says, as ``definition_of`` gives it: the network is theirs then,
    called ``name``, and changes in nothing but ``num_classes`` and ``crop``.
    """
    if definition is not None:
        return _of_definition(name, definition, num_classes, crop)
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
    if towers not in (None, 1, spec.towers):
        raise ValueError(f'"{name}" has {spec.towers} towers and can be had with 1, got towers={towers}')
    if towers == 1 < spec.towers:
        spec = _with_one_tower(spec)
    if init not in INITS:
        raise ValueError(f'init must be {" or ".join(INITS)}, got "{init}"')
    step = 8 * spec.towers

    def scaled(size: int) -> int:
        return size if width == 1.0 else max(step, round(size * width / step) * step)

    layers: list[Layer] = []
    for layer in spec.layers:
        if isinstance(layer, (Conv, Local)):
            layers.append(replace(layer, filters=scaled(layer.filters), activation=activation or layer.activation))
        elif isinstance(layer, Linear) and layer.split:
            layers.append(replace(layer, features=scaled(layer.features), activation=activation or layer.activation))
        elif isinstance(layer, Linear):
            layers.append(replace(layer, features=num_classes or layer.features))
        elif isinstance(layer, Dropout):
            p = layer.p if dropout is None else dropout
            layers += [replace(layer, p=p)] if p > 0 else []
        else:
            layers.append(layer)
    changed = replace(spec, crop=crop or spec.crop, layers=tuple(layers))
    if not lrn:
        changed = replace(
            changed, layers=tuple(layer for layer in changed.layers if not isinstance(layer, (Lrn, SpatialNorm)))
        )
    if not overlap:
        changed = _without_overlap(changed)
    list(placed_layers(changed))  # raises where a layer does not fit
    if init == "he":
        changed = _scaled_to_fan_in(changed)
    return changed if joins or spec.towers == 1 else _without_joins(changed)


def _of_definition(name: str, definition: Mapping[str, Any], num_classes: int | None, crop: int | None) -> NetworkSpec:
    from .defined import defined_by

    spec = replace(defined_by(definition, crop).spec, name=name)
    if num_classes in (None, spec.classes):
        return spec
    layers = list(spec.layers)
    last = next((k for k in reversed(range(len(layers))) if not isinstance(layers[k], (Activation, Scale, Dropout))), 0)
    if not isinstance(head := layers[last], Linear):
        raise ValueError(
            f"{name}: tells {spec.classes} classes apart, the data has {num_classes}, and its last layer, "
            f"{layers[last].name}, is not fully connected: give data with as many classes"
        )
    layers[last] = replace(head, features=num_classes, split=False)
    return replace(spec, layers=tuple(layers))


def _scaled_to_fan_in(spec: NetworkSpec) -> NetworkSpec:
    """Weights by which activations neither grow nor shrink (He et al. 2015), and no biases.

    The first layer has a quarter of that: small beside the steps that they take, its filters learn sooner, and show
    what they learn instead of what was drawn.
    """
    first = spec.first_filters
    small = math.sqrt(2 / math.prod(parameter_shapes(spec)[first][1:])) / 4 if first else None
    drawn = (
        replace(layer, std=small if f"{layer.name}.weight" == first else None, bias=0.0)
        if isinstance(layer, Weighted)
        else layer
        for layer in spec.layers
    )
    return replace(spec, layers=tuple(drawn))


def _with_one_tower(spec: NetworkSpec) -> NetworkSpec:
    """The paper's comparison on one GPU: half of the maps, but as many in the last convolution, and all features."""
    last = max(index for index, layer in enumerate(spec.layers) if isinstance(layer, Conv))
    layers = (
        replace(layer, filters=layer.filters // spec.towers) if isinstance(layer, Conv) and index != last else layer
        for index, layer in enumerate(spec.layers)
    )
    return replace(spec, towers=1, layers=tuple(layers))


def _without_overlap(spec: NetworkSpec) -> NetworkSpec:
    """Pooling windows side by side. As in the 2012 program's net 147, the convolutions in front of the later ones have
    one pixel less of padding, so that the sizes behind them stay: 55 -> 28 -> 26 -> 13 -> 11 -> 6 for ``alexnet``.
    """
    layers = list(spec.layers)
    before = 0  # the last convolution
    for index, layer in enumerate(layers):
        if isinstance(layer, Conv):
            before = index
        elif isinstance(layer, (Pool, AvgPool)) and layer.size > layer.stride:
            layers[index] = replace(layer, size=layer.stride)
            conv = layers[before]
            if before and isinstance(conv, Conv):
                layers[before] = replace(conv, padding=conv.padding - 1)
    return replace(spec, layers=tuple(layers))


def _without_joins(spec: NetworkSpec) -> NetworkSpec:
    """Towers that meet in the last layer only. What is fully connected within a tower is a convolution in two groups
    whose filters are as large as its input.
    """
    layers: list[Layer] = []
    for placed in placed_layers(spec):
        layer = placed.layer
        if isinstance(layer, Conv) and placed.index:
            layers.append(replace(layer, joins=False))
        elif isinstance(layer, Linear) and layer.split:
            layers.append(
                Conv(
                    layer.name,
                    layer.features,
                    placed.H,
                    std=layer.std,
                    bias=layer.bias,
                    activation=layer.activation or "relu",
                )
            )
        else:
            layers.append(layer)
    return replace(spec, layers=tuple(layers))
