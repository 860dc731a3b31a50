"""The memory plan: nothing that is needed at the same moment shares a byte, and what is not does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from convnet.devices.opening import open_device
from convnet.network.plan import ALIGNMENT, Plan

WISHES = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


def planned(wishes) -> tuple[Plan, int]:
    plan = Plan(shared=True)
    for size, moment, another in wishes:
        plan.want(SimpleNamespace(), "x", (size,), np.float32, min(moment, another), max(moment, another))
    return plan, plan.place()


def most_at_once(plan: Plan) -> int:
    return max(sum(w.nbytes for w in plan.wishes if w.first <= moment <= w.last) for moment in range(10))


@given(WISHES)
def test_what_is_needed_at_once_lies_apart(wishes):
    plan, total = planned(wishes)
    for wish in plan.wishes:
        assert wish.offset % ALIGNMENT == 0
        assert 0 <= wish.offset <= total - wish.nbytes
        for other in plan.wishes:
            if other is not wish and wish.first <= other.last and other.first <= wish.last:
                assert wish.offset + wish.nbytes <= other.offset or other.offset + other.nbytes <= wish.offset


@given(WISHES)
def test_the_plan_is_no_larger_than_all_and_no_smaller_than_needed(wishes):
    plan, total = planned(wishes)
    assert most_at_once(plan) <= total <= sum(w.nbytes for w in plan.wishes)


def test_what_never_meets_shares_its_place():
    """Three tensors of one size, of which the first and the last are never needed together: two places."""
    plan, total = planned([(1000, 0, 1), (1000, 1, 2), (1000, 2, 3)])
    first, middle, last = plan.wishes
    assert first.offset == last.offset != middle.offset
    assert total == 2 * first.nbytes


def test_owners_get_their_arrays(device):
    with_device = open_device(device)
    for shared, pieces in ((True, 1), (False, 2)):
        plan, owners = Plan(shared), [SimpleNamespace(), SimpleNamespace()]
        before = with_device.allocations
        plan.want(owners[0], "y", (3, 5), np.float32, 0, 0)
        plan.want(owners[1], "z", (4,), np.uint8, 1, 1)
        plan.grant(with_device)
        assert with_device.allocations == before + pieces
        assert (owners[0].y.shape, owners[0].y.dtype) == ((3, 5), np.float32)
        assert (owners[1].z.shape, owners[1].z.dtype) == ((4,), np.uint8)
        stream, values = with_device.stream(), np.arange(15, dtype=np.float32).reshape(3, 5)
        stream.upload(owners[0].y, values)
        np.testing.assert_array_equal(owners[0].y.download(), values)
    with_device.close()
