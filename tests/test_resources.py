"""Registers, spills and shared memory of every kernel on sm_90a, as the assembler reports them, against budgets."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

spec = importlib.util.spec_from_file_location("ptxas_report", ROOT / "tools" / "ptxas_report.py")
ptxas_report = importlib.util.module_from_spec(spec)
sys.modules["ptxas_report"] = ptxas_report
spec.loader.exec_module(ptxas_report)

LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void convnet::(anonymous namespace)::gemm<Tile<8> >(float*)' for 'sm_90a'
ptxas info    : Function properties for void convnet::(anonymous namespace)::gemm<Tile<8> >(float*)
    16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'convnet::(anonymous namespace)::add_kernel(long, float const*)' for 'sm_90a'
ptxas info    : Function properties for convnet::(anonymous namespace)::add_kernel(long, float const*)
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""


@pytest.mark.slow
def test_kernels_are_within_their_budgets():
    compiler = ptxas_report.nvcc()
    if compiler is None:
        pytest.skip("nvcc is not installed")
    golden = json.loads(ptxas_report.GOLDEN.read_text())
    if ptxas_report.release(compiler) != golden["nvcc"]:
        pytest.skip(f"budgets are for nvcc {golden['nvcc']}, this is {ptxas_report.release(compiler)}")
    assert not ptxas_report.complaints(ptxas_report.report(compiler), golden["kernels"])


def test_every_kernel_file_has_a_budget():
    golden = json.loads(ptxas_report.GOLDEN.read_text())["kernels"]
    assert set(golden) == {file.name for file in (ROOT / "src" / "kernels").glob("*.cu")}
    assert all(golden.values())


def test_parse():
    none = {"stack": 0, "spill_stores": 0, "spill_loads": 0}
    assert ptxas_report.parse(LOG) == {
        "gemm<Tile<8> >": {"registers": 128, "stack": 16, "spill_stores": 24, "spill_loads": 32, "shared": 4096},
        "add_kernel": {"registers": 12, **none, "shared": 0},
    }


def test_unknown_output_is_an_error():
    with pytest.raises(ValueError, match="something unknown"):
        ptxas_report.parse("ptxas info : Compiling entry function 'f()' for 'sm_90a'\nsomething else")


GOOD = {"a.cu": {"f": {"registers": 40, "stack": 0, "spill_stores": 0, "spill_loads": 0, "shared": 0}}}


def test_equal_and_smaller_numbers_pass():
    fewer = copy.deepcopy(GOOD)
    fewer["a.cu"]["f"]["registers"] = 39
    assert ptxas_report.complaints(GOOD, GOOD) == ptxas_report.complaints(fewer, GOOD) == []


@pytest.mark.parametrize("what", ["registers", "stack", "spill_stores", "spill_loads", "shared"])
def test_larger_numbers_fail(what):
    worse = copy.deepcopy(GOOD)
    worse["a.cu"]["f"][what] += 1
    assert len(ptxas_report.complaints(worse, GOOD)) == 1


def test_budgeted_spills_fail_too():
    spilling = copy.deepcopy(GOOD)
    spilling["a.cu"]["f"]["spill_loads"] = 8
    assert ptxas_report.complaints(spilling, spilling)


def test_new_and_vanished_kernels_fail():
    assert "no budget" in ptxas_report.complaints(GOOD, {})[0]
    assert "does not exist" in ptxas_report.complaints({}, GOOD)[0]
