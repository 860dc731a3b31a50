"""The problems that every device must solve: one list for tests and benchmarks.

Per op: every layer of ``alexnet`` at full size, the same layers shrunk, every layer of ``alexnet-tiny``, named edges.
An id such as ``conv2-tiny-N8`` says layer (or edge), family and batch.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, replace

import numpy as np

from convnet.kernels.shapes import ConvShape, LocalShape, LrnShape, Padding, PoolShape, four_paddings
from convnet.network.networks import network
from convnet.network.spec import Conv, Linear, Lrn, Pool, placed_layers

# A case of more multiply-adds (padded lanes included) takes the emulator too long; "cpu" and GPUs run them all.
EMULATOR_LIMIT = 850e6


@dataclass(frozen=True)
class Case:
    id: str

    @property
    def random(self) -> np.random.Generator:
        """The same numbers for the same id, whatever else runs."""
        return np.random.default_rng(zlib.crc32(self.id.encode()))

    @property
    def work(self) -> float:
        """Multiply-adds of one pass in the emulator."""
        return 0.0

    def runs_on(self, device: str) -> bool:
        return not device.startswith("emu") or self.work <= EMULATOR_LIMIT


def _lanes_padded(N: int) -> int:
    return -(-N // 64) * 64 if N >= 64 else -(-N // 8) * 8


@dataclass(frozen=True)
class ConvCase(Case):
    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: int = 1
    padding: Padding = 0
    groups: int = 1
    ceil_mode: bool = False
    relu: bool = False

    @property
    def options(self) -> dict:
        """What ``convnet.functional`` takes."""
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups, "ceil_mode": self.ceil_mode}

    def shape(self, lanes: int = 1, N: int | None = None) -> ConvShape:
        return ConvShape.of(N or self.N, self.C, self.H, self.W, self.K, self.R, self.S, lanes=lanes, **self.options)

    @property
    def geometry(self) -> dict:
        """What ``reference.py`` takes."""
        shape = self.shape()
        top, _, left, _ = four_paddings(self.padding)
        return {"stride": self.stride, "top": top, "left": left, "P": shape.P, "Q": shape.Q, "groups": self.groups}

    @property
    def work(self) -> float:
        return self.shape().macs / self.N * _lanes_padded(self.N)

    def inputs(self, integers: bool = False):
        """x, weight, bias, dy. Integers are -3..3 without 0: a zero factor would hide a missing term."""
        shape, random = self.shape(), self.random
        sizes = ((self.N, self.C, self.H, self.W), (self.K, self.C // self.groups, self.R, self.S), (self.K,))
        if integers:
            return [_nonzero(random, size) for size in (*sizes, (self.N, self.K, shape.P, shape.Q))]
        return [_normal(random, size) for size in (*sizes, (self.N, self.K, shape.P, shape.Q))]


def _normal(random, size):
    return random.standard_normal(size, dtype=np.float32)


def _nonzero(random, size):
    return (random.integers(1, 4, size) * random.choice([-1, 1], size)).astype(np.float32)


def _from_network(kind, name: str, family: str, N: int, build, **changes) -> list:
    return [
        build(f"{placed.layer.name}-{family}-N{N}", N, placed)
        for placed in placed_layers(network(name, **changes))
        if isinstance(placed.layer, kind)
    ]


def _conv(id: str, N: int, placed) -> ConvCase:
    layer = placed.layer
    return ConvCase(
        id, N, placed.C, placed.H, placed.W, placed.K, layer.size, layer.size, layer.stride, layer.padding,
        placed.groups, layer.ceil_mode, relu=True,
    )  # fmt: skip


CONV_FULL = _from_network(Conv, "alexnet", "full", 2, _conv)
CONV_TINY = _from_network(Conv, "alexnet-tiny", "tiny", 8, _conv)
# conv1 keeps its filter, stride and overhang on an image of 33; the others keep everything but the number of maps
CONV_SHRUNK = [
    replace(_from_network(Conv, "alexnet", "shrunk", 2, _conv)[0], H=33, W=33, K=24),
    *(replace(case, C=case.C // 16 * 2, K=case.K // 16 * 2) for case in
      _from_network(Conv, "alexnet", "shrunk", 2, _conv)[1:]),
]  # fmt: skip
CONV_EDGES = [
    ConvCase("one-everything-N1", 1, 1, 1, 1, 1, 1, 1),
    ConvCase("primes-N5", 5, 7, 11, 13, 17, 3, 5, padding=1),
    ConvCase("primes-relu-N3", 3, 5, 13, 7, 11, 5, 3, stride=2, padding=2, relu=True),
    ConvCase("pointwise-N9", 9, 19, 5, 3, 23, 1, 1),
    ConvCase("pointwise-image-1x1-N7", 7, 13, 1, 1, 31, 1, 1),
    ConvCase("image-1x1-padded-N4", 4, 6, 1, 1, 10, 3, 3, padding=1),
    ConvCase("filter-as-large-as-image-N3", 3, 4, 7, 5, 9, 7, 5),
    ConvCase("wide-filter-N2", 2, 3, 6, 12, 8, 1, 7, padding=(0, 0, 3, 3)),
    ConvCase("tall-filter-N2", 2, 3, 12, 6, 8, 7, 1, padding=(3, 3, 0, 0)),
    ConvCase("stride-larger-than-filter-N3", 3, 4, 17, 14, 6, 2, 3, stride=5),
    ConvCase("stride-remainder-N3", 3, 3, 14, 13, 8, 3, 3, stride=3),
    ConvCase("ceil-overhang-N3", 3, 3, 14, 13, 8, 3, 3, stride=3, ceil_mode=True),
    ConvCase("ceil-overhang-padded-N2", 2, 4, 10, 12, 8, 5, 5, stride=4, padding=1, ceil_mode=True),
    ConvCase("asymmetric-padding-N3", 3, 4, 8, 9, 6, 3, 4, stride=2, padding=(0, 2, 3, 1)),
    ConvCase("padding-beyond-filter-N2", 2, 3, 5, 4, 6, 3, 3, padding=4),
    ConvCase("groups3-N3", 3, 9, 7, 8, 15, 3, 3, padding=1, groups=3),
    ConvCase("groups2-stride2-N6", 6, 10, 9, 9, 14, 3, 3, stride=2, padding=1, groups=2),
    ConvCase("depthwise-N2", 2, 6, 8, 7, 6, 3, 3, padding=1, groups=6),
    ConvCase("filters-127-N2", 2, 5, 6, 5, 127, 3, 3, padding=1),
    ConvCase("filters-128-N2", 2, 5, 6, 5, 128, 3, 3, padding=1),
    ConvCase("filters-129-N2", 2, 5, 6, 5, 129, 3, 3, padding=1),
    ConvCase("channels-129-N2", 2, 129, 4, 5, 8, 3, 3, padding=1),
    ConvCase("pixels-129-N1", 1, 3, 43, 3, 9, 1, 1),
    # channels and filters in eights, which some kernels reduce in another order
    ConvCase("eights-asymmetric-padding-N3", 3, 8, 9, 7, 24, 3, 4, stride=2, padding=(0, 2, 3, 1)),
    ConvCase("eights-padding-beyond-filter-N2", 2, 8, 5, 4, 16, 3, 3, padding=4),
    ConvCase("eights-stride-5-N3", 3, 16, 17, 14, 8, 2, 3, stride=5),
    ConvCase("eights-ceil-overhang-N65", 65, 8, 10, 11, 16, 5, 3, stride=4, padding=1, ceil_mode=True),
    # tiles of two neighbouring pixels: those at the rim need few of the taps
    ConvCase("eights-long-rows-N64", 64, 8, 3, 11, 64, 3, 3, padding=1),
    ConvCase("eights-long-columns-N64", 64, 8, 11, 1, 64, 5, 1, padding=(2, 2, 0, 0)),
    ConvCase("eights-groups3-N9", 9, 24, 7, 6, 48, 3, 3, padding=1, groups=3, relu=True),
    ConvCase("maps-40-56-N8", 8, 40, 6, 5, 56, 3, 3, padding=1),
    ConvCase("maps-128-N2", 2, 128, 4, 4, 128, 3, 3, padding=1),
    ConvCase("maps-136-N1", 1, 136, 4, 3, 136, 3, 3, padding=1),
    # so many pixels that the sums over them are cut into parts
    ConvCase("many-pixels-N9", 9, 3, 31, 29, 20, 3, 3),
    ConvCase("many-pixels-N130", 130, 8, 9, 8, 8, 3, 3, padding=1),
    ConvCase("batch-64-N64", 64, 5, 5, 4, 12, 3, 3, padding=1),
    ConvCase("batch-65-N65", 65, 5, 5, 4, 12, 3, 3, padding=1),
    ConvCase("batch-130-N130", 130, 4, 3, 3, 8, 3, 3, padding=1, groups=2),
]
# sizes around those of a tensor core's operands and of the tiles made of them
CONV_TENSOR = [
    ConvCase("channels-7-filters-64-N3", 3, 7, 5, 4, 64, 3, 3, padding=1),
    ConvCase("channels-8-filters-65-N3", 3, 8, 5, 4, 65, 3, 3, padding=1),
    ConvCase("channels-9-filters-63-N3", 3, 9, 5, 4, 63, 3, 3, padding=1),
    ConvCase("channels-15-filters-17-N3", 3, 15, 5, 4, 17, 3, 3, padding=1, relu=True),
    ConvCase("channels-16-filters-16-N3", 3, 16, 5, 4, 16, 3, 3, padding=1),
    ConvCase("channels-17-filters-15-N3", 3, 17, 5, 4, 15, 3, 3, padding=1),
    ConvCase("channels-63-filters-8-N3", 3, 63, 5, 4, 8, 3, 3, padding=1),
    ConvCase("channels-64-filters-9-N3", 3, 64, 5, 4, 9, 3, 3, padding=1),
    ConvCase("channels-65-filters-7-N3", 3, 65, 5, 4, 7, 3, 3, padding=1),
    ConvCase("maps-64-N64", 64, 64, 3, 4, 64, 3, 3, padding=1),
    ConvCase("maps-16-24-N65", 65, 16, 5, 4, 24, 3, 3, padding=1),
    ConvCase("maps-24-40-N128", 128, 24, 4, 3, 40, 3, 3, padding=1, relu=True),
    ConvCase("filters-192-N64", 64, 16, 3, 3, 192, 3, 3, padding=1),
    ConvCase("pointwise-32-40-N16", 16, 32, 5, 3, 40, 1, 1),
    ConvCase("filter-5-groups2-N8", 8, 32, 7, 6, 48, 5, 5, padding=2, groups=2),
    ConvCase("filter-7-stride2-N8", 8, 16, 13, 12, 24, 7, 7, stride=2, padding=3),
    ConvCase("filter-11-stride4-overhang-N8", 8, 3, 24, 24, 16, 11, 11, stride=4, ceil_mode=True),
    ConvCase("groups3-filters-20-N9", 9, 48, 6, 5, 60, 3, 3, padding=1, groups=3, relu=True),
    ConvCase("stride3-maps-16-N16", 16, 16, 10, 8, 32, 3, 3, stride=3, padding=1),
    # what the tiles of whole blocks of 64 images are for
    ConvCase("folded-first-layer-N64", 64, 48, 7, 6, 96, 3, 3),
    ConvCase("filters-192-odd-columns-N65", 65, 24, 3, 5, 192, 3, 3, padding=1, relu=True),
    ConvCase("channels-192-N64", 64, 192, 3, 3, 48, 3, 3, padding=1),
    ConvCase("channels-48-filter-5-N64", 64, 48, 4, 7, 56, 5, 5, padding=2),
    ConvCase("filters-64-filter-5-N64", 64, 16, 3, 5, 64, 5, 5, padding=2),
    ConvCase("groups2-filters-32-filter-5-N64", 64, 32, 3, 4, 64, 5, 5, padding=2, groups=2),
    ConvCase("groups2-maps-32-N128", 128, 64, 4, 5, 80, 3, 3, padding=1, groups=2),
    ConvCase("pointwise-maps-136-N64", 64, 40, 3, 5, 136, 1, 1),
    ConvCase("stride2-N64", 64, 16, 9, 11, 24, 3, 3, stride=2, padding=1),
    ConvCase("many-rows-N64", 64, 16, 267, 1, 8, 3, 1),
]
CONV = [*CONV_EDGES, *CONV_TENSOR, *CONV_SHRUNK, *CONV_TINY, *CONV_FULL]


@dataclass(frozen=True)
class LocalCase(ConvCase):
    """Filters and biases of their own for every pixel; the last window may always overhang."""

    ceil_mode: bool = True

    @property
    def options(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}

    def shape(self, lanes: int = 1, N: int | None = None) -> LocalShape:
        return LocalShape.of(N or self.N, self.C, self.H, self.W, self.K, self.R, self.S, lanes=lanes, **self.options)

    def inputs(self, integers: bool = False):
        """As those of a convolution, but a weight (P, Q, K, C/groups, R, S) and a bias (K, P, Q)."""
        shape, random, make = self.shape(), self.random, _nonzero if integers else _normal
        images, filters = (self.N, self.C, self.H, self.W), (self.K, self.C // self.groups, self.R, self.S)
        sizes = images, (shape.P, shape.Q, *filters), (self.K, shape.P, shape.Q), (self.N, self.K, shape.P, shape.Q)
        return [make(random, size) for size in sizes]


LOCAL = [
    LocalCase("one-everything-N1", 1, 1, 1, 1, 1, 1, 1),
    LocalCase("primes-N5", 5, 7, 6, 9, 17, 3, 5, padding=1),
    LocalCase("primes-relu-N3", 3, 5, 9, 5, 11, 5, 3, stride=2, padding=2, relu=True),
    LocalCase("pointwise-N9", 9, 19, 5, 3, 23, 1, 1),
    LocalCase("filter-as-large-as-image-N3", 3, 4, 7, 5, 9, 7, 5),
    LocalCase("wide-filter-N2", 2, 3, 4, 9, 8, 1, 7, padding=(0, 0, 3, 3)),
    LocalCase("tall-filter-N2", 2, 3, 9, 4, 8, 7, 1, padding=(3, 3, 0, 0)),
    LocalCase("gaps-between-windows-N3", 3, 4, 17, 14, 6, 2, 3, stride=5),
    LocalCase("overhang-N3", 3, 3, 9, 10, 8, 3, 3, stride=3),
    LocalCase("overhang-padded-N2", 2, 4, 10, 12, 8, 5, 5, stride=4, padding=1),
    LocalCase("asymmetric-padding-N3", 3, 4, 8, 9, 6, 3, 4, stride=2, padding=(0, 2, 3, 1)),
    LocalCase("windows-outside-N2", 2, 3, 3, 4, 6, 3, 3, padding=4),  # the first and last see nothing of the image
    LocalCase("groups3-N3", 3, 9, 7, 8, 15, 3, 3, padding=1, groups=3),
    LocalCase("groups2-stride2-N6", 6, 10, 7, 7, 14, 3, 3, stride=2, padding=1, groups=2, relu=True),
    LocalCase("depthwise-N2", 2, 6, 5, 4, 6, 3, 3, padding=1, groups=6),
    # around the sizes of tiles and of a tensor core's operands
    LocalCase("maps-31-33-N8", 8, 31, 3, 4, 33, 3, 3, padding=1),
    LocalCase("maps-32-32-N8", 8, 32, 3, 4, 32, 3, 3, padding=1),
    LocalCase("maps-33-64-N16", 16, 33, 2, 3, 64, 2, 3, padding=1),
    LocalCase("maps-65-63-N9", 9, 65, 3, 2, 63, 3, 2, padding=1),
    LocalCase("maps-16-130-N8", 8, 16, 2, 3, 130, 3, 3, padding=1),
    LocalCase("maps-130-16-N8", 8, 130, 3, 2, 16, 1, 1),
    LocalCase("groups2-maps-80-N8", 8, 80, 3, 3, 72, 2, 2, groups=2),
    # tiles and blocks of images
    LocalCase("batch-64-N64", 64, 5, 4, 3, 12, 3, 3, padding=1),
    LocalCase("batch-65-N65", 65, 6, 3, 4, 10, 3, 3, padding=1, groups=2),
    LocalCase("batch-130-N130", 130, 4, 3, 3, 8, 2, 2),
    # of the nets that were made for CIFAR-10, narrowed
    LocalCase("local3-narrow-N16", 16, 16, 6, 6, 8, 3, 3, padding=1, relu=True),
]


@dataclass(frozen=True)
class LinearCase(Case):
    N: int
    C: int
    K: int
    relu: bool = False

    @property
    def work(self) -> float:
        return float(_lanes_padded(self.N) * self.C * self.K)

    def inputs(self, integers: bool = False):
        """x, weight, bias, dy."""
        make = _nonzero if integers else _normal
        random = self.random
        return [make(random, size) for size in ((self.N, self.C), (self.K, self.C), (self.K,), (self.N, self.K))]


def _linear(id: str, N: int, placed) -> LinearCase:
    return LinearCase(id, N, placed.C * placed.H * placed.W, placed.K, relu=placed.layer.activation == "relu")


LINEAR_FULL = _from_network(Linear, "alexnet", "full", 2, _linear)
LINEAR_SHRUNK = [
    LinearCase("fc6-shrunk-N16", 16, 9216 // 8, 4096 // 16, relu=True),
    LinearCase("fc7-shrunk-N16", 16, 4096 // 8, 4096 // 16, relu=True),
    LinearCase("fc8-shrunk-N16", 16, 4096 // 8, 1000 // 8),
]
LINEAR_TINY = _from_network(Linear, "alexnet-tiny", "tiny", 8, _linear)
LINEAR_EDGES = [
    LinearCase("one-everything-N1", 1, 1, 1),
    LinearCase("primes-N13", 13, 37, 101, relu=True),
    LinearCase("one-output-N7", 7, 67, 1),
    LinearCase("one-input-N7", 7, 1, 67),
    LinearCase("outputs-127-N9", 9, 41, 127),
    LinearCase("outputs-128-N9", 9, 41, 128),
    LinearCase("outputs-129-N9", 9, 41, 129),
    LinearCase("inputs-127-N3", 3, 127, 17),
    LinearCase("inputs-129-N3", 3, 129, 17),
    LinearCase("long-sum-N2", 2, 9216, 24),
    LinearCase("uneven-parts-N9", 9, 1031, 45, relu=True),
    LinearCase("uneven-parts-back-N9", 9, 45, 1031),
    LinearCase("many-outputs-N66", 66, 24, 2057),
    LinearCase("many-inputs-N66", 66, 2057, 24),
    LinearCase("batch-64-N64", 64, 30, 34),
    LinearCase("batch-65-N65", 65, 30, 34),
    LinearCase("batch-127-N127", 127, 29, 31),
    LinearCase("batch-129-N129", 129, 29, 31),
]
LINEAR_TENSOR = [
    LinearCase("maps-16-N16", 16, 16, 16),
    LinearCase("maps-15-17-N64", 64, 15, 17, relu=True),
    LinearCase("maps-17-15-N65", 65, 17, 15),
    LinearCase("maps-64-N128", 128, 64, 64),
    LinearCase("maps-63-65-N65", 65, 63, 65),
    LinearCase("maps-65-63-N64", 64, 65, 63),
    LinearCase("maps-256-136-N128", 128, 256, 136, relu=True),
    LinearCase("outputs-1000-N24", 24, 96, 1000),
    LinearCase("batch-257-N257", 257, 72, 136),
    LinearCase("batch-320-N320", 320, 130, 70, relu=True),
]
LINEAR = [*LINEAR_EDGES, *LINEAR_TENSOR, *LINEAR_SHRUNK, *LINEAR_TINY, *LINEAR_FULL]


@dataclass(frozen=True)
class PoolCase(Case):
    N: int
    C: int
    H: int
    W: int
    size: int
    stride: int
    padding: Padding = 0
    ceil_mode: bool = False
    ties: bool = False  # few different values, below zero for the most part

    @property
    def options(self) -> dict:
        return {"padding": self.padding, "ceil_mode": self.ceil_mode}

    def shape(self, lanes: int = 1, N: int | None = None) -> PoolShape:
        return PoolShape.of(N or self.N, self.C, self.H, self.W, self.size, self.stride, lanes=lanes, **self.options)

    @property
    def geometry(self) -> dict:
        """What ``reference.pool_forward`` takes."""
        shape = self.shape()
        return {
            "size": self.size, "stride": self.stride, "top": shape.pad_top, "left": shape.pad_left,
            "P": shape.P, "Q": shape.Q,
        }  # fmt: skip

    def inputs(self, integers: bool = False):
        """x, dy."""
        shape, random = self.shape(), self.random
        x = _normal(random, (self.N, self.C, self.H, self.W))
        if self.ties:
            x = random.integers(-5, 2, x.shape).astype(np.float32)
        return x, (_nonzero if integers else _normal)(random, (self.N, self.C, shape.P, shape.Q))


def _pool(id: str, N: int, placed) -> PoolCase:
    layer = placed.layer
    return PoolCase(id, N, placed.C, placed.H, placed.W, layer.size, layer.stride, ceil_mode=True)


POOL = [
    PoolCase("one-everything-N1", 1, 1, 1, 1, 1, 1),
    PoolCase("ties-N3", 3, 5, 9, 7, 3, 2, ties=True),
    PoolCase("ties-dense-windows-N2", 2, 3, 6, 7, 3, 1, ties=True),
    PoolCase("ties-padded-N2", 2, 3, 7, 6, 3, 2, padding=1, ties=True),
    PoolCase("no-overlap-N5", 5, 3, 8, 6, 2, 2),
    PoolCase("stride-larger-than-window-N3", 3, 4, 11, 13, 2, 5),
    PoolCase("stride-remainder-N3", 3, 4, 12, 10, 3, 2),
    PoolCase("ceil-overhang-N3", 3, 4, 12, 10, 3, 2, ceil_mode=True),
    PoolCase("ceil-overhang-ties-N2", 2, 4, 8, 10, 5, 4, ceil_mode=True, ties=True),
    PoolCase("asymmetric-padding-N3", 3, 2, 9, 8, 4, 3, padding=(0, 3, 2, 1), ties=True),
    PoolCase("padding-above-N3", 3, 2, 8, 9, 3, 2, padding=(2, 0, 0, 0), ceil_mode=True, ties=True),
    PoolCase("padding-left-N3", 3, 2, 9, 8, 3, 2, padding=(0, 0, 2, 0), ceil_mode=True, ties=True),
    PoolCase("largest-window-N2", 2, 9, 17, 16, 15, 1),
    PoolCase("window-as-large-as-image-N4", 4, 3, 6, 6, 6, 1),
    PoolCase("batch-41-N41", 41, 2, 5, 6, 3, 2),
    PoolCase("batch-65-N65", 65, 3, 5, 5, 3, 2),
    PoolCase("batch-130-N130", 130, 2, 5, 4, 2, 1, ties=True),
    *(replace(case, C=case.C // 8) for case in _from_network(Pool, "alexnet", "shrunk", 2, _pool)),
    *_from_network(Pool, "alexnet-tiny", "tiny", 8, _pool),
]


@dataclass(frozen=True)
class LrnCase(Case):
    """Inputs reach +-60 with the paper's alpha: with inputs of +-1 one could leave the sum out unnoticed."""

    N: int
    C: int
    H: int
    W: int
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    spread: float = 60.0

    @property
    def constants(self) -> dict:
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k}

    def inputs(self):
        """x, dy."""
        random, size = self.random, (self.N, self.C, self.H, self.W)
        return random.uniform(-self.spread, self.spread, size).astype(np.float32), _normal(random, size)


def _lrn(id: str, N: int, placed) -> LrnCase:
    return LrnCase(id, N, placed.C, placed.H, placed.W)


LRN = [
    LrnCase("one-everything-N1", 1, 1, 1, 1),
    LrnCase("primes-N3", 3, 11, 7, 5),
    LrnCase("size-3-N2", 2, 7, 3, 4, size=3),
    LrnCase("size-4-N2", 2, 7, 3, 4, size=4),
    LrnCase("size-2-N2", 2, 6, 3, 2, size=2),
    LrnCase("size-1-N2", 2, 5, 2, 3, size=1),
    LrnCase("size-15-larger-than-C-N2", 2, 7, 3, 3, size=15),
    LrnCase("size-16-larger-than-C-N2", 2, 7, 3, 3, size=16),
    LrnCase("beta-half-N2", 2, 9, 4, 3, beta=0.5),
    LrnCase("beta-one-k-one-N2", 2, 9, 4, 3, beta=1.0, k=1.0),
    LrnCase("alpha-large-N3", 3, 13, 4, 5, alpha=0.3, beta=0.6, k=1.5, spread=4.0),
    LrnCase("alpha-zero-N2", 2, 5, 3, 3, alpha=0.0),
    # so few pixels that channels are cut into segments
    LrnCase("segments-N2", 2, 70, 2, 3),
    LrnCase("segments-size-4-N2", 2, 67, 1, 2, size=4),
    LrnCase("segments-size-9-N2", 2, 50, 1, 2, size=9),
    LrnCase("batch-65-N65", 65, 9, 3, 2),
    LrnCase("batch-130-N130", 130, 6, 2, 2, size=3),
    *(replace(case, C=case.C // 4, H=11, W=9) for case in _from_network(Lrn, "alexnet", "shrunk", 2, _lrn)),
    *_from_network(Lrn, "alexnet-tiny", "tiny", 8, _lrn),
]


@dataclass(frozen=True)
class LrnPoolCase(Case):
    """Normalisation in ``groups`` and the pooling behind it; inputs as in ``LrnCase``, or few different values."""

    N: int
    C: int
    H: int
    W: int
    groups: int = 2
    size: int = 3
    stride: int = 2
    padding: Padding = 0
    ceil_mode: bool = True
    window: int = 5
    beta: float = 0.75
    ties: bool = False

    @property
    def constants(self) -> dict:
        return {"size": self.window, "alpha": 1e-4, "beta": self.beta, "k": 2.0}

    @property
    def pool(self) -> PoolCase:
        sizes = (self.N, self.C, self.H, self.W, self.size, self.stride)
        return PoolCase(self.id, *sizes, self.padding, self.ceil_mode)

    @property
    def lrn(self) -> LrnShape:
        return LrnShape(self.N, self.C, self.H, self.W, self.groups, 1, **self.constants)

    def inputs(self):
        """x, dp; a third of x is 0, as behind a ReLU, and the rest of any sign."""
        shape, random = self.pool.shape(), self.random
        x = random.uniform(-60, 60, (self.N, self.C, self.H, self.W)).astype(np.float32)
        if self.ties:
            x = random.integers(-2, 3, x.shape).astype(np.float32)
        x[random.random(x.shape) < 1 / 3] = 0
        return x, _normal(random, (self.N, self.C, shape.P, shape.Q))


def _lrn_pools(name: str, family: str, N: int) -> list[LrnPoolCase]:
    """Every normalisation of a network that a pooling layer follows."""
    spec = network(name)
    placed = list(placed_layers(spec))
    return [
        LrnPoolCase(f"{a.layer.name}-{family}-N{N}", N, a.C, a.H, a.W, spec.towers, b.layer.size, b.layer.stride)
        for a, b in itertools.pairwise(placed)
        if isinstance(a.layer, Lrn) and isinstance(b.layer, Pool)
    ]


LRN_POOL = [
    LrnPoolCase("one-everything-N1", 1, 1, 1, 1, groups=1, size=1, stride=1),
    LrnPoolCase("ties-N3", 3, 10, 9, 7, ties=True),
    LrnPoolCase("cut-channels-N9", 9, 74, 7, 8),  # a group becomes two segments, the second one shorter
    LrnPoolCase("three-groups-N24", 24, 21, 6, 11, groups=3),
    LrnPoolCase("many-tiles-N16", 16, 6, 23, 31),
    LrnPoolCase("batch-65-N65", 65, 8, 8, 9),
    LrnPoolCase("no-overlap-N8", 8, 12, 9, 8, size=2, stride=2),
    LrnPoolCase("dense-ties-N2", 2, 6, 5, 6, size=2, stride=1, ties=True),
    LrnPoolCase("gaps-between-windows-N3", 3, 7, 11, 13, groups=1, size=2, stride=5, ceil_mode=False),
    LrnPoolCase("uncovered-rim-N3", 3, 6, 10, 12, ceil_mode=False),
    LrnPoolCase("padded-ties-N2", 2, 8, 7, 6, padding=1, ties=True),
    LrnPoolCase("asymmetric-padding-N3", 3, 6, 9, 8, size=4, stride=3, padding=(0, 3, 2, 1), ceil_mode=False),
    LrnPoolCase("window-of-4-N3", 3, 10, 7, 9, window=4),
    LrnPoolCase("window-larger-than-C-N2", 2, 7, 6, 5, groups=1, window=16, size=2),
    LrnPoolCase("beta-half-N2", 2, 6, 5, 7, beta=0.5),
    LrnPoolCase("windows-of-three-strides-N2", 2, 6, 7, 8, size=3, stride=1),
    LrnPoolCase("largest-window-N16", 16, 4, 17, 16, size=15, stride=1),
    LrnPoolCase("windows-of-11-N3", 3, 6, 24, 19, size=11, stride=6),  # the largest of which backward keeps positions
    LrnPoolCase("windows-of-12-N3", 3, 6, 19, 24, size=12, stride=6),
    LrnPoolCase("windows-for-all-threads-N64", 64, 6, 9, 11, size=4, stride=2),
    *(replace(case, C=case.C // 8) for case in _lrn_pools("alexnet", "shrunk", 2)),
    *_lrn_pools("alexnet-tiny", "tiny", 8),
]


@dataclass(frozen=True)
class SpatialCase(Case):
    """Normalisation over pixels of a map. The sum of a window is about k, wherever it lies."""

    N: int
    C: int
    H: int
    W: int
    size: int = 3
    alpha: float = 0.1
    beta: float = 0.75
    k: float = 1.0
    spread: float = 2.0

    @property
    def constants(self) -> dict:
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k}

    def inputs(self):
        """x, dy."""
        random, size = self.random, (self.N, self.C, self.H, self.W)
        return random.uniform(-self.spread, self.spread, size).astype(np.float32), _normal(random, size)


SPATIAL = [
    SpatialCase("one-everything-N1", 1, 1, 1, 1, size=1),
    SpatialCase("primes-N3", 3, 5, 7, 11),
    SpatialCase("size-1-N2", 2, 3, 4, 5, size=1),
    SpatialCase("size-2-N2", 2, 3, 5, 6, size=2),
    SpatialCase("size-4-N2", 2, 3, 7, 6, size=4),
    SpatialCase("size-5-N3", 3, 3, 9, 8, size=5),
    SpatialCase("size-6-N2", 2, 2, 7, 9, size=6, alpha=0.05),
    SpatialCase("size-7-N2", 2, 2, 9, 8, size=7, alpha=0.05),
    SpatialCase("size-of-the-side-N2", 2, 3, 8, 8, size=8, alpha=0.03),
    SpatialCase("size-of-an-odd-side-N2", 2, 2, 9, 9, size=9, alpha=0.03),
    SpatialCase("size-of-the-larger-side-N3", 3, 2, 3, 10, size=10, alpha=0.03),
    SpatialCase("one-row-N2", 2, 3, 1, 9),
    SpatialCase("one-column-N2", 2, 3, 9, 1, size=5),
    SpatialCase("cifar-constants-N4", 4, 3, 8, 8, alpha=5e-5 / 9, spread=300.0),
    SpatialCase("beta-half-N2", 2, 3, 6, 5, beta=0.5, k=2.0),
    SpatialCase("beta-one-N2", 2, 3, 6, 5, size=4, beta=1.0),
    SpatialCase("alpha-zero-N2", 2, 3, 4, 4, alpha=0.0),
    # so few threads that columns are cut into segments, the last one shorter
    SpatialCase("segments-N2", 2, 2, 43, 3),
    SpatialCase("segments-size-5-N2", 2, 1, 33, 4, size=5),
    SpatialCase("segments-size-4-N2", 2, 1, 35, 4, size=4),
    SpatialCase("batch-12-N12", 12, 2, 4, 5),
    SpatialCase("batch-41-N41", 41, 2, 5, 3, size=4),
    SpatialCase("batch-65-N65", 65, 3, 5, 4),
    SpatialCase("batch-130-N130", 130, 2, 4, 5, size=5),
    # wider than the strips of "cpu"
    SpatialCase("wide-N65", 65, 1, 3, 100),
]


@dataclass(frozen=True)
class BlurCase(Case):
    N: int
    C: int
    H: int
    W: int
    size: int
    std: float

    def inputs(self):
        """x, dy."""
        random, size = self.random, (self.N, self.C, self.H, self.W)
        return _normal(random, size), _normal(random, size)


BLUR = [
    BlurCase("one-everything-N1", 1, 1, 1, 1, 3, 1.0),
    BlurCase("size-3-N3", 3, 2, 7, 5, 3, 0.8),
    BlurCase("size-5-N2", 2, 3, 9, 8, 5, 1.0),
    BlurCase("size-7-N2", 2, 3, 8, 11, 7, 1.5),
    BlurCase("size-9-N2", 2, 3, 13, 12, 9, 2.0),
    BlurCase("larger-than-the-image-N3", 3, 2, 3, 2, 9, 3.0),
    BlurCase("one-row-N2", 2, 3, 1, 9, 5, 1.0),
    BlurCase("nearly-a-mean-N2", 2, 2, 6, 7, 3, 50.0),
    BlurCase("nearly-nothing-N2", 2, 2, 6, 7, 5, 0.1),
    BlurCase("segments-N2", 2, 1, 43, 3, 5, 1.0),
    BlurCase("batch-41-N41", 41, 2, 5, 3, 3, 1.0),
    BlurCase("batch-65-N65", 65, 2, 5, 4, 5, 1.0),
    BlurCase("wide-N65", 65, 1, 3, 100, 7, 1.0),
]


@dataclass(frozen=True)
class NailbedCase(Case):
    N: int
    C: int
    H: int
    W: int
    stride: int

    def inputs(self):
        """x, dy."""
        random, (H, W) = self.random, (-(-side // self.stride) for side in (self.H, self.W))
        return _normal(random, (self.N, self.C, self.H, self.W)), _normal(random, (self.N, self.C, H, W))


NAILBED = [
    NailbedCase("one-everything-N1", 1, 1, 1, 1, 1),
    NailbedCase("every-pixel-N3", 3, 2, 5, 4, 1),
    NailbedCase("even-N2", 2, 3, 8, 6, 2),
    NailbedCase("odd-N2", 2, 3, 7, 9, 2),
    NailbedCase("stride-3-N3", 3, 2, 10, 11, 3),
    NailbedCase("stride-4-N2", 2, 3, 16, 14, 4),
    NailbedCase("one-pixel-N2", 2, 3, 5, 4, 7),
    NailbedCase("stride-beyond-one-side-N2", 2, 3, 3, 12, 5),
    NailbedCase("batch-41-N41", 41, 2, 5, 3, 2),
    NailbedCase("batch-65-N65", 65, 2, 5, 4, 2),
]


@dataclass(frozen=True)
class SoftmaxCase(Case):
    N: int
    K: int
    spread: float = 3.0

    def inputs(self):
        """logits, labels."""
        random = self.random
        return random.normal(0, self.spread, (self.N, self.K)).astype(np.float32), random.integers(0, self.K, self.N)


SOFTMAX = [
    SoftmaxCase("one-class-N3", 3, 1),
    SoftmaxCase("two-classes-N1", 1, 2),
    SoftmaxCase("tiny-N8", 8, 10),
    SoftmaxCase("alexnet-N5", 5, 1000),
    SoftmaxCase("primes-N67", 67, 101),
    SoftmaxCase("warp-plus-one-N9", 9, 33),
    SoftmaxCase("batch-65-N65", 65, 12),
    SoftmaxCase("large-logits-N4", 4, 20, spread=200.0),
]
