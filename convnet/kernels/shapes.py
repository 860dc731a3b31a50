"""Problem shapes: what one kernel call computes on, with the formulas for output sizes, FLOPs and layouts.

Letters as everywhere in the field: N images, C input channels, H W input size, K filters, R S filter size, P Q output
size. Each class has the fields of the C++ struct of the same name in ``src/kernels/shapes.hpp``; the bindings read them
by name.

On a device N is padded to whole blocks of ``lanes`` images, and activations lie as ``(N/L, C, H, W, L)``,
weights as ``(groups, C/groups, R, S, K/groups)``, those of a ``LocalShape`` so for every pixel, behind P and Q.
``weight_copy`` is the shape of the bfloat16 copy of the weights, whose rows are padded with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .precision import copy_columns

Padding = int | tuple[int, int, int, int]


def output_size(size: int, window: int, stride: int, before: int, after: int, ceil_mode: bool) -> int:
    """Number of window positions along one axis.

    Rounds down, or up with ``ceil_mode`` (cuda-convnet's rule: the last window may overhang the padded image). Raises
    ``ValueError`` when not even one window fits.
    """
    span = size + before + after - window
    if window < 1 or stride < 1 or before < 0 or after < 0 or span < 0:
        raise ValueError(
            f"a window of {window} with stride {stride} does not fit a size of {size} with padding {before} + {after}: "
            "window and stride must be at least 1, padding at least 0, and the window at most the padded size"
        )
    return 1 + (-(-span // stride) if ceil_mode else span // stride)


def four_paddings(padding: Padding) -> tuple[int, int, int, int]:
    """``padding`` as (top, bottom, left, right)."""
    if isinstance(padding, tuple):
        if len(padding) != 4:
            raise ValueError(f"padding must be an int or (top, bottom, left, right), got {padding}")
        return padding
    return (padding, padding, padding, padding)


@dataclass(frozen=True)
class ConvShape:
    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    stride: int
    pad_top: int
    pad_left: int
    groups: int
    lanes: int

    @staticmethod
    def of(
        N: int,
        C: int,
        H: int,
        W: int,
        K: int,
        R: int,
        S: int,
        *,
        stride: int = 1,
        padding: Padding = 0,
        groups: int = 1,
        ceil_mode: bool = False,
        lanes: int,
    ) -> ConvShape:
        """Derives P and Q. Raises ``ValueError`` for geometry that cannot be."""
        if min(N, C, H, W, K, R, S, groups, lanes) < 1 or C % groups or K % groups:
            raise ValueError(
                f"conv2d: sizes must be positive and groups must divide channels and filters, got N={N} C={C} H={H} "
                f"W={W} K={K} R={R} S={S} groups={groups}; choose groups that divide both"
            )
        top, bottom, left, right = four_paddings(padding)
        P = output_size(H, R, stride, top, bottom, ceil_mode)
        Q = output_size(W, S, stride, left, right, ceil_mode)
        return ConvShape(N, C, H, W, K, R, S, P, Q, stride, top, left, groups, lanes)

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.H, self.W, self.lanes)

    @property
    def y(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.K, self.P, self.Q, self.lanes)

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.groups, self.C // self.groups, self.R, self.S, self.K // self.groups)

    @property
    def weight_copy(self) -> tuple[int, ...]:
        return (*self.weight[:-1], copy_columns(self.weight[-1]))

    @property
    def position_bias(self) -> tuple[int, ...]:
        """Of a bias for every filter and output pixel."""
        return (self.K, self.P, self.Q)

    @property
    def folded(self) -> ConvShape:
        """The same convolution with stride 1: each ``stride`` x ``stride`` pixels of a channel become channels of one.

        For a convolution without padding above and left. Channel ``(c * stride + i) * stride + j`` holds the pixels
        whose row and column leave the remainders i and j. P and Q stay: what overhangs reads as zero.
        """
        s = self.stride
        if self.pad_top or self.pad_left or self.groups != 1:
            raise ValueError(f"conv2d: only a convolution with one group and no padding can be folded, got {self}")
        H, W, R, S = (-(-size // s) for size in (self.H, self.W, self.R, self.S))
        return replace(self, C=self.C * s * s, H=H, W=W, R=R, S=S, stride=1)

    @property
    def macs(self) -> int:
        """Multiply-adds of one pass, padding taps included."""
        return self.N * self.K * self.P * self.Q * (self.C // self.groups) * self.R * self.S


@dataclass(frozen=True)
class LocalShape(ConvShape):
    """A convolution that has filters and biases of its own at every output pixel."""

    @staticmethod
    def of(  # type: ignore[override]
        N: int,
        C: int,
        H: int,
        W: int,
        K: int,
        R: int,
        S: int,
        *,
        stride: int = 1,
        padding: Padding = 0,
        groups: int = 1,
        lanes: int,
    ) -> LocalShape:
        """As ``ConvShape.of`` with ``ceil_mode``: the only rounding that there is of these layers."""
        sizes = (N, C, H, W, K, R, S)
        shape = ConvShape.of(*sizes, stride=stride, padding=padding, groups=groups, ceil_mode=True, lanes=lanes)
        return LocalShape(**vars(shape))

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.P, self.Q, *super().weight)


@dataclass(frozen=True)
class LinearShape:
    N: int
    C: int
    K: int
    lanes: int

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.lanes)

    @property
    def y(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.K, self.lanes)

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.C, self.K)

    @property
    def weight_copy(self) -> tuple[int, ...]:
        return (self.C, copy_columns(self.K))

    @property
    def macs(self) -> int:
        return self.N * self.C * self.K


@dataclass(frozen=True)
class PoolShape:
    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int
    size: int
    stride: int
    pad_top: int
    pad_left: int
    lanes: int

    @staticmethod
    def of(
        N: int,
        C: int,
        H: int,
        W: int,
        size: int,
        stride: int,
        *,
        padding: Padding = 0,
        ceil_mode: bool = False,
        lanes: int,
    ) -> PoolShape:
        """Derives P and Q. Raises ``ValueError`` for impossible geometry, and where a window would hold no pixel."""
        top, bottom, left, right = four_paddings(padding)
        if min(N, C, H, W, lanes) < 1 or not 1 <= size <= 15:
            raise ValueError(
                f"max_pool2d: sizes must be positive and the window between 1 and 15, got N={N} C={C} "
                f"H={H} W={W} size={size}"
            )
        if max(top, bottom, left, right) >= size:
            raise ValueError(f"max_pool2d: padding must be smaller than the window, got padding={padding} size={size}")
        P = output_size(H, size, stride, top, bottom, ceil_mode)
        Q = output_size(W, size, stride, left, right, ceil_mode)
        if (P - 1) * stride - top >= H or (Q - 1) * stride - left >= W:
            raise ValueError(
                f"max_pool2d: the last window would lie outside the {H}x{W} image, with size={size} stride={stride} "
                f"padding={padding} ceil_mode={ceil_mode}; use ceil_mode=False or less padding"
            )
        return PoolShape(N, C, H, W, P, Q, size, stride, top, left, lanes)

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.H, self.W, self.lanes)

    @property
    def y(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.P, self.Q, self.lanes)


@dataclass(frozen=True)
class LrnShape:
    N: int
    C: int
    H: int
    W: int
    groups: int
    lanes: int
    size: int
    alpha: float
    beta: float
    k: float

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.H, self.W, self.lanes)


@dataclass(frozen=True)
class SpatialNormShape:
    """Of a normalisation over ``size`` x ``size`` pixels of one map."""

    N: int
    C: int
    H: int
    W: int
    lanes: int
    size: int
    alpha: float
    beta: float
    k: float

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.H, self.W, self.lanes)


@dataclass(frozen=True)
class BlurShape:
    N: int
    C: int
    H: int
    W: int
    lanes: int
    size: int
    std: float

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.H, self.W, self.lanes)


@dataclass(frozen=True)
class NailbedShape:
    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int
    stride: int
    top: int
    left: int
    lanes: int

    @staticmethod
    def of(N: int, C: int, H: int, W: int, stride: int, *, lanes: int) -> NailbedShape:
        """Derives P, Q and the first pixel: as many as fit, ``stride`` apart, in the middle of the image."""
        if min(N, C, H, W, stride, lanes) < 1:
            raise ValueError(
                f"nailbed2d: sizes and stride must be positive, got N={N} C={C} H={H} W={W} stride={stride}"
            )
        P, Q = -(-H // stride), -(-W // stride)
        top, left = ((side - stride * (count - 1)) // 2 for side, count in ((H, P), (W, Q)))
        return NailbedShape(N, C, H, W, P, Q, stride, top, left, lanes)

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.H, self.W, self.lanes)

    @property
    def y(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.P, self.Q, self.lanes)


@dataclass(frozen=True)
class DropoutShape:
    N: int
    features: int
    lanes: int
    feature_offset: int
    features_total: int
    p: float
    seed: int
    layer: int

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.features, self.lanes)


@dataclass(frozen=True)
class SoftmaxShape:
    N: int
    valid: int
    K: int
    lanes: int

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.K, self.lanes)

    @property
    def per_image(self) -> tuple[int, ...]:
        """Of labels, losses and ranks."""
        return (self.N,)


@dataclass(frozen=True)
class IngestShape:
    N: int
    valid: int
    H: int
    W: int
    crop: int
    lanes: int
    scale: tuple[float, float, float]  # of the channels
    fold: int = 1

    @property
    def images(self) -> tuple[int, ...]:
        return (self.valid, self.H, self.W, 3)

    @property
    def index(self) -> tuple[int, ...]:
        """Of the places of images among those that are kept."""
        return (self.valid,)

    @property
    def per_image(self) -> tuple[int, ...]:
        """Of windows and noise."""
        return (self.valid, 3)

    @property
    def mean(self) -> tuple[int, ...]:
        return (3, self.crop, self.crop)

    @property
    def y(self) -> tuple[int, ...]:
        size = self.crop // self.fold
        return (self.N // self.lanes, 3 * self.fold**2, size, size, self.lanes)


@dataclass(frozen=True)
class PackShape:
    """Images, or filters, in memory of others, on their way into lanes: the value (n, c, h, w) lies ``offset`` and so
    many steps behind the start of x."""

    N: int
    valid: int
    C: int
    H: int
    W: int
    lanes: int
    fold: int
    offset: int
    step_n: int
    step_c: int
    step_h: int
    step_w: int

    @property
    def x(self) -> int:
        """Values up to the last one that is read."""
        sizes, steps = (self.valid, self.C, self.H, self.W), (self.step_n, self.step_c, self.step_h, self.step_w)
        return self.offset + 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))

    @property
    def y(self) -> tuple[int, ...]:
        s = self.fold
        return (self.N // self.lanes, self.C * s * s, -(-self.H // s), -(-self.W // s), self.lanes)


@dataclass(frozen=True)
class GatherShape:
    """K channels picked from C. ``mirror``: the columns of images, the last one first; a row is an image of one pixel
    then, whose channels are the columns.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    lanes: int

    @staticmethod
    def mirror(N: int, C: int, H: int, W: int, lanes: int) -> GatherShape:
        return GatherShape(N * C * H, W, 1, 1, W, lanes)

    @property
    def x(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.C, self.H, self.W, self.lanes)

    @property
    def y(self) -> tuple[int, ...]:
        return (self.N // self.lanes, self.K, self.H, self.W, self.lanes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Of where each channel's places begin, and where the last one's end."""
        return (self.C + 1,)
