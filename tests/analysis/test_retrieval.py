"""Neighbours by a product and a second look are those of differences taken of all rows, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from convnet.analysis import retrieval


def plainly(queries, features, k):
    """All distances by differences, sorted: NaN last, among equals the first row first."""
    points, rows = (values.reshape(len(values), -1).astype(np.float64) for values in (queries, features))
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.array([((rows - point) ** 2).sum(axis=1) for point in points]).reshape(len(points), len(rows))
    indices = np.argsort(squares, axis=1, kind="stable")[:, :k]
    return indices, np.sqrt(np.take_along_axis(squares, indices, 1))


def agree(queries, features, k):
    indices, distances = retrieval.nearest(queries, features, k)
    wanted, lengths = plainly(queries, features, k)
    np.testing.assert_array_equal(indices, wanted)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(distances, lengths)  # NaN where NaN is


@pytest.fixture(params=[(1, 1 / 32), (300, 1 / 32), (2**24, 1 / 32), (300, 2), (300, -1)], ids=str)
def part(request, monkeypatch):
    """Bytes of rows at a time: one row, a few, all; and bounds in float32 where few are left, always, or never."""
    monkeypatch.setattr(retrieval, "PART", request.param[0])
    monkeypatch.setattr(retrieval, "FEW", request.param[1])


# what rounds, cancels, overflows, vanishes or is no number
ENTRIES = st.sampled_from(
    [
        *(0.0, -0.0, 1.0, 1 + 2**-52, 1 - 2**-53, 1 / 3, -1.0, 3.0, 1e8, 1e8 + 2**-26, -1e8, 1e16),
        *(5e-324, 1e-160, 1e-308, 1e150, 1e154, -1e154, 1.3e154, 1.7e308, -1.7e308, np.inf, -np.inf, np.nan),
    ]
)


@st.composite
def problems(draw):
    entries = draw(st.integers(1, 5))
    number = draw(st.sampled_from([ENTRIES, st.integers(-2, 2).map(float), st.floats(width=64)]))
    kind = draw(st.sampled_from([np.float64, np.float32]))
    rows = st.lists(st.lists(number, min_size=entries, max_size=entries), min_size=1, max_size=12)
    with np.errstate(over="ignore"):
        features, queries = (np.array(draw(rows)).astype(kind) for _ in range(2))
    return queries[:3], features, draw(st.integers(1, 14))


@pytest.mark.usefixtures("part")
def test_the_same_as_plainly_whatever_the_numbers():
    @settings(max_examples=150, deadline=None)
    @given(problems())
    def hold(problem):
        agree(*problem)

    hold()


@settings(max_examples=300, deadline=None)
@given(problems())
def test_bounds_hold_whatever_the_numbers(problem):
    points, rows = (values.astype(np.float64) for values in problem[:2])
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.array([retrieval._squares(point, rows) for point in points])
        for kind in (np.float32, np.float64):
            low, high = retrieval._bounds(points.astype(kind), rows.astype(kind))
            assert not ((squares < low) | (squares > high)).any()
            assert not np.isfinite(low[~np.isfinite(squares)]).any()


def test_bounds_hold_where_the_product_overflows_and_the_differences_just_do_not():
    point = np.array(
        [float.fromhex(x) for x in ("0x1.077417deaef36p510", "-0x1.8260c2776da6fp510", "-0x1.ae5b9cee572c0p509")]
    )
    row = np.array(
        [float.fromhex(x) for x in ("-0x1.0594587d43625p510", "0x1.7b967c13c806ap510", "0x1.b0b0916e1abccp509")]
    )
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = retrieval._bounds(point[None], row[None])
    square = retrieval._squares(point, row[None])
    assert np.isfinite(square)
    assert not ((square < low) | (square > high)).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 700), st.sampled_from([1e-12, 1e-8, 1e-4, 1.0]), st.integers(1, 40))
@example(0, 4096, 1e-8, 5)
def test_near_duplicates_far_from_the_origin(seed, entries, spread, k):
    """Rows whose distances are far below the rounding of a product: all of them need the second look."""
    random = np.random.default_rng(seed)
    centre = random.normal(size=entries) * 1e4
    features = centre + spread * random.integers(-1, 2, (40, entries))
    agree(centre[None] + spread * random.normal(size=(2, entries)), features, k)


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.float32, (7, 3), elements=st.floats(-4, 4, width=32)),
    arrays.arrays(np.float32, (600, 3), elements=st.integers(-2, 2).map(float)),
    st.integers(1, 600),
)
def test_many_ties(queries, features, k):
    agree(queries, features, k)


@pytest.mark.usefixtures("part")
def test_neighbours_that_come_ever_nearer():
    """The row that is nearest comes last, and so does the one that is equal to it."""
    features = np.repeat(np.arange(50, 0, -1, dtype=np.float32)[:, None], 6, axis=1)
    agree(np.zeros((1, 6), np.float32), np.vstack([features, features]), 4)


def test_how_rows_lie_in_memory_does_not_matter(tmp_path):
    random = np.random.default_rng(5)
    features, queries = random.normal(size=(90, 257)), random.normal(size=(4, 257))
    np.save(tmp_path / "features.npy", features.astype(np.float32))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    agree(queries, mapped, 9)
    wanted = retrieval.nearest(queries, features, 9)
    for others in (np.asfortranarray(features), np.repeat(features, 2, axis=0)[::2], features.reshape(90, 257, 1)):
        for one, other in zip(retrieval.nearest(queries, others, 9), wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("far", [0, 300], ids=["spread", "close together"])  # where products in float32 tell little
def test_few_rows_need_a_second_look(kind, far, monkeypatch):
    """Of 4,000 rows in 16 parts differences are taken of those few alone that can be among the nearest."""
    random = np.random.default_rng(6)
    features, queries = (far + random.normal(size=(count, 64)).astype(kind) for count in (4000, 3))
    monkeypatch.setattr(retrieval, "PART", 250 * 64 * 8)
    looked, squares = [], retrieval._squares

    def counted(point, rows):
        looked.append(len(rows))
        return squares(point, rows)

    monkeypatch.setattr(retrieval, "_squares", counted)
    agree(queries, features, 5)
    assert len(looked) == 16 * 3
    assert max(looked[3:]) < 20
    assert sum(looked) < 150
