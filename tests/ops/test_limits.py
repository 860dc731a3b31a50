"""The first value that a launcher refuses and the last that it takes, of every extent and every product of extents.

The addresses belong to nothing: what is refused must be refused before a kernel runs. What is taken is only asked
about, where it is too large to run.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import Machine

from convnet.kernels import _emu as emu
from convnet.kernels.shapes import (
    BlurShape,
    ConvShape,
    DropoutShape,
    IngestShape,
    LinearShape,
    LocalShape,
    LrnShape,
    NailbedShape,
    PoolShape,
    SoftmaxShape,
    SpatialNormShape,
)
from convnet.ops import ops

# Every extent counts on its own: two groups of other sizes, and an image that is not square.
CONV = ConvShape.of(16, 6, 8, 9, 10, 3, 4, lanes=8, groups=2)
LOCAL = LocalShape.of(16, 6, 8, 9, 10, 3, 4, lanes=8, groups=2)
LINEAR = LinearShape(16, 5, 7, 8)
POOL = PoolShape.of(16, 3, 8, 9, 3, 2, lanes=8)
LRN = LrnShape(16, 6, 8, 9, 2, 8, 5, 1e-4, 0.75, 2.0)
SPATIAL = SpatialNormShape(16, 6, 8, 9, 8, 5, 1e-4, 0.75, 2.0)
BLUR = BlurShape(16, 6, 8, 9, 8, 5, 1.0)
NAILBED = NailbedShape.of(16, 6, 8, 9, 2, lanes=8)  # the last row and column that are taken: 6 and 8
DROPOUT = DropoutShape(16, 4, 8, 2, 6, 0.5, 1, 0)
SOFTMAX = SoftmaxShape(16, 16, 7, 8)
INGEST = IngestShape(16, 16, 12, 13, 12, 8, (1.0, 1.0, 1.0), fold=2)
TINY = {"N": 8, "C": 1, "H": 1, "W": 1, "K": 1, "R": 1, "S": 1, "P": 1, "Q": 1, "groups": 1}
NOTHING = (16,) * 9  # addresses


def conv(shape):
    for op in ("conv_forward", "conv_backward_data", "conv_backward_filter"):
        emu.conv_variant(op, shape, "fp32")


def local(shape):
    for op in ("local_forward", "local_backward_data", "local_backward_filter"):
        emu.local_variant(op, shape, "fp32")


def position_bias(shape):
    emu.add_position_bias(shape, "fp32", *NOTHING[:3], 0)


def linear(shape):
    for op in ("linear_forward", "linear_backward_data", "linear_backward_filter"):
        emu.linear_variant(op, shape, "fp32")


def pool(shape):
    emu.max_pool_forward(shape, "fp32", *NOTHING[:3], 0)


def lrn(shape):
    emu.lrn_forward(shape, "fp32", *NOTHING[:2], 0)


def avg_pool(shape):
    emu.avg_pool_forward(shape, "fp32", *NOTHING[:2], 0)


def rand_pool(shape):
    draw = DropoutShape(shape.N, shape.C * shape.P * shape.Q, shape.lanes, 0, 2**20, 0.0, 1, 1)
    emu.rand_pool_forward(shape, draw, "fp32", *NOTHING[:4], 0)


def rand_pool_mean(shape):
    emu.rand_pool_mean(shape, "fp32", *NOTHING[:2], 0)


def unpool(shape):
    emu.avg_pool_backward(shape, "fp32", *NOTHING[:3], 0)


def rnorm(shape):
    emu.rnorm_forward(shape, "fp32", *NOTHING[:2], 0)


def rnorm_workspace(shape):
    emu.rnorm_workspace(shape, "fp32")


def cnorm(shape):
    emu.cnorm_backward(shape, "fp32", *NOTHING[:4], 0)


def blur(shape):
    emu.blur(shape, "fp32", *NOTHING[:2], 0)


def nailbed(shape):
    emu.nailbed_forward(shape, "fp32", *NOTHING[:2], 0)


def unnailbed(shape):
    emu.nailbed_backward(shape, "fp32", *NOTHING[:2], 0)


def dropout(shape):
    emu.dropout_forward(shape, "fp32", *NOTHING[:4], 0)


def cost(shape):
    emu.cost(shape, "fp32", "squared-error", 1.0, *NOTHING[:5], 0)


def softmax(shape):
    emu.softmax_cross_entropy(shape, "fp32", *NOTHING[:7], 0)


def ingest(shape):
    emu.ingest(shape, "fp32", *NOTHING[:5], 0)


def fold(shape):
    emu.fold_weight(shape, "bf16", *NOTHING[:2], 0)


def unfold(shape):
    emu.unfold_gradient(shape, *NOTHING[:2], 0)


POSITIVE, GROUPS, LANES = "every size must be at least 1", "groups must divide", "lanes must be a multiple of 8"
VALUES, FILTERS = (
    "must have fewer than 2\\^31 values, got C/groups\\*H",
    "filters of a group must have fewer than 2\\^31",
)
TAPS = "R \\* W \\* lanes and S \\* lanes must be below 2\\^31"
PLACES, WINDOW = "coordinates must stay below 2\\^28", "every window must hold a pixel"
REFUSED = [
    *((conv, CONV, {field: 0}, POSITIVE) for field in "NCHWKRS"),
    *((conv, CONV, {field: 0}, "at least one pixel") for field in "PQ"),
    (conv, CONV, {"stride": 0}, "stride must be at least 1"),
    *((conv, CONV, change, GROUPS) for change in ({"groups": 0}, {"C": 5}, {"K": 9})),
    *((conv, CONV, change, LANES) for change in ({"lanes": 4}, {"N": 24, "lanes": 12}, {"N": 12})),
    # 2^31 values of a group, in an input, in an output, in its filters
    (conv, CONV, {"C": 2 * 16, "H": 2**11, "W": 2**13}, VALUES),
    (conv, CONV, {"K": 2 * 16, "P": 2**11, "Q": 2**13}, VALUES),
    (conv, CONV, {"N": 64, "lanes": 64, "C": 2 * 2, "H": 2**11, "W": 2**13}, VALUES),
    (conv, CONV, {"N": 64, "lanes": 64, "K": 2 * 2, "P": 2**11, "Q": 2**13}, VALUES),
    (conv, CONV, {"C": 2 * 16, "R": 2**11, "S": 2**13, "K": 2 * 1}, FILTERS),
    (conv, CONV, {"P": 2, "stride": 2**27 - 2, "R": 4, "Q": 1, "S": 1}, PLACES),
    (conv, CONV, {"Q": 2, "stride": 2**27 - 2, "S": 4, "P": 1, "R": 1}, PLACES),
    *((conv, CONV, {field: 2**28}, PLACES) for field in ("pad_top", "pad_left")),
    (conv, CONV, {**TINY, "R": 2**21, "W": 2**7}, TAPS),
    (conv, CONV, {**TINY, "N": 64, "lanes": 64, "S": 2**25}, TAPS),
    (conv, CONV, {"groups": 65536, "C": 65536, "K": 65536}, "groups must be at most 65535"),
    *(
        (call, shape, change, message)
        for call, shape in ((local, LOCAL), (position_bias, CONV))
        for change, message in [
            *(({field: 0}, POSITIVE) for field in "NCHWKRS"),
            *(({field: 0}, "at least one pixel") for field in "PQ"),
            *((change, GROUPS) for change in ({"groups": 0}, {"C": 5}, {"K": 9})),
            *((change, LANES) for change in ({"lanes": 4}, {"N": 24, "lanes": 12}, {"N": 12})),
            ({"K": 2 * 16, "P": 2**11, "Q": 2**13}, VALUES),
        ]
    ),
    (local, LOCAL, {"P": 1, "Q": 1, "C": 2 * 16, "R": 2**11, "S": 2**13, "K": 2 * 1}, FILTERS),
    (local, LOCAL, {**TINY, "N": 2**30}, "N must be below 2\\^30"),
    (local, LOCAL, {"P": 2**8, "Q": 2**8, "C": 2**10, "K": 2**12, "R": 2, "S": 3}, "tensors of at most"),
    *((linear, LINEAR, {field: 0}, POSITIVE) for field in "NCK"),
    *((linear, LINEAR, change, LANES) for change in ({"lanes": 4}, {"N": 24, "lanes": 12}, {"N": 12})),
    (linear, LINEAR, {"C": 2**28}, "C and K must be below"),
    (linear, LINEAR, {"K": 2**28 - 7}, "C and K must be below"),
    (linear, LINEAR, {"N": 2**30}, "N below 2\\^30"),
    *(
        (call, POOL, change, message)
        for call in (pool, avg_pool, unpool, rand_pool, rand_pool_mean)
        for change, message in [
            *((change, "the window must be 1 to 15") for change in ({"size": 0}, {"size": 16}, {"stride": 0})),
            ({"stride": 65536, "P": 1, "Q": 1}, "the window must be 1 to 15"),
            *(({field: 3}, "padding must be smaller") for field in ("pad_top", "pad_left")),
            *((change, WINDOW) for change in ({"P": 0}, {"Q": 0}, {"P": 5}, {"Q": 6})),
            *((change, WINDOW) for change in ({"P": 6, "pad_top": 2}, {"Q": 7, "pad_left": 2})),
            *((change, LANES) for change in ({"N": 12}, {"N": 0}, {"lanes": 4}, {"N": 24, "lanes": 12})),
        ]
    ),
    *(
        (call, SPATIAL, change, message)
        for call in (rnorm, rnorm_workspace, cnorm)
        for change, message in [
            *(({"size": size}, "size must be 1 to the larger side of the image") for size in (0, 10)),
            *(({field: 0}, "sizes must be positive") for field in "CHW"),
            *((change, LANES) for change in ({"N": 12}, {"N": 0}, {"lanes": 4}, {"N": 24, "lanes": 12})),
        ]
    ),
    *((blur, BLUR, {"size": size}, "size must be 3, 5, 7 or 9") for size in (1, 2, 4, 8, 10, 11)),
    *((blur, BLUR, {"std": std}, "std must be a positive number") for std in (0.0, -1.0, float("nan"), float("inf"))),
    *((blur, BLUR, {field: 0}, "sizes must be positive") for field in "CHW"),
    *((blur, BLUR, change, LANES) for change in ({"N": 12}, {"lanes": 4})),
    *(
        (call, NAILBED, change, "every pixel must lie in the image")
        for call in (nailbed, unnailbed)
        for change in ({"P": 0}, {"Q": 0}, {"P": 5}, {"Q": 6}, {"top": 2}, {"left": 1}, {"stride": 0}, {"stride": 3})
    ),
    *((nailbed, NAILBED, change, LANES) for change in ({"N": 12}, {"lanes": 4})),
    *((lrn, LRN, {"size": size}, "size must be 1 to 16") for size in (0, 17)),
    *((lrn, LRN, change, GROUPS) for change in ({"groups": 0}, {"C": 0}, {"C": 5})),
    *((lrn, LRN, {field: 0}, "sizes must be positive") for field in "HW"),
    *((dropout, DROPOUT, {"p": p}, "p must lie in 0..1") for p in (-0.001, 1.001, float("nan"))),
    (dropout, DROPOUT, {"feature_offset": 3}, "features must lie in the unsplit layer"),
    (dropout, DROPOUT, {"features": 0}, "sizes must be positive"),
    (dropout, DROPOUT, {"features": 2**30 - 128, "features_total": 2**30}, "too large for 32-bit"),
    *((call, SOFTMAX, {"valid": valid}, "valid must be 1 to N") for valid in (0, 17) for call in (softmax, cost)),
    (cost, SOFTMAX, {"K": 0}, "the number of features must be 1 to"),
    *((cost, SOFTMAX, change, LANES) for change in ({"N": 12}, {"lanes": 4})),
    (softmax, SOFTMAX, {"K": 0}, "the number of classes must be 1 to"),
    *((ingest, INGEST, {"valid": valid}, "valid must be 1 to N") for valid in (0, 17)),
    *((ingest, INGEST, {"crop": crop}, "crop must be at least 1 and fit") for crop in (0, 14)),
    *((ingest, INGEST, change, "crop must be at least 1 and fit") for change in ({"H": 11}, {"W": 11})),
    (ingest, INGEST, {"H": 65536, "W": 65536, "crop": 65536}, "crop must be at least 1 and fit"),
    *((ingest, INGEST, {"fold": fold}, "fold must divide crop") for fold in (0, 5)),
    *(
        (call, CONV, change, message)
        for call in (fold, unfold)
        for change, message in [
            *((change, GROUPS) for change in ({"groups": 0}, {"C": 0}, {"K": 0}, {"C": 5}, {"K": 9})),
            *(({field: size}, "filters must be 1 to 65535") for field in "RS" for size in (0, 65536)),
            *(({"stride": stride}, "the stride 1 to 255") for stride in (0, 256)),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "shape", "change", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", None)
)
def test_the_first_that_is_refused(call, shape, change, message):
    with pytest.raises(ValueError, match=message):
        call(replace(shape, **change))


MOST = 15 * 1247 * 14351  # 2^28 - 1
TAKEN = [
    (rnorm_workspace, SPATIAL, {"size": 9}),
    (conv, CONV, TINY),
    (conv, CONV, {"C": 2 * 15, "H": 1247, "W": 14351}),
    (conv, CONV, {"K": 2 * 15, "P": 1247, "Q": 14351}),
    (conv, CONV, {"C": 2 * 15, "R": 1247, "S": 14351, "K": 2 * 8}),
    (conv, CONV, {"P": 2, "stride": 2**27 - 2, "R": 3, "Q": 1, "S": 1}),
    (conv, CONV, {"Q": 2, "stride": 2**27 - 2, "S": 3, "P": 1, "R": 1}),
    *((conv, CONV, {field: 2**28 - 1}) for field in ("pad_top", "pad_left")),
    (conv, CONV, {**TINY, "R": 2**21 - 1, "W": 2**7}),
    (conv, CONV, {**TINY, "N": 64, "lanes": 64, "S": 2**25 - 1}),
    (conv, CONV, {"groups": 65535, "C": 65535, "K": 65535}),
    (conv, CONV, {"N": 8}),
    (local, LOCAL, TINY),
    (local, LOCAL, {**TINY, "N": 2**30 - 8}),
    (local, LOCAL, {"P": 2**8, "Q": 2**8, "C": 2**10, "K": 2**12, "R": 2, "S": 2}),
    (linear, LINEAR, {"N": 8, "C": 1, "K": 1}),
    (linear, LINEAR, {"C": MOST}),
    (linear, LINEAR, {"K": 2**28 - 8}),
    (linear, LINEAR, {"N": 2**30 - 8, "C": 1, "K": 1}),
]


@pytest.mark.parametrize(("call", "shape", "change"), TAKEN, ids=lambda value: getattr(value, "__name__", None))
def test_the_last_that_is_taken(call, shape, change):
    call(replace(shape, **change))


@pytest.mark.parametrize("change", [{"N": 8}, {"C": 8}, {"H": 9}, {"W": 10}, {"lanes": 16}], ids=str)
def test_normalisation_and_pooling_have_one_image(change):
    both = replace(POOL, C=6)
    other = replace(LRN, **change)
    with pytest.raises(ValueError, match="both shapes must have the same N, C, H, W and lanes"):
        emu.lrn_pool_forward(other, both, "fp32", *NOTHING[:3], 0)
    with pytest.raises(ValueError, match="both shapes must have the same N, C, H, W and lanes"):
        emu.lrn_pool_backward(other, both, "fp32", *NOTHING[:4], True, 0)


@pytest.mark.parametrize("change", [{"N": 8}, {"features": 8}, {"lanes": 16}], ids=str)
def test_dropout_is_of_the_output(change):
    dropout = replace(DropoutShape(16, 7, 8, 0, 9, 0.5, 1, 0), **change)
    with pytest.raises(ValueError, match=r"linear_forward: dropout must be of y, N=16 features=7 lanes=8"):
        emu.linear_forward(LINEAR, "fp32", 16, 16, None, 16, True, dropout, 16, 16, False, 0)


@pytest.mark.parametrize(("count", "columns"), [(16, 0), (17, 16)])
def test_a_copied_weight_is_whole_rows(count, columns):
    with pytest.raises(ValueError, match="cast_weight: a weight must be whole rows"):
        emu.cast_weight(count, columns, *NOTHING[:2], 0)
    with pytest.raises(ValueError, match="sgd: a weight must be whole rows"):
        emu.sgd(count, *NOTHING[:4], columns, 16, 1.0, 1.0, 1.0, 0)


def test_bytes_are_read_four_at_a_time():
    for address in (17, 18, 19):
        with pytest.raises(ValueError, match=f"arrays of bytes must start at a multiple of 4, got address {address}"):
            emu.max_pool_forward(POOL, "fp32", 16, 16, address, 0)


def test_the_largest_count_of_a_map():
    with pytest.raises(ValueError, match=r"relu_forward: count must be 0 to 2199023254528, got 2199023254529"):
        emu.relu_forward((2**31 - 1) * 1024 + 1, "fp32", 16, 16, 0)


def test_the_most_values_of_one_update():
    def update(*counts):
        emu.note_launches(132)
        try:
            emu.sgd_many([(count, *NOTHING[:3], None, 1, 1.0, 1.0, 1.0, None) for count in counts], 16, 0)
        finally:
            noted = emu.noted_launches()
        return noted

    [(_, grid, *_)] = update(2**40, 2**40 - 1024)
    assert grid == (2**31 - 1, 1, 1)
    with pytest.raises(ValueError, match="sgd_many: there are too many values for one launch, got 2147483648 blocks"):
        update(2**40, 2**40)


@pytest.mark.parametrize("change", [{"R": 65535}, {"S": 65535}, {"stride": 255}], ids=str)
def test_the_largest_filters_and_strides_fold(change):
    machine = Machine("emu")
    shape = replace(CONV, **{**TINY, **change})
    values = np.arange(np.prod(shape.folded.weight), dtype=np.float32).reshape(shape.folded.weight)
    gradient = machine.empty(shape.weight)
    ops.unfold_gradient(machine.stream, shape, machine.put(values), gradient)
    np.testing.assert_array_equal(gradient.download().ravel(), values.ravel()[: gradient.size])
    machine.device.close()
