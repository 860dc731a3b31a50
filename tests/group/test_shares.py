"""How batches are cut."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from convnet.group.group import Group
from convnet.group.shares import Shares


class Several(Group):
    def __init__(self, size: int, rank: int = 0):
        self.size, self.rank = size, rank


@pytest.mark.parametrize("n", [0, 1, 3, 4, 17, 128])
@pytest.mark.parametrize(("shards", "processes"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 2), (6, 3), (7, 7)])
def test_all_images_are_somebodys_and_cuts_are_fair(shards, processes, n):
    ranks = [Shares(shards, processes, rank) for rank in range(processes)]
    cuts = ranks[0].cuts(n)
    sizes = [end - start for start, end in pairwise(cuts)]
    assert (len(sizes), sum(sizes), cuts[0]) == (shards, n, 0)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == ranks[0].largest(n)
    assert [index for one in ranks for index in range(n)[one.part(n)]] == list(range(n))
    for one in ranks:
        assert one.own_cuts(n) == cuts[one.rank * one.own : (one.rank + 1) * one.own + 1]
        assert len(one.own_cuts(n)) == shards // processes + 1


@pytest.mark.parametrize(("shards", "size", "fitting"), [(4, 3, "1, 2, 4"), (6, 4, "1, 2, 3, 6"), (2, 4, "1, 2")])
def test_processes_that_cannot_share_evenly_are_told_how_many_can(shards, size, fitting):
    wanted = f"--shards {shards}: {size} processes cannot share these out evenly; start {fitting} of them"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        Shares.of(Several(size), shards)


def test_by_oneself_a_batch_is_whole():
    assert Shares.of(Group(), 1).part(7) == slice(0, 7)
    assert Shares.of(Several(2, 1), 4) == Shares(4, 2, 1)
