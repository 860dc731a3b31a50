"""What is particular to the "cpu" device's kernels: how work is cut and shared, and the scratch memory it uses.

That the kernels compute the right thing is in the test_ops files, with all other devices.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import programs
import pytest
from runs import ELSEWHERE
from threadpoolctl import threadpool_info, threadpool_limits

import convnet
from convnet.devices.blas import NAMES, use_blas
from convnet.devices.opening import open_device
from convnet.kernels.costs import COSTS
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

CONV = ConvShape.of(12, 6, 13, 11, 8, 3, 5, stride=2, padding=(1, 2, 3, 0), groups=2, ceil_mode=True, lanes=12)
DENSE = ConvShape.of(12, 6, 13, 11, 8, 3, 3, padding=1, groups=2, lanes=12)
# as many lanes as direct convolutions need: whole vectors of either width, of the narrower, of none
WIDE = ConvShape.of(32, 10, 9, 7, 26, 3, 3, padding=1, groups=2, lanes=32)
NARROW = ConvShape.of(24, 3, 9, 10, 7, 5, 4, stride=2, padding=(2, 1, 1, 0), lanes=24)
UNEVEN = ConvShape.of(21, 4, 6, 7, 13, 3, 2, padding=(0, 1, 2, 0), lanes=21)
BLOCKS = ConvShape.of(32, 4, 6, 7, 13, 3, 3, padding=1, lanes=16)
DIRECT = (WIDE, NARROW, UNEVEN, BLOCKS)
# products of transformed tiles: of whole vectors and of half ones, in blocks, with tiles that hang over
TILES = (
    ConvShape.of(32, 130, 9, 7, 133, 3, 3, padding=(1, 2, 0, 1), lanes=16),
    ConvShape.of(48, 128, 8, 11, 140, 5, 5, padding=2, groups=2, lanes=24),
    ConvShape.of(16, 70, 13, 14, 66, 3, 3, lanes=8),
)
POOL = PoolShape.of(12, 6, 13, 11, 3, 2, ceil_mode=True, lanes=12)
LRN = LrnShape(12, 6, 13, 11, 2, 12, 5, 1e-2, 0.75, 2.0)
SPATIAL = SpatialNormShape(12, 6, 13, 11, 12, 5, 1e-2, 0.75, 2.0)
BLUR = BlurShape(12, 6, 13, 11, 12, 5, 1.0)
NAILBED = NailbedShape.of(12, 6, 13, 11, 2, lanes=12)
# vectors along the rows
FEW = ConvShape.of(3, 6, 13, 11, 14, 3, 5, padding=(1, 2, 3, 0), groups=2, ceil_mode=True, lanes=3)
ONE = ConvShape.of(2, 5, 20, 23, 7, 7, 5, stride=3, padding=(0, 1, 2, 0), ceil_mode=True, lanes=1)
LOCALS = (
    LocalShape.of(24, 6, 7, 5, 10, 3, 4, stride=2, padding=(1, 2, 3, 0), groups=2, lanes=12),
    LocalShape.of(21, 5, 4, 6, 13, 3, 3, padding=1, lanes=21),
)
LINEARS = [
    LinearShape(*extents)
    for extents in ((12, 1100, 530, 12), (64, 130, 256, 32), (64, 133, 300, 64), (40, 70, 131, 40), (3, 77, 90, 1))
]


KERNELS = open_device("cpu").kernels


def integers(shape):
    random = np.random.default_rng(len(shape))
    return (random.integers(1, 4, shape) * random.choice([-1, 1], shape)).astype(np.float32)


def run(kernel: str, *arguments) -> None:
    """With arrays as their addresses."""
    getattr(KERNELS, kernel)(*[a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments])


def higher_levels() -> range:
    """Those of this processor beside the lowest; skips where there is none."""
    with pytest.raises(ValueError, match=r"this processor has levels 0 to [012], got 3") as refused:
        KERNELS.set_level(3)
    highest = int(re.search("to ([012])", str(refused.value))[1])
    return range(1, highest + 1) if highest else pytest.skip("this processor has no vectors wider than all have")


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    KERNELS.set_tile_bytes(0)
    KERNELS.set_level(-1)
    KERNELS.poison_scratch(False)
    assert use_blas(KERNELS)


def poisoned(shape, dtype=np.float32):
    return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)


def convolve(shape: ConvShape) -> list[np.ndarray]:
    """y, dx, dweight and dbias of small integers, outputs starting as NaN."""
    x, weight, dy = integers(shape.x), integers(shape.weight), integers(shape.y)
    y, dx, dweight, dbias = (poisoned(s) for s in (shape.y, shape.x, shape.weight, (shape.K,)))
    run("conv_forward", shape, "fp32", x, weight, integers((shape.K,)), y, True, False, 0)
    run("conv_backward_data", shape, "fp32", dy, weight, dx, x, 0)
    run("conv_backward_filter", shape, "fp32", dy, x, dweight, dbias, None, 0)
    return [y, dx, dweight, dbias]


def windows(x, dy) -> list[np.ndarray]:
    """Normalisation over pixels, blur and nailbed of x, and their gradients, outputs starting as NaN."""
    results = [poisoned(SPATIAL.x) for _ in range(6)] + [poisoned(NAILBED.y)]
    run("rnorm_forward", SPATIAL, "fp32", x, results[0], 0)
    run("rnorm_backward", SPATIAL, "fp32", dy, x, results[1], None, 0)
    run("cnorm_forward", SPATIAL, "fp32", x, results[2], None, 0)
    run("cnorm_backward", SPATIAL, "fp32", dy, x, results[3], None, 0)
    run("blur", BLUR, "fp32", x, results[4], 0)
    run("nailbed_forward", NAILBED, "fp32", x, results[6], 0)
    run("nailbed_backward", NAILBED, "fp32", results[6], results[5], 0)
    return results


def lost(x) -> list[np.ndarray]:
    """Losses and slopes of every cost of x, as features."""
    N, K = LRN.N, LRN.x[1] * LRN.H * LRN.W
    shape, labels, results = SoftmaxShape(N, N, K, LRN.lanes), np.arange(N, dtype=np.int32), []
    for kind in COSTS:
        values = np.abs(x) / np.abs(x).max() if kind == "cross-entropy" else x
        results += [poisoned((N,)), poisoned(shape.x)]
        run("cost", shape, "fp32", kind, 0.5, values, labels, *results[-2:], np.zeros(8, np.uint32), 0)
    return results


def drawn(x) -> list[np.ndarray]:
    """What stochastic pooling draws of x, where, and the means, outputs starting as NaN."""
    results = [poisoned(POOL.y), poisoned(POOL.y, np.uint8), poisoned(POOL.y)]
    features = POOL.C * POOL.P * POOL.Q
    draw = DropoutShape(POOL.N, features, POOL.lanes, 0, features, 0.0, 1, 2)
    run("rand_pool_forward", POOL, draw, "fp32", x, results[0], results[1], np.zeros(8, np.uint32), 0)
    run("rand_pool_mean", POOL, "fp32", x, results[2], 0)
    return results


def run_all(shapes=(CONV, DENSE, *DIRECT, *TILES, FEW, ONE)) -> list[np.ndarray]:
    """Results of the passes that cut their work into tasks, outputs starting as NaN."""
    results = [values for shape in shapes for values in convolve(shape)]
    x, dy = integers(POOL.x), integers(POOL.y)
    y, argmax, dx = poisoned(POOL.y), poisoned(POOL.y, np.uint8), poisoned(POOL.x)
    run("max_pool_forward", POOL, "fp32", x, y, argmax, 0)
    run("max_pool_backward", POOL, "fp32", dy, argmax, None, dx, 0)
    results += [y, argmax, dx]
    y, dx = poisoned(POOL.y), poisoned(POOL.x)
    run("avg_pool_forward", POOL, "fp32", x, y, 0)
    run("avg_pool_backward", POOL, "fp32", dy, x, dx, 0)
    results += [y, dx, *windows(x, integers(LRN.x)), *drawn(x)]
    y, dx = poisoned(LRN.x), poisoned(LRN.x)
    run("lrn_forward", LRN, "fp32", x, y, 0)
    run("lrn_backward", LRN, "fp32", integers(LRN.x), x, dx, 0)
    results += [y, dx]
    p, dx = poisoned(POOL.y), poisoned(LRN.x)
    run("lrn_pool_forward", LRN, POOL, "fp32", x, p, argmax, 0)
    run("lrn_pool_backward", LRN, POOL, "fp32", integers(POOL.y), argmax, x, dx, True, 0)
    results += [p, argmax, dx]
    for local in LOCALS:
        x, weight, bias, dy = (integers(s) for s in (local.x, local.weight, local.position_bias, local.y))
        y, dx, dweight, dbias, z, db = (
            poisoned(s) for s in (local.y, local.x, local.weight, local.position_bias, local.y, local.position_bias)
        )
        run("local_forward", local, "fp32", x, weight, bias, y, True, 0)
        run("local_backward_data", local, "fp32", dy, weight, dx, x, 0)
        run("local_backward_filter", local, "fp32", dy, x, dweight, dbias, 0)
        run("add_position_bias", local, "fp32", dy, bias, z, 0)
        run("add_position_bias_backward", local, "fp32", z, db, 0)
        results += [y, dx, dweight, dbias, z, db]
    for linear in LINEARS:
        x, weight, dy = integers(linear.x), integers(linear.weight), integers(linear.y)
        y, dx, dweight = poisoned(linear.y), poisoned(linear.x), poisoned(linear.weight)
        run("linear_forward", linear, "fp32", x, weight, None, y, False, None, None, None, False, 0)
        run("linear_backward_data", linear, "fp32", dy, weight, dx, x, None, 0)
        run("linear_backward_filter", linear, "fp32", dy, x, dweight, None, None, 0)
        results += [y, dx, dweight]
    return results


def same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_the_number_of_threads_does_not_change_a_bit():
    KERNELS.set_tile_bytes(1 << 16)
    results = []
    for count in (1, 2, 3):
        with threadpool_limits(count, user_api="blas"):
            assert KERNELS.threads() == count
            results.append(run_all())
            assert KERNELS.threads() == count
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("tile_bytes", [1 << 8, 1 << 13, 1 << 16])
def test_where_tiles_end_does_not_matter(tile_bytes):
    """Sums of small integers are exact in any order, so every cut gives the same bits."""
    whole = run_all()
    KERNELS.set_tile_bytes(tile_bytes)
    assert same_bits(whole, run_all())


def test_every_level_of_instructions_gives_the_same_bits():
    """Also where sums are not exact, as far as they are no products of BLAS."""
    random = np.random.default_rng(0)
    x, control = random.standard_normal((3, *LRN.x), dtype=np.float32), np.zeros(8, np.uint32)
    dp = random.standard_normal(POOL.y, dtype=np.float32)
    control[1:4] = np.array([0.1, 0.9, 0.01], np.float32).view(np.uint32)

    def all_loops():
        results = [np.full(LRN.x, np.nan, np.float32) for _ in range(8)]
        lrn, gradient, y, slope, weight, velocity, logistic, softrelu = results
        argmax = np.zeros(POOL.y, np.uint8)
        p = np.full(POOL.y, np.nan, np.float32)
        run("lrn_forward", LRN, "fp32", x[0], lrn, 0)
        run("lrn_backward", LRN, "fp32", x[1], x[0], gradient, 0)
        run("lrn_pool_forward", LRN, POOL, "fp32", x[0], p, argmax, 0)
        run("activation_forward", x[0].size, "fp32", "tanh", 1.0, 1.0, x[0], y, 0)
        run("activation_forward", x[0].size, "fp32", "logistic", 0.0, 0.0, x[0], logistic, 0)
        run("activation_forward", x[0].size, "fp32", "softrelu", 0.0, 0.0, x[0], softrelu, 0)
        run("lrn_pool_backward", LRN, POOL, "fp32", dp, argmax, x[0], slope, True, 0)
        weight[...], velocity[...] = x[0], x[1]
        run("sgd", weight.size, weight, velocity, x[2], None, 1, control, 0.5, 0.7, 0.8, 0)
        means, shares = np.full(POOL.y, np.nan, np.float32), np.full(POOL.x, np.nan, np.float32)
        run("avg_pool_forward", POOL, "fp32", x[0], means, 0)
        run("avg_pool_backward", POOL, "fp32", dp, x[0], shares, 0)
        return [*results, p, argmax, means, shares, *windows(x[0], x[1]), *drawn(x[0]), *lost(x[0])]

    KERNELS.set_level(0)
    lowest = all_loops()
    assert not any(np.isnan(values).any() for values in lowest)
    for level in higher_levels():
        KERNELS.set_level(level)
        assert same_bits(lowest, all_loops()), level


def test_direct_convolutions_and_transformed_tiles_give_what_blas_gives():
    """Sums of small integers are exact in any order."""
    KERNELS.set_level(0)
    assert all(KERNELS.conv_variant("conv_forward", shape, "fp32") == "im2col and BLAS" for shape in (*DIRECT, *TILES))
    unfolded = run_all()
    for level in higher_levels():
        KERNELS.set_level(level)
        passes = ("forward", "backward_data", "backward_filter")
        found = [[KERNELS.conv_variant(f"conv_{part}", shape, "fp32") == "direct" for shape in DIRECT]
                 for part in passes]  # fmt: skip
        assert found == [[True] * 4, [True, False, False, True], [True, True, False, True]]
        found = [[KERNELS.conv_variant(f"conv_{part}", shape, "fp32") == "Winograd" for shape in TILES]
                 for part in passes]  # fmt: skip
        assert found == [[True] * 3, [True] * 3, [True, False, False]]
        assert same_bits(unfolded, run_all()), level


def test_convolutions_of_any_shape_give_what_blas_gives():
    random = np.random.default_rng(5)
    for _ in range(60):
        lanes, blocks, groups = (int(random.integers(*limits)) for limits in ((1, 73), (1, 3), (1, 3)))
        R, S, stride = random.integers(1, 6), random.integers(1, 6), random.integers(1, 4)
        H, W = R + random.integers(0, 8), S + random.integers(0, 8)
        C, K = groups * random.integers(1, 6), groups * random.integers(1, 30)
        padding = tuple(int(random.integers(0, limit)) for limit in (R, R, S, S))
        extents = (lanes * blocks, C, H, W, K, R, S)
        shape = ConvShape.of(*map(int, extents), stride=int(stride), padding=padding, groups=groups, lanes=lanes)
        KERNELS.set_level(0)
        lowest = convolve(shape)
        assert not any(np.isnan(values).any() for values in lowest)
        for level in higher_levels():
            KERNELS.set_level(level)
            assert same_bits(lowest, convolve(shape)), (level, shape)


def test_without_blas_products_are_our_own():
    whole = run_all()
    KERNELS.use_blas(0, 0, 0, False)
    assert same_bits(whole, run_all())
    KERNELS.set_tile_bytes(1 << 12)
    assert same_bits(whole, run_all())


def test_blas_is_found_under_its_names(monkeypatch):
    assert use_blas(KERNELS)
    with monkeypatch.context() as other:
        other.setattr(importlib.import_module("convnet.devices.blas"), "NAMES", [("cblas_none", *NAMES[0][1:])])
        assert not use_blas(KERNELS)


def test_scratch_memory_is_written_before_it_is_read():
    clean = run_all()
    KERNELS.poison_scratch(True)
    assert same_bits(clean, run_all())


def test_scratch_memory_is_told():
    run_all()
    assert open_device("emu").scratch == 0
    with convnet.Network("alexnet-tiny", "cpu", 2) as net:
        held = net.memory()["cpu"]
        assert held - KERNELS.scratch_bytes() >= 4 * net.parameters
        net.forward(np.zeros((2, 3, 64, 64), np.float32))
        assert KERNELS.scratch_bytes() > 100_000
        assert net.memory()["cpu"] - KERNELS.scratch_bytes() >= 4 * net.parameters


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 17])
def test_any_number_of_lanes(lanes):
    """Results of an image do not depend on those beside it."""

    def pooled(x, shape, lrn):
        p, argmax, dx = np.zeros(shape.y, np.float32), np.zeros(shape.y, np.uint8), np.zeros(shape.x, np.float32)
        run("lrn_pool_forward", lrn, shape, "fp32", x, p, argmax, 0)
        run("lrn_pool_backward", lrn, shape, "fp32", p, argmax, x, dx, False, 0)
        return p, argmax, dx

    def shapes(count):
        return PoolShape.of(count, 6, 13, 11, 3, 2, ceil_mode=True, lanes=count), LrnShape(
            count, 6, 13, 11, 2, count, 5, 1e-2, 0.75, 2.0
        )

    x = np.random.default_rng(lanes).standard_normal((1, 6, 13, 11, lanes), dtype=np.float32)
    together = pooled(x, *shapes(lanes))
    for image in range(lanes):
        alone = pooled(np.ascontiguousarray(x[..., image : image + 1]), *shapes(1))
        assert same_bits([part[..., image] for part in together], [part[..., 0] for part in alone])


def test_several_image_blocks_are_one_batch():
    split = [ConvShape(**{**vars(shape), "lanes": 4}) for shape in (CONV, DENSE)]
    for one, three in zip((CONV, DENSE), split, strict=True):
        x, weight = integers(one.x), integers(one.weight)
        y, parts = np.empty(one.y, np.float32), np.empty(three.y, np.float32)
        run("conv_forward", one, "fp32", x, weight, None, y, False, False, 0)
        cut = np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[1:4], 3, 4), 3, 0))
        run("conv_forward", three, "fp32", cut, weight, None, parts, False, False, 0)
        assert np.array_equal(np.moveaxis(parts, 0, 3).reshape(one.y), y)


def test_a_gradient_that_is_not_passed_on_leaves_no_trace():
    dy = np.array([np.inf, np.nan, -np.inf, 5, 6], np.float32)
    y = np.array([0, -1, np.nan, 2, 0], np.float32)
    dx = np.empty(5, np.float32)
    run("relu_backward", 5, "fp32", dy, y, dx, 0)
    assert np.array_equal(dx, np.array([0, 0, 0, 5, 0], np.float32))


def test_overflow_is_no_warning():
    """As on a GPU: infinities and NaN are results like any other (warnings are errors in these tests)."""
    huge = np.full(8, 3e38, np.float32)
    y = np.empty(8, np.float32)
    run("add", 8, "fp32", huge, huge, y, 0)
    assert np.isinf(y).all()


def test_blas_may_take_as_many_threads_afterwards_as_before():
    before = {library["filepath"]: library["num_threads"] for library in threadpool_info()}
    run_all()
    with threadpool_limits(3, user_api="blas"):
        run_all()
        assert {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"} == {3}
    assert {library["filepath"]: library["num_threads"] for library in threadpool_info()} == before


def test_two_callers_at_once():
    expected, results = run_all(), []
    callers = [threading.Thread(target=lambda: results.append(run_all())) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 2
    assert all(same_bits(expected, result) for result in results)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    program = """
import os
import numpy as np
from threadpoolctl import threadpool_limits
from convnet.devices.opening import open_device
threadpool_limits(3, user_api="blas")
kernels = open_device("cpu").kernels
def counts():
    a = np.ones(1 << 20, np.float32)
    for _ in range(50):
        kernels.add(a.size, "fp32", a.ctypes.data, a.ctypes.data, a.ctypes.data, 0)
        kernels.scale(a.size, "fp32", a.ctypes.data, 0.5, a.ctypes.data, 0)
    return (a == 1).all()
assert counts()
child = os.fork()
if child == 0:
    os._exit(0 if counts() else 1)
assert os.waitpid(child, 0)[1] == 0
assert counts()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", ELSEWHERE + program], check=True, timeout=120)


def test_images_are_not_folded_on_the_cpu():
    shape = IngestShape(2, 2, 4, 4, 4, 2, (1.0, 1.0, 1.0), fold=2)
    with pytest.raises(ValueError, match="cpu does not fold images, got fold=2"):
        run("ingest", shape, "fp32", *[np.zeros(64, np.float32)] * 5, 0)


@pytest.mark.parametrize(
    ("kernel", "shape", "text"),
    [
        ("conv_forward", replace(CONV, lanes=0), "lanes must be at least 1"),
        ("conv_forward", replace(CONV, groups=0), "groups must divide C and K"),
        ("conv_forward", replace(CONV, stride=0), "stride must be at least 1"),
        ("conv_forward", replace(CONV, R=0), "every size must be at least 1"),
        ("conv_backward_data", replace(CONV, P=0), "every size must be at least 1"),
        ("conv_backward_filter", replace(CONV, pad_left=-1), "shape.pad_left must be"),
        ("max_pool_forward", replace(POOL, size=16), "the window must be 1 to 15 pixels wide"),
        ("max_pool_forward", replace(POOL, pad_top=3), "padding must be smaller than the window"),
        ("max_pool_backward", replace(POOL, P=99), "every window must hold a pixel"),
        ("lrn_forward", replace(LRN, size=17), "size must be 1 to 16"),
        ("lrn_backward", replace(LRN, groups=4), "groups must divide the channels"),
        ("avg_pool_forward", replace(POOL, size=0), "the window must be 1 to 15 pixels wide"),
        ("avg_pool_backward", replace(POOL, P=99), "every window must hold a pixel"),
        ("rand_pool_forward", replace(POOL, P=99), "every window must hold a pixel"),
        ("rand_pool_mean", replace(POOL, size=16), "the window must be 1 to 15 pixels wide"),
        ("rnorm_forward", replace(SPATIAL, size=14), "size must be 1 to the larger side"),
        ("rnorm_backward", replace(SPATIAL, size=0), "size must be 1 to the larger side"),
        ("cnorm_forward", replace(SPATIAL, C=0), "every size must be at least 1"),
        ("cnorm_backward", replace(SPATIAL, lanes=5), "lanes must be at least 1"),
        ("cnorm_workspace", replace(SPATIAL, size=14), "size must be 1 to the larger side"),
        ("blur", replace(BLUR, size=4), "size must be 3, 5, 7 or 9"),
        ("blur", replace(BLUR, std=float("nan")), "std must be a positive number"),
        ("blur", replace(BLUR, H=0), "every size must be at least 1"),
        ("nailbed_forward", replace(NAILBED, top=1), "every pixel must lie in the image"),
        ("nailbed_backward", replace(NAILBED, Q=7), "every pixel must lie in the image"),
        ("linear_forward", replace(LINEARS[0], C=0), "every size must be at least 1"),
        ("softmax_cross_entropy", SoftmaxShape(8, 9, 10, 8), "valid must be 1 to N"),
        ("cost", SoftmaxShape(8, 9, 10, 8), "valid must be 1 to N"),
    ],
)
def test_shapes_that_are_none(kernel, shape, text):
    arguments = {"shape": shape, "precision": "fp32", "relu": False, "dropout": None, "cost": "squares", "stream": 0}
    arguments |= {"draw": DropoutShape(12, 9, 12, 0, 9, 0.0, 1, 2)}
    names = [name for name, *_ in KERNELS.signatures()[kernel]]
    with pytest.raises(ValueError, match=f"{kernel}: {text}"):
        getattr(KERNELS, kernel)(*[arguments.get(name, 64) for name in names])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_are_refused(precision):
    with pytest.raises(ValueError, match=f'computes in "fp32" only, got precision "{precision}"'):
        KERNELS.relu_forward(4, precision, 64, 64, 0)
    with pytest.raises(ValueError, match='computes in "fp32" only'):
        KERNELS.cast_weight(4, 4, 64, 64, 0)


def test_where_there_is_no_x86_nothing_is_missing(tmp_path):
    """What stands in for vectors there has the same names and arguments: every source compiled as if for such a
    processor, and linked with nothing left undefined."""
    if programs.COMPILER is None:
        pytest.skip("g++ is not installed")
    kernels = shutil.copytree(programs.KERNELS, tmp_path / "kernels")
    for path in (kernels / "cpu").iterdir():
        path.write_text(path.read_text().replace("__x86_64__", "CONVNET_OF_NO_PROCESSOR"))
    sources = sorted((kernels / "cpu").glob("*.cpp"))
    assert any("CONVNET_OF_NO_PROCESSOR" in source.read_text() for source in sources)
    flags = ("-O0", "-fPIC", "-UCONVNET_EMU", "-Wno-psabi")
    objects = programs.compile_objects(tmp_path, sources, *flags)
    programs.link(tmp_path / "cpu.so", objects, "-shared", "-Wl,--no-undefined")
