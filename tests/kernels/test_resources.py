"""Registers, spills and shared memory of every kernel on sm_80 and sm_90a, as the assembler reports them."""

from __future__ import annotations

import copy
import json

import cubins
import ptxas_report
import pytest

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
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to a function call \
in the function 'void convnet::(anonymous namespace)::gemm<Tile<8> >(float*)'
ptxas info    : (C7519) Potential Performance Loss: warpgroup.arrive is injected around line 9 \
in function 'convnet::(anonymous namespace)::add_kernel(long, float const*)'
"""


@pytest.mark.slow
def test_kernels_are_within_their_budgets():
    compiler = cubins.nvcc()
    if compiler is None:
        pytest.skip("nvcc is not installed")
    golden = json.loads(ptxas_report.GOLDEN.read_text())
    if cubins.release(compiler) != golden["nvcc"]:
        pytest.skip(f"budgets are for nvcc {golden['nvcc']}, this is {cubins.release(compiler)}")
    assert not ptxas_report.complaints(ptxas_report.report(compiler), golden["kernels"])


def test_every_kernel_file_has_a_budget_on_every_architecture():
    golden = json.loads(ptxas_report.GOLDEN.read_text())["kernels"]
    assert tuple(golden) == cubins.ARCHITECTURES
    for budgets in golden.values():
        assert set(budgets) == {file.name for file in cubins.KERNELS.glob("*.cu")}
        assert all(budgets.values())


def test_parse():
    none = {"stack": 0, "spill_stores": 0, "spill_loads": 0, "remarks": 0}
    gemm = {"registers": 128, "shared": 4096, "stack": 16, "spill_stores": 24, "spill_loads": 32, "remarks": 1}
    assert ptxas_report.parse(LOG) == {
        "gemm<Tile<8> >": gemm,
        "add_kernel": {"registers": 12, **none, "shared": 0},
    }


def test_unknown_output_is_an_error():
    with pytest.raises(ValueError, match="something unknown"):
        ptxas_report.parse("ptxas info : Compiling entry function 'f()' for 'sm_90a'\nsomething else")


GOOD = {
    architecture: {"a.cu": {"f": {"registers": 40, "shared": 0, **dict.fromkeys(ptxas_report.FORBIDDEN, 0)}}}
    for architecture in ("sm_80", "sm_90a")
}
BUDGETS = ptxas_report.budgets_of(GOOD)


def test_equal_and_smaller_numbers_pass():
    fewer = copy.deepcopy(GOOD)
    fewer["sm_80"]["a.cu"]["f"]["registers"] = 39
    assert ptxas_report.complaints(GOOD, BUDGETS) == ptxas_report.complaints(fewer, BUDGETS) == []


@pytest.mark.parametrize("architecture", GOOD)
@pytest.mark.parametrize("what", ["registers", "shared", *ptxas_report.FORBIDDEN])
def test_larger_numbers_fail(architecture, what):
    worse = copy.deepcopy(GOOD)
    worse[architecture]["a.cu"]["f"][what] += 1
    [complaint] = ptxas_report.complaints(worse, BUDGETS)
    assert complaint.startswith(f"{architecture} a.cu f: ")


def test_spills_cannot_be_budgeted():
    spilling = copy.deepcopy(GOOD)
    spilling["sm_80"]["a.cu"]["f"]["spill_loads"] = 8
    assert ptxas_report.complaints(spilling, spilling)
    assert ptxas_report.budgets_of(spilling) == BUDGETS


@pytest.mark.parametrize("architecture", GOOD)
def test_new_and_vanished_kernels_fail(architecture):
    one = {architecture: GOOD[architecture]}
    assert "no budget" in ptxas_report.complaints(one, {})[0]
    assert "does not exist" in ptxas_report.complaints({}, one)[0]


def test_budgets_survive_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(ptxas_report, "GOLDEN", tmp_path / "resources.json")
    ptxas_report.write("13.0", BUDGETS)
    text = (tmp_path / "resources.json").read_text()
    assert json.loads(text) == {"nvcc": "13.0", "kernels": BUDGETS}
    assert text.count('"f": {"registers": 40, "shared": 0}\n') == 2  # a line for each
