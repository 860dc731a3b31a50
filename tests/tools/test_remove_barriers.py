"""The shipped kernels give the same bits in every order of threads, and every call that orders them is needed.

Each barrier, wait, fence, commit and release is taken out, one at a time, by tools/remove_barriers.py; here every
twelfth of them, for the sake of time.
"""

from __future__ import annotations

import shutil

import pytest
import remove_barriers


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The programs, built; each has given the same output for every seed."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return remove_barriers.Programs(tmp_path_factory.mktemp("programs"))


def test_shipped_kernels_give_the_same_bits_in_every_order(programs):
    for (program, scenario), output in programs.expected.items():
        assert "error" not in output, (program, scenario)
        good = output.endswith(", 0 not numbers\n") if program == "layers" else output == "ok\n"
        assert good, (program, scenario, output)


@pytest.mark.slow
@pytest.mark.parametrize("place", remove_barriers.places()[9::12], ids=str)
def test_taking_out_a_call_shows(programs, place):
    assert programs.without(place), f"without {place} every program gives its usual output"


def test_calls_are_found():
    found = [str(place) for place in remove_barriers.places()]
    for call in ("__syncthreads", "barrier_wait", "wgmma_wait<1>", "fence_async_proxy", "release", "bulk_commit"):
        assert any(call in place for place in found), call
    assert not any("//" in place for place in found)
