"""What the machine code of every kernel consists of, by the rules in tools/sass_report.py."""

from __future__ import annotations

from collections import Counter

import cubins
import pytest
import sass_report
from sass_report import Rule

LISTING = """
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS"
	.elftype	@"ET_EXEC"

//--------------------- .text._Z4gemmPf           --------------------------
	.section	.text._Z4gemmPf,"ax",@progbits
	.align	128
.text._Z4gemmPf:
        .type           _Z4gemmPf,@function
_Z4gemmPf:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0110*/              @!PT LDS RZ, [RZ] ;
        /*0120*/                   LDGSTS.E.BYPASS.128 [R13], desc[UR6][R2.64], !P0 ;
        /*0124*/                   PREEXIT ;
        /*0128*/                   ACQBULK ;
        /*012c*/              @!P2 LDG.E.64.CONSTANT R6, desc[UR6][R2.64] ;
        /*012e*/                   LDG.E R7, desc[UR6][R2.64] ;
        /*0130*/             @!UP0 UTMALDG.4D [UR8], [UR6] ;
.L_x_1:
        /*0140*/               @P0 LDL.LU R5, [R1] ;
        /*0150*/                   HMMA.16816.F32.BF16 R16, R8.reuse, R20, RZ ;
        /*0160*/                   HMMA.16816.F32.BF16 R24, R8.reuse, R22, RZ ;
        /*0170*/                   WARPGROUP.ARRIVE ;
        /*0180*/                   BRA `(.L_x_1);
	.section	.nv.info._Z4gemmPf,"",@"SHT_CUDA_INFO"
	.section	.text._Z4copyPf,"ax",@progbits
_Z4copyPf:
        /*0000*/                   EXIT ;
"""


@pytest.mark.slow
def test_kernels_consist_of_what_they_should():
    compiler, program = cubins.nvcc(), sass_report.nvdisasm()
    if compiler is None:
        pytest.skip("nvcc is not installed")
    if program is None:
        pytest.skip("there is no nvdisasm: pip install nvidia-cuda-nvdisasm, or set NVDISASM")
    assert not sass_report.complaints(sass_report.report(compiler, program), sass_report.RULES)


def test_parse():
    once = ["LDC", "LDS", "LDGSTS", "UTMALDG", "LDL", "WARPGROUP", "BRA", "ACQBULK", "PREEXIT"]
    once += ["EARLY", "HASTY", "STALE"]
    assert sass_report.parse(LISTING) == {
        "_Z4gemmPf": Counter({**dict.fromkeys(once, 1), "HMMA": 2, "LDG": 2}),
        "_Z4copyPf": Counter({"EXIT": 1}),
    }


COUNTS = {
    ("sm_80", "a.cu", "f<Mma>"): Counter({"HMMA": 3}),
    ("sm_90a", "a.cu", "f<Mma>"): Counter({"HMMA": 3, "STL": 1}),
    ("sm_90a", "b.cu", "g"): Counter({"FFMA": 9, "ACQBULK": 1, "EARLY": 2, "HASTY": 1, "STALE": 4}),
}


@pytest.mark.parametrize(
    ("rule", "complaints"),
    [
        (Rule("Mma", contain=("HMMA",)), []),
        (Rule("", contain=("HMMA",)), ["sm_90a b.cu g: has no HMMA (products of a warp (mma.sync))"]),
        (Rule("", lack=("LDL", "STL")), ["sm_90a a.cu f<Mma>: 1 STL (stores to local memory)"]),
        (Rule("", ("sm_80",), lack=("LDL", "STL")), []),
        (
            Rule("g", contain=("ACQBULK",), lack=("EARLY",)),
            ["sm_90a b.cu g: 2 EARLY (accesses to global memory in front of the first such wait)"],
        ),
        (
            Rule("g", lack=("HASTY", "STALE")),
            [
                "sm_90a b.cu g: 1 HASTY (leave for the next kernel to begin (launch_dependents) in front of that wait)",
                "sm_90a b.cu g: 4 STALE (loads that may return what was there before the kernel began (ld.global.nc))",
            ],
        ),
        (Rule("wgmma", contain=("HGMMA",)), ["no kernel has a name like 'wgmma': the rule for them means nothing"]),
        (Rule("g", ("sm_80",)), ["no kernel has a name like 'g': the rule for them means nothing"]),
        (Rule("wgmma", contain=("HGMMA",), may_be_absent=True), []),
    ],
)
def test_rules(rule, complaints):
    assert sass_report.complaints(COUNTS, [rule]) == complaints


def test_rules_speak_of_what_is_counted():
    assert {what for rule in sass_report.RULES for what in (*rule.contain, *rule.lack)} <= set(sass_report.COLUMNS)
