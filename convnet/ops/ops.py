"""One checked function per kernel: arguments are compared with the problem's shape before anything is launched.

Every function takes the stream first, then what the kernel takes, in the same order, as ``Array``s of the stream's
device; a count follows from the arrays. Nothing here allocates. A wrong shape, dtype or device raises ``ValueError``.

Signatures are declarations (``declare.py``). InX is an array of activations, of the shape ``shape.x``, that is read;
OutX one that is written, perhaps in place. Where nothing says otherwise, the kernel of the same name is launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..devices.protocol import Array, Stream
from ..kernels.activations import ACTIVATIONS
from ..kernels.control import WORDS
from ..kernels.precision import BF16, copy_columns
from ..kernels.shapes import (
    BlurShape,
    ConvShape,
    DropoutShape,
    GatherShape,
    IngestShape,
    LinearShape,
    LocalShape,
    LrnShape,
    NailbedShape,
    PackShape,
    PoolShape,
    SoftmaxShape,
    SpatialNormShape,
)
from .declare import DECLARED, Declaration, Scratch, op, reads, writes

F32, I32, U8, U32 = np.float32, np.int32, np.uint8, np.uint32


# ---- extents that are no attribute of a shape ----


def _product(shape: ConvShape | LinearShape, precision: str) -> tuple[int, ...]:
    """Of what a product reads: the weights, or their copy in bfloat16."""
    return shape.weight_copy if precision == "bf16" else shape.weight


def _folded(shape: ConvShape, precision: str) -> tuple[int, ...]:
    """The same of a folded layer."""
    return _product(shape.folded, precision)


def _control() -> tuple[int, ...]:
    return (WORDS,)


def _columns(weight: Array) -> int:
    """The length of a row."""
    return weight.shape[-1] if weight.shape else 1


def _copied(weight: Array) -> tuple[int, ...]:
    """Of a weight's copy in bfloat16."""
    return (*weight.shape[:-1], copy_columns(_columns(weight)))


def _luma(shape: IngestShape, luma: Array) -> tuple[int, ...]:
    """Of as many planes as there are."""
    return (luma.shape[0] if luma.shape else 0, shape.H, shape.W)


def _chroma(shape: IngestShape, luma: Array) -> tuple[int, ...]:
    return (_luma(shape, luma)[0], (shape.H + 1) // 2, (shape.W + 1) // 2)


# ---- what recurs ----

InX = Annotated[Array, reads("x")]
InY = Annotated[Array, reads("y")]
OutX = Annotated[Array, writes("x")]
OutY = Annotated[Array, writes("y")]
# of as many elements as y has
In = Annotated[Array, reads("y.size")]
Out = Annotated[Array, writes("y.size")]
# parameters, and what becomes of them
Weight = Annotated[Array, reads(_product)]
Bias = Annotated[Array, reads("K", F32)]
OutWeight = Annotated[Array, writes("weight", F32)]
OutBias = Annotated[Array, writes("K", F32)]
Updated = Annotated[Array, writes("weight.size", F32)]
Copy = Annotated[Array, writes(_copied, BF16)]
FoldedGradient = Annotated[Array, reads("shape.folded.weight", F32)]
FoldedCopy = Annotated[Array, writes(_folded)]
# the rest
Maxima = Annotated[Array, reads("y", U8)]
OutMaxima = Annotated[Array, writes("y", U8)]
Both = Annotated[Array, reads("lrn.x"), reads("pool.x")]
Chroma = Annotated[Array, reads(_chroma, U8)]
Windows = Annotated[Array, reads("per_image", I32, places=True)]
Noise = Annotated[Array, reads("per_image", F32)]
Mean = Annotated[Array, reads("mean", F32)]
Control = Annotated[Array, reads(_control, U32)]
OutControl = Annotated[Array, writes(_control, U32)]
ConvScratch = Annotated[Array, Scratch("conv_backward_filter_workspace")]
LinearScratch = Annotated[Array, Scratch("linear_workspace")]
RnormScratch = Annotated[Array, Scratch("rnorm_workspace")]
CnormScratch = Annotated[Array, Scratch("cnorm_workspace")]


# ---- products ----


@op("conv2d")
def conv_forward(
    stream: Stream, shape: ConvShape, precision: str,
    x: InX, weight: Weight, bias: Bias | None, y: OutY, relu: bool = False, accumulate: bool = False,
) -> None:  # fmt: skip
    """y = weight * x + bias, plus what y held before with ``accumulate``, then ReLU where asked."""


@op("conv2d_backward")
def conv_backward_data(
    stream: Stream, shape: ConvShape, precision: str, dy: InY, weight: Weight, dx: OutX, mask: InX | None
) -> None:
    """dx from dy; with ``mask``, the layer's input x, 0 where x is not positive."""


@op("conv2d_backward")
def conv_backward_filter(
    stream: Stream, shape: ConvShape, precision: str,
    dy: InY, x: InX, dweight: OutWeight, dbias: OutBias | None, workspace: ConvScratch | None,
) -> None:  # fmt: skip
    """dweight and dbias from dy and x, summed over the images."""


@op("linear")
def linear_forward(
    stream: Stream, shape: LinearShape, precision: str,
    x: InX, weight: Weight, bias: Bias | None, y: OutY, relu: bool,
    dropout: DropoutShape | None, control: Control | None, workspace: LinearScratch | None, accumulate: bool = False,
) -> None:  # fmt: skip
    """y = weight^T x + bias, plus what y held before with ``accumulate``, then ReLU and ``dropout`` of y where asked.

    Elements are dropped as by ``dropout_forward`` at the step in ``control``, to the same bits, but no mask is kept:
    behind a ReLU y > 0 says as much. At test, without ``control``, y is multiplied by 1 - p instead.
    """
    if dropout is not None and dropout.x != shape.y:
        raise ValueError(f"linear: dropout must be that of y, of shape {shape.y}, got {dropout}")


@op("linear_backward")
def linear_backward_data(
    stream: Stream, shape: LinearShape, precision: str,
    dy: InY, weight: Weight, dx: OutX, mask: InX | None, workspace: LinearScratch | None,
) -> None:  # fmt: skip
    """dx = weight dy; with ``mask``, the layer's input x, 0 where x is not positive."""


@op("linear_backward")
def linear_backward_filter(
    stream: Stream, shape: LinearShape, precision: str,
    dy: InY, x: InX, dweight: OutWeight, dbias: OutBias | None, workspace: LinearScratch | None,
) -> None:  # fmt: skip
    """dweight = x dy^T and dbias, summed over the images."""


@op("linear_backward_filter_update")
def linear_backward_filter_update(
    stream: Stream, shape: LinearShape, precision: str,
    dy: InY, x: InX, weight: OutWeight, velocity: OutWeight, copy: Annotated[Array, writes("weight_copy", BF16)] | None,
    dbias: OutBias | None, control: OutControl, rate: float, decay: float, momentum: float,
    workspace: LinearScratch | None,
) -> None:  # fmt: skip
    """``linear_backward_filter``, then ``sgd`` of the weight, to the same bits; the weight's gradient is stored
    nowhere.

    ``weight`` is the float32 one, ``copy`` what products in bfloat16 read. ``dbias`` is the bias's gradient, for an
    update of its own.
    """


# ---- local products, and biases for every pixel ----

PositionBias = Annotated[Array, reads("position_bias", F32)]
OutPositionBias = Annotated[Array, writes("position_bias", F32)]


@op("local2d")
def local_forward(
    stream: Stream, shape: LocalShape, precision: str,
    x: InX, weight: Weight, bias: PositionBias | None, y: OutY, relu: bool = False,
) -> None:  # fmt: skip
    """y = weight * x + bias with weights and biases of their own for every pixel, then ReLU where asked."""


@op("local2d_backward")
def local_backward_data(
    stream: Stream, shape: LocalShape, precision: str, dy: InY, weight: Weight, dx: OutX, mask: InX | None
) -> None:
    """dx from dy; with ``mask``, the layer's input x, 0 where x is not positive."""


@op("local2d_backward")
def local_backward_filter(
    stream: Stream, shape: LocalShape, precision: str,
    dy: InY, x: InX, dweight: OutWeight, dbias: OutPositionBias | None,
) -> None:  # fmt: skip
    """dweight and dbias from dy and x, summed over the images."""


@op("add_position_bias")
def add_position_bias(stream: Stream, shape: ConvShape, precision: str, x: InY, bias: PositionBias, y: OutY) -> None:
    """y = x + bias, the bias being one for every filter and pixel."""


@op("add_position_bias_backward")
def add_position_bias_backward(
    stream: Stream, shape: ConvShape, precision: str, dy: InY, dbias: OutPositionBias
) -> None:
    """dbias from dy, summed over the images."""


# ---- pooling and normalisation ----


@op("max_pool2d")
def max_pool_forward(
    stream: Stream, shape: PoolShape, precision: str, x: InX, y: OutY, argmax: OutMaxima | None
) -> None:
    """y and the position of each maximum in its window."""


@op("max_pool2d_backward")
def max_pool_backward(
    stream: Stream, shape: PoolShape, precision: str, dy: InY, argmax: Maxima, mask: InY | None, dx: OutX
) -> None:
    """dx from dy and the positions of the maxima; with ``mask``, the pooled y of a ReLU, 0 where it is not positive."""


@op("rand_pool2d")
def rand_pool_forward(
    stream: Stream, shape: PoolShape, draw: DropoutShape, precision: str,
    x: InX, y: OutY, argmax: OutMaxima | None, control: Control,
) -> None:  # fmt: skip
    """y, of each window a value that is drawn with a probability proportional to it, and the position of each, which
    ``max_pool_backward`` takes: the draw depends on the step in ``control``."""


@op("rand_pool2d_mean")
def rand_pool_mean(stream: Stream, shape: PoolShape, precision: str, x: InX, y: OutY) -> None:
    """y, the means of what is drawn."""


@op("local_response_norm")
def lrn_forward(stream: Stream, shape: LrnShape, precision: str, x: InX, y: OutX) -> None:
    """y = x (k + alpha sum x^2)^-beta."""


@op("local_response_norm_backward")
def lrn_backward(stream: Stream, shape: LrnShape, precision: str, dy: InX, x: InX, dx: OutX) -> None:
    """dx from dy and x."""


@op("lrn_pool")
def lrn_pool_forward(
    stream: Stream, lrn: LrnShape, pool: PoolShape, precision: str,
    x: Both, p: Annotated[Array, writes("pool.y")], argmax: Annotated[Array, writes("pool.y", U8)] | None,
) -> None:  # fmt: skip
    """p = the pooled lrn_forward of x, and the position of each maximum in its window."""


@op("lrn_pool_backward")
def lrn_pool_backward(
    stream: Stream, lrn: LrnShape, pool: PoolShape, precision: str,
    dp: Annotated[Array, reads("pool.y")], argmax: Annotated[Array, reads("pool.y", U8)], x: Both,
    dx: Annotated[Array, writes("lrn.x")], relu: bool = False,
) -> None:  # fmt: skip
    """dx from dp, the positions of the maxima and x; behind a ReLU, 0 where its output x is not positive."""


# ---- windows of one map ----


@op("avg_pool2d")
def avg_pool_forward(stream: Stream, shape: PoolShape, precision: str, x: InX, y: OutY) -> None:
    """y = the mean of x over every window, clipped to the image."""


@op("avg_pool2d_backward")
def avg_pool_backward(stream: Stream, shape: PoolShape, precision: str, dy: InY, mask: InX | None, dx: OutX) -> None:
    """dx from dy; with ``mask``, the layer's input x behind a ReLU, 0 where it is not positive."""


@op("spatial_response_norm")
def rnorm_forward(stream: Stream, shape: SpatialNormShape, precision: str, x: InX, y: OutX) -> None:
    """y = x (k + alpha sum x^2)^-beta, sums over pixels of a map."""


@op("spatial_response_norm_backward")
def rnorm_backward(
    stream: Stream, shape: SpatialNormShape, precision: str, dy: InX, x: InX, dx: OutX, workspace: RnormScratch | None
) -> None:
    """dx from dy and x."""


@op("local_contrast_norm")
def cnorm_forward(
    stream: Stream, shape: SpatialNormShape, precision: str, x: InX, y: OutX, workspace: CnormScratch | None
) -> None:
    """y = x (k + alpha sum u^2)^-beta, u = x less its mean, sums and means over pixels of a map."""


@op("local_contrast_norm_backward")
def cnorm_backward(
    stream: Stream, shape: SpatialNormShape, precision: str, dy: InX, x: InX, dx: OutX, workspace: CnormScratch | None
) -> None:
    """dx from dy and x as in the 2012 program, the means taken as constants."""


@op("blur2d")
def blur(stream: Stream, shape: BlurShape, precision: str, x: InX, y: OutX) -> None:
    """y = x blurred; dx from dy is the same."""


@op("nailbed2d")
def nailbed_forward(stream: Stream, shape: NailbedShape, precision: str, x: InX, y: OutY) -> None:
    """y = some pixels of x."""


@op("nailbed2d_backward")
def nailbed_backward(stream: Stream, shape: NailbedShape, precision: str, dy: InY, dx: OutX) -> None:
    """dx = dy where these pixels are, and 0 elsewhere."""


# ---- every value alone ----


@op("relu")
def relu_forward(stream: Stream, precision: str, x: In, y: Out) -> None:
    """y = max(x, 0)."""


@op("relu_backward")
def relu_backward(stream: Stream, precision: str, dy: In, y: In, dx: Out) -> None:
    """dx = dy where y > 0."""


@op("activation")
def activation_forward(
    stream: Stream, precision: str, kind: str, a: float, b: float, x: In, y: Out
) -> None:  # fmt: skip
    """y = f(x), f of the kind in ``ACTIVATIONS``, with its parameters; those it has not are ignored."""


@op("activation_backward")
def activation_backward(
    stream: Stream, precision: str, kind: str, a: float, b: float,
    dy: Annotated[Array, reads("dx.size")], saved: Annotated[Array, reads("dx.size")] | None,
    dx: Annotated[Array, writes("dx.size")],
) -> None:  # fmt: skip
    """dx = dy f'(x), from ``saved``: x or y, whichever ``ACTIVATIONS`` says that the kind reads; None where it reads
    neither."""
    needed = ACTIVATIONS[kind].reads
    if needed and saved is None:
        raise ValueError(f"activation_backward: {kind} needs {needed} as saved, got None")


@op("add")
def add(stream: Stream, precision: str, a: In, b: In, y: Out) -> None:
    """y = a + b."""


@op("scale")
def scale(stream: Stream, precision: str, x: In, factor: float, y: Out) -> None:
    """y = x * factor."""


@op("weighted_add")
def weighted_add(stream: Stream, precision: str, a: In, alpha: float, b: In, beta: float, y: Out) -> None:
    """y = alpha a + beta b."""


@op("maximum")
def maximum(stream: Stream, precision: str, a: In, b: In, y: Out) -> None:
    """y = the larger of a and b."""


@op("maximum_backward")
def maximum_backward(
    stream: Stream, precision: str, dy: In, x: In, y: In, dx: Annotated[Array, writes("y.size")]
) -> None:  # fmt: skip
    """dx = dy where x is y, the maximum of x and others: all that are equal to it get dy."""


@op("gather_channels")
def gather_channels(
    stream: Stream, shape: GatherShape, precision: str,
    x: InX, table: Annotated[Array, reads("K", I32, places=True)], y: OutY,
) -> None:  # fmt: skip
    """y[:, i] = x[:, table[i]]. That the table's channels exist is checked where it is made."""


@op("gather_channels_backward")
def gather_channels_backward(
    stream: Stream, shape: GatherShape, precision: str,
    dy: InY, starts: Annotated[Array, reads("starts", I32, places=True)],
    places: Annotated[Array, reads("K", I32, places=True)], dx: OutX,
) -> None:  # fmt: skip
    """dx[:, c] = the sum of dy[:, i] over the places i of c, in order: see ``layout.places_of_channels``."""


@op("dropout")
def dropout_forward(
    stream: Stream, shape: DropoutShape, precision: str,
    x: InX, y: OutX, mask: Annotated[Array, writes("x", U8)], control: Control,
) -> None:  # fmt: skip
    """y = x * mask, which depends on the step in ``control``."""


@op("dropout_backward")
def dropout_backward(
    stream: Stream, precision: str,
    dy: Annotated[Array, reads("mask.size")], mask: Annotated[Array, reads("mask.size", U8)],
    dx: Annotated[Array, writes("mask.size")],
) -> None:  # fmt: skip
    """dx = dy * mask."""


# ---- the two ends of a step ----


@op("softmax_cross_entropy")
def softmax_cross_entropy(
    stream: Stream, shape: SoftmaxShape, precision: str,
    logits: InX, labels: Annotated[Array, reads("per_image", I32, places=True)],
    losses: Annotated[Array, writes("per_image", F32)], ranks: Annotated[Array, writes("per_image", I32)],
    probs: Annotated[Array, writes("x", F32)] | None, dlogits: OutX | None, control: OutControl,
) -> None:  # fmt: skip
    """Losses, ranks of the true classes, probabilities, and the gradient of the mean loss. A loss that is not finite
    sets ``stopped`` in ``control``."""


@op("cost")
def cost(
    stream: Stream, shape: SoftmaxShape, precision: str, cost: str, coefficient: float,
    x: InX, labels: Annotated[Array, reads("per_image", I32, places=True)] | None,
    losses: Annotated[Array, writes("per_image", F32)], dx: OutX | None, control: OutControl,
) -> None:  # fmt: skip
    """Losses, for each image the sum of the ``COSTS`` of its features, with t 1 for its class and 0 for the others, and
    the gradient of ``coefficient`` times their mean. "squares" needs no labels. A loss that is not finite sets
    ``stopped`` in ``control``."""
    if labels is None and cost != "squares":
        raise ValueError(f"cost: {cost} needs labels, got None")


@op("ingest")
def ingest(
    stream: Stream, shape: IngestShape, precision: str,
    images: Annotated[Array, reads("images", U8)], windows: Windows, noise: Noise, mean: Mean, y: OutY,
) -> None:  # fmt: skip
    """Stored images to network input. That windows lie inside the images is checked where they are made."""


@op("ingest_planar")
def ingest_planar(
    stream: Stream, shape: IngestShape, precision: str,
    luma: Annotated[Array, reads(_luma, U8)], cb: Chroma, cr: Chroma,
    index: Annotated[Array, reads("index", I32, places=True)], windows: Windows, noise: Noise, mean: Mean, y: OutY,
) -> None:  # fmt: skip
    """The same from planes that stay on the device. That indices are theirs is checked where they are made."""


# ---- weights ----


@dataclass(frozen=True)
class Update:
    """What an update does to one tensor, in place on weight and velocity; ``copy`` becomes the new weight in bfloat16.

    ``rate``, ``decay`` and ``momentum`` multiply the learning rate, the weight decay and the momentum in the control
    block. With ``decay`` 0 the weight takes no part in its velocity.

    ``folded``: the weight is that of this convolution, and ``gradient`` and ``copy`` are those of ``folded.folded``:
    what ``unfold_gradient`` reads, and what ``fold_weight`` has written, in float32 or bfloat16, where the precision of
    the products is another than "bf16" or that.
    """

    weight: Array
    velocity: Array
    gradient: Array
    copy: Array | None
    rate: float
    decay: float
    momentum: float
    folded: ConvShape | None = None


@op("pack")
def pack(
    stream: Stream, shape: PackShape, precision: str,
    x: Annotated[Array, reads("x", F32)], y: OutY,
) -> None:  # fmt: skip
    """y = the images of x, wherever in it they lie, in lanes; see ``layout.pack_activations`` and ``fold_images``."""


@op("sgd", launches=False)
def sgd(
    stream: Stream, weight: Updated, velocity: Updated, gradient: Annotated[Array, reads("weight.size", F32)],
    copy: Copy | None, control: OutControl, rate: float, decay: float, momentum: float,
) -> None:  # fmt: skip
    """The paper's update of one tensor: see ``Update``. Nothing changes where ``control`` says ``stopped``; what has a
    gradient that is not finite stays as it is, and ``control`` then says ``spoiled``."""
    operands = (weight.size, weight, velocity, gradient, copy, _columns(weight), control, rate, decay, momentum)
    stream.launch(stream.device.kernels.sgd, *operands)


@op("sgd_many", launches=False)
def sgd_many(stream: Stream, updates: Sequence[Update], control: OutControl) -> None:
    """The update of up to 32 tensors in one launch, to the bits of ``sgd`` one by one; of one that is ``folded``, to
    those of ``unfold_gradient``, ``sgd`` and ``fold_weight``, where that has made the copy before."""
    rows = []
    for u in updates:
        arrays, factors = (u.weight, u.velocity, u.gradient, u.copy), (u.rate, u.decay, u.momentum)
        folded = None
        if u.folded is None:
            DECLARED["sgd"].check("sgd_many", (stream, *arrays, control, *factors))
        else:
            folded = u.folded, "bf16" if u.copy and u.copy.dtype == BF16 else "tf32"
            _FOLDED_UPDATE.check("sgd_many", (stream, *folded, *arrays, control))
        rows.append((u.weight.size, *arrays, _columns(u.weight), *factors, folded))
    stream.launch(stream.device.kernels.sgd_many, tuple(rows), control)


def _folded_update(
    stream: Stream, shape: ConvShape, precision: str, weight: OutWeight, velocity: OutWeight,
    gradient: FoldedGradient, copy: FoldedCopy, control: OutControl,
) -> None:  # fmt: skip
    """What ``sgd_many`` takes of a folded weight."""


_FOLDED_UPDATE = Declaration("sgd_many", _folded_update)


@op("cast_weight", launches=False)
def cast_weight(stream: Stream, weight: Annotated[Array, reads("weight.size", F32)], copy: Copy) -> None:
    """copy = weight in bfloat16, its rows padded."""
    stream.launch(stream.device.kernels.cast_weight, weight.size, _columns(weight), weight, copy)


@op("fold_weight")
def fold_weight(
    stream: Stream, shape: ConvShape, precision: str,
    weight: Annotated[Array, reads("weight", F32)], copy: FoldedCopy,
) -> None:  # fmt: skip
    """copy = the weights of ``shape.folded`` as products in ``precision`` read them, from those of ``shape``."""


@op("unfold_gradient")
def unfold_gradient(stream: Stream, shape: ConvShape, folded: FoldedGradient, gradient: OutWeight) -> None:
    """The gradient for the weights of ``shape``, gathered from that for the weights of ``shape.folded``."""
