"""What is particular to the "cpu" device's kernels: how work is cut and shared, and the scratch memory it uses.

That the kernels compute the right thing is in the test_ops files, with all other devices.
"""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from convnet.devices import parallel
from convnet.devices.blas import common as blas_common
from convnet.devices.blas import conv as blas_conv
from convnet.devices.blas import kernels as blas_kernels
from convnet.devices.blas import maps as blas_maps
from convnet.kernels.shapes import ConvShape, IngestShape, LinearShape, LrnShape, PoolShape

CONV = ConvShape.of(12, 6, 13, 11, 8, 3, 5, stride=2, padding=(1, 2, 3, 0), groups=2, ceil_mode=True, lanes=12)
DENSE = ConvShape.of(12, 6, 13, 11, 8, 3, 3, padding=1, groups=2, lanes=12)
POOL = PoolShape.of(12, 6, 13, 11, 3, 2, ceil_mode=True, lanes=12)
LRN = LrnShape(12, 6, 13, 11, 2, 12, 5, 1e-2, 0.75, 2.0)
LINEAR = LinearShape(12, 1100, 530, 12)


def integers(shape):
    random = np.random.default_rng(len(shape))
    return (random.integers(1, 4, shape) * random.choice([-1, 1], shape)).astype(np.float32)


def run_all(shapes=(CONV, DENSE)) -> list[np.ndarray]:
    """Results of the passes that cut their work into tasks, outputs starting as NaN."""

    def poisoned(shape, dtype=np.float32):
        return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)

    results = []
    for shape in shapes:
        x, weight, dy = integers(shape.x), integers(shape.weight), integers(shape.y)
        y, dx, dweight, dbias = (poisoned(s) for s in (shape.y, shape.x, shape.weight, (shape.K,)))
        blas_kernels.conv_forward(shape, "fp32", x, weight, integers((shape.K,)), y, True, 0)
        blas_kernels.conv_backward_data(shape, "fp32", dy, weight, dx, x, 0)
        blas_kernels.conv_backward_filter(shape, "fp32", dy, x, dweight, dbias, None, 0)
        results += [y, dx, dweight, dbias]
    x, dy = integers(POOL.x), integers(POOL.y)
    y, argmax, dx = poisoned(POOL.y), poisoned(POOL.y, np.uint8), poisoned(POOL.x)
    blas_kernels.max_pool_forward(POOL, "fp32", x, y, argmax, 0)
    blas_kernels.max_pool_backward(POOL, "fp32", dy, argmax, None, dx, 0)
    results += [y, argmax, dx]
    y, dx = poisoned(LRN.x), poisoned(LRN.x)
    blas_kernels.lrn_forward(LRN, "fp32", x, y, 0)
    blas_kernels.lrn_backward(LRN, "fp32", integers(LRN.x), x, dx, 0)
    results += [y, dx]
    p, dx = poisoned(POOL.y), poisoned(LRN.x)
    blas_kernels.lrn_pool_forward(LRN, POOL, "fp32", x, p, argmax, 0)
    blas_kernels.lrn_pool_backward(LRN, POOL, "fp32", integers(POOL.y), argmax, x, dx, True, 0)
    results += [p, argmax, dx]
    x, weight, dy = integers(LINEAR.x), integers(LINEAR.weight), integers(LINEAR.y)
    y, dx, dweight = poisoned(LINEAR.y), poisoned(LINEAR.x), poisoned(LINEAR.weight)
    blas_kernels.linear_forward(LINEAR, "fp32", x, weight, None, y, False, None, None, None, 0)
    blas_kernels.linear_backward_data(LINEAR, "fp32", dy, weight, dx, x, None, 0)
    blas_kernels.linear_backward_filter(LINEAR, "fp32", dy, x, dweight, None, None, 0)
    return [*results, y, dx, dweight]


def same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in zip(a, b, strict=True))


def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(blas_conv, "TILE_BYTES", 1 << 16)
    monkeypatch.setattr(blas_common, "BLOCK", 1 << 10)
    results = []
    for count in (1, 2, 3):
        with threadpool_limits(count, user_api="blas"):
            results.append(run_all())
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("tile_bytes", [1 << 8, 1 << 13, 1 << 16])
def test_where_tiles_end_does_not_matter(monkeypatch, tile_bytes):
    """Sums of small integers are exact in any order, so every cut gives the same bits."""
    whole = run_all()
    monkeypatch.setattr(blas_conv, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(blas_conv, "SCATTER_BYTES", tile_bytes)
    monkeypatch.setattr(blas_common, "BLOCK", 1 << 9)
    assert same_bits(whole, run_all())


def test_scratch_memory_is_written_before_it_is_read(monkeypatch):
    clean = run_all()

    def poisoned(name, shape, dtype=np.float32):
        memory = parallel.scratch(name, shape, dtype)
        memory.reshape(-1).view(np.uint8)[:] = 0xFF
        return memory

    for module in (blas_common, blas_conv, blas_maps, blas_kernels):
        monkeypatch.setattr(module, "scratch", poisoned)
    assert same_bits(clean, run_all())


@pytest.mark.parametrize(
    ("rows", "columns", "limit"), [(55, 55, 10_000), (13, 13, 1 << 20), (7, 5, 1), (1, 1, 8), (9, 20, 110)]
)
def test_tiles_cover_every_output_once(rows, columns, limit):
    seen = np.zeros((rows, columns), int)
    for p0, p1, q0, q1 in blas_conv._tiles(rows, columns, 10, limit):
        seen[p0:p1, q0:q1] += 1
        assert p1 - p0 == 1 or (q0, q1) == (0, columns)  # one run of memory
        assert (p1 - p0) * (q1 - q0) * 10 <= max(limit, 10)
    assert (seen == 1).all()


def test_several_image_blocks_are_one_batch():
    split = [ConvShape(**{**vars(shape), "lanes": 4}) for shape in (CONV, DENSE)]
    for one, three in zip((CONV, DENSE), split, strict=True):
        x, weight = integers(one.x), integers(one.weight)
        y, parts = np.empty(one.y, np.float32), np.empty(three.y, np.float32)
        blas_kernels.conv_forward(one, "fp32", x, weight, None, y, False, 0)
        cut = np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[1:4], 3, 4), 3, 0))
        blas_kernels.conv_forward(three, "fp32", cut, weight, None, parts, False, 0)
        assert np.array_equal(np.moveaxis(parts, 0, 3).reshape(one.y), y)


def test_a_gradient_that_is_not_passed_on_leaves_no_trace():
    dy = np.array([np.inf, np.nan, -np.inf, 5, 6], np.float32)
    y = np.array([0, -1, np.nan, 2, 0], np.float32)
    dx = np.empty(5, np.float32)
    blas_kernels.relu_backward(5, "fp32", dy, y, dx, 0)
    assert np.array_equal(dx, np.array([0, 0, 0, 5, 0], np.float32))


def test_overflow_is_no_warning():
    """As on a GPU: infinities and NaN are results like any other (warnings are errors in these tests)."""
    huge = np.full(8, 3e38, np.float32)
    y = np.empty(8, np.float32)
    blas_kernels.add(8, "fp32", huge, huge, y, 0)
    assert np.isinf(y).all()


def test_a_failing_task_is_reported_and_harms_nothing():
    before = {library["filepath"]: library["num_threads"] for library in threadpool_info()}

    def task(index):
        if index == 3:
            raise ValueError("task 3")

    with threadpool_limits(2, user_api="blas"), pytest.raises(ValueError, match="task 3"):
        parallel.run(8, task)
    assert {library["filepath"]: library["num_threads"] for library in threadpool_info()} == before
    seen = []
    parallel.run(50, seen.append)
    assert sorted(seen) == list(range(50))


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
from threadpoolctl import threadpool_limits
from convnet.devices import parallel
threadpool_limits(2, user_api="blas")
def count():
    seen = []
    parallel.run(9, seen.append)
    return sorted(seen) == list(range(9))
assert count()
child = os.fork()
if child == 0:
    os._exit(0 if count() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


def test_scratch_is_kept_by_name_and_thread():
    first = parallel.scratch("a", (10,))
    assert parallel.scratch("a", (5, 2)).ctypes.data == first.ctypes.data
    assert parallel.scratch("b", (10,)).ctypes.data != first.ctypes.data
    other = []
    thread = threading.Thread(target=lambda: other.append(parallel.scratch("a", (10,))))
    thread.start()
    thread.join()
    assert other[0].ctypes.data != first.ctypes.data


def test_images_are_not_folded_on_the_cpu():
    shape = IngestShape(2, 2, 4, 4, 4, 2, (1.0, 1.0, 1.0), fold=2)
    with pytest.raises(ValueError, match="cpu does not fold images, got fold=2"):
        blas_kernels.ingest(shape, "fp32", *[np.zeros(1, np.float32)] * 5, 0)
