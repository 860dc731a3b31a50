"""Small networks that are no chains of the eight layers: at least one for every type of layer, and what joins them."""

from __future__ import annotations

from convnet.network.spec import (
    IMAGES,
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
    NetworkSpec,
    Pool,
    Scale,
    SpatialNorm,
    Sum,
    Term,
    TrainDefaults,
)

DEFAULTS = TrainDefaults(batch_size=8, epochs=1, lr=0.01)
CLASSES = 10


def spec(name: str, *layers: Layer, crop: int = 12, towers: int = 1) -> NetworkSpec:
    return NetworkSpec(name, crop, towers, layers, DEFAULTS, input_scale=1 / 64)


def out(**options) -> Linear:
    return Linear("out", CLASSES, activation=None, split=False, **options)


def conv(name: str, filters: int = 8, size: int = 3, activation: str | None = "relu", **options) -> Conv:
    return Conv(name, filters, size, padding=size // 2, activation=activation, **options)


def _activated(kind: str, a: float = 1.0, b: float = 1.0) -> NetworkSpec:
    """Between layers of weights, twice: the second reads features. A square root reads what is positive."""
    positive = [Activation("positive", "logistic")] if kind == "sqrt" else []
    return spec(
        f"activation-{kind}",
        conv("conv1", activation=None),
        *positive,
        Activation("act1", kind, a, b),
        AvgPool("pool1"),
        Linear("fc2", 16, activation=None),
        *([Activation("positive2", "logistic")] if kind == "sqrt" else []),
        Activation("act2", kind, a, b),
        out(),
    )


def _normalised(kind: type[SpatialNorm] | type[ContrastNorm]) -> NetworkSpec:
    """Behind a ReLU, and in front of one; windows of odd and even size."""
    return spec(
        kind.__name__.lower(),
        conv("conv1"),
        kind("norm1", 3, 0.05, 0.75),
        conv("conv2", activation=None),
        kind("norm2", 4, 0.02, 0.5, 2.0),
        Activation("relu2"),
        Pool("pool2"),
        out(),
    )


SPECS = [
    spec(
        "local",
        conv("conv1"),
        Pool("pool1"),
        Local("local2", 16, 3, padding=1, groups=2),
        Local("local3", 8, 3, stride=2, activation="tanh"),
        Local("local4", 8, 1, activation=None),
        out(),
    ),
    spec("local-on-images", Local("local1", 8, 3, stride=2), out()),
    spec(
        "local-connections",
        conv("conv1", 6),
        Pool("pool1", 2, 2),
        Local("local2", 8, 3, padding=1, groups=2, connections=(5, 0, 3, 3, 1, 2)),
        out(),
    ),
    spec(
        "avgpool",
        conv("conv1"),
        AvgPool("pool1"),
        conv("conv2", activation="tanh"),
        AvgPool("pool2", 4, 3, padding=2),
        out(),
    ),
    spec("avgpool-to-one-pixel", conv("conv1"), AvgPool("pool1", 12, 1), conv("conv2", size=1), out()),
    _normalised(SpatialNorm),
    _normalised(ContrastNorm),
    *(_activated(kind) for kind in ("relu", "logistic", "softrelu", "abs", "square", "sqrt")),
    _activated("tanh", 1.7, 0.6),
    _activated("linear", 0.7, 0.2),
    _activated("brelu", 1.5),
    spec(
        "relu-behind-norm-and-pool",
        conv("conv1", activation=None),
        Lrn("norm1", alpha=0.01),
        Activation("relu1"),
        Pool("pool1"),
        conv("conv2", activation=None),
        Pool("pool2"),
        Activation("relu2"),
        out(),
    ),
    spec(
        "scale-and-dropout",
        conv("conv1"),
        Dropout("drop1", 0.25, scaled=True),
        conv("conv2"),
        Scale("half", 0.5),
        Pool("pool2"),
        Dropout("drop2", 0.25),
        Linear("fc3", 16),
        Dropout("drop3"),
        Linear("fc4", 16),
        Dropout("drop4", scaled=True),
        out(),
    ),
    spec(
        "concat",
        conv("conv1", 8, inputs=(IMAGES,)),
        conv("conv2", 5, inputs=(IMAGES,)),
        Concat("maps", inputs=("conv1", "conv2", "conv1")),
        Pool("pool"),
        Linear("left", 6, inputs=("pool",)),
        Linear("right", 10, activation="tanh", inputs=("conv2",)),
        Concat("features", inputs=("right", "left")),
        out(),
    ),
    spec(
        "concat-with-images",
        conv("conv1", 5),
        Concat("maps", inputs=(IMAGES, "conv1")),
        conv("conv2"),
        out(),
    ),
    spec(
        "sum",
        conv("conv1"),
        conv("conv2"),
        conv("conv3", activation=None),
        Sum("plain", inputs=("conv1", "conv3")),
        Activation("relu3"),
        Sum("weighted", inputs=("relu3", "conv2", "conv1"), coefficients=(1.0, -0.5, 0.25)),
        Pool("pool"),
        out(),
    ),
    spec("sum-of-one-twice", conv("conv1"), Sum("twice", inputs=("conv1", "conv1")), Pool("pool"), out()),
    spec(
        "max",
        conv("conv1"),
        conv("conv2"),
        conv("conv3", activation="tanh", inputs=("conv1",)),
        Max("largest", inputs=("conv2", "conv3", "conv1")),
        AvgPool("pool"),
        out(),
    ),
    spec(
        "low-resolution",
        Blur("blur", 5, 1.5, inputs=(IMAGES,)),
        Nailbed("nails", 2),
        conv("low", 8),
        conv("high", 8, inputs=(IMAGES,)),
        Blur("blurred", 3, 0.8),
        Mirror("mirrored"),
        Nailbed("thinned", 2),
        Concat("both", inputs=("low", "thinned")),
        Nailbed("third", 3),
        conv("conv2"),
        out(),
    ),
    spec(
        "products-added-up",
        conv("conv1"),
        Conv("conv2", 8, 3, stride=2, padding=1, ceil_mode=True, inputs=("conv1",)),
        Conv(
            "conv3",
            12,
            3,
            padding=1,
            inputs=("conv2",),
            terms=(Term("conv1", 2, 2, 1), Term(IMAGES, 4, 2, 2), Term("conv2", 1, groups=2)),
        ),
        Linear("fc4", 16, inputs=("conv3",), terms=(Term("conv2"), Term(IMAGES))),
        Dropout("drop4"),
        Linear("fc5", 16, activation="tanh", inputs=("drop4",), terms=(Term("conv3"),)),
        out(inputs=("fc5",), terms=(Term("drop4"),)),
    ),
    spec(
        "groups",
        conv("conv1", 8),
        conv("conv2", 12, groups=4),
        Conv("conv3", 8, 3, stride=2, ceil_mode=True, groups=2),
        out(),
    ),
    spec(
        "connections",
        conv("conv1", 8),
        conv("conv2", 8, groups=2, connections=(7, 0, 3, 5, 1, 6, 0, 2)),
        conv(
            "conv3",
            8,
            groups=4,
            connections=(1, 0, 2, 5),
            terms=(Term("conv1", 3, 1, 1, groups=2, connections=(4, 4, 1, 0)), Term(IMAGES, 1)),
        ),
        Pool("pool"),
        out(),
    ),
    spec("untied", conv("conv1", tied=False), conv("conv2", activation=None, tied=False), AvgPool("pool"), out()),
    spec(
        "untied-and-added-up",
        conv("conv1", activation="tanh", tied=False),
        conv("conv2", inputs=("conv1",), terms=(Term(IMAGES, 1),), tied=False),
        out(),
    ),
    spec(
        "one-read-by-three",  # one of which cannot mask, and two of which can
        conv("conv1"),
        conv("conv2"),
        Pool("pool1", inputs=("conv1",)),
        Pool("pool2", inputs=("conv2",)),
        conv("conv3", inputs=("conv1",)),
        AvgPool("pool3"),
        Lrn("norm1", inputs=("conv1",)),
        Pool("pool4"),
        Sum("all", inputs=("pool1", "pool2", "pool3", "pool4")),
        out(),
    ),
    spec(
        "two-towers-in-a-graph",
        conv("conv1", 8, joins=True),
        Lrn("norm1", alpha=0.01),
        Pool("pool1"),
        conv("conv2", 8),
        conv("conv3", 8, joins=True, inputs=("pool1",), terms=(Term("conv2", 3, 1, 1), Term("conv2", 1, joins=True))),
        Sum("added", inputs=("conv3", "conv2")),
        Local("local4", 8, 3, padding=1),
        Pool("pool4"),
        Linear("fc5", 16, inputs=("pool4",), terms=(Term("conv3"),)),
        Dropout("drop5"),
        out(),
        towers=2,
    ),
]
