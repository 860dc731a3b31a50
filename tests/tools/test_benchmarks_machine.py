"""The microbenchmarks: right results in the emulator, no rate of what is wrong, hangs or breaks off, and machine code
that shows what the rows say. No test here looks at a time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cubins
import ptxas_report
import pytest
import sass_report

sys.path.append(str(Path(__file__).resolve().parents[2]))
machine = pytest.importorskip("benchmarks.machine", reason="the benchmarks come with a checkout only")

GPU_ONLY = {"copy driver", "launch host"}
ROWS = [row.name for group in machine.GROUPS.values() for row in group.rows]


@pytest.fixture
def cxx():
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")


@pytest.mark.slow
def test_every_kernel_is_right_on_the_emulator(cxx, tmp_path, capsys):
    assert machine.main(["--device", "emu", "-o", str(tmp_path / "machine.json")]) == 0
    written = json.loads((tmp_path / "machine.json").read_text())
    assert {row["row"]: row["status"] for row in written["rows"]} == {
        row: "not in the emulator" if row in GPU_ONLY else "ran" for row in ROWS
    }
    assert all(row["measured"] is None and row["per_second"] is None for row in written["rows"])
    assert {"benchmark", "device", "commit", "processor", "versions"} <= set(written)
    shown = capsys.readouterr().out
    for group in machine.GROUPS.values():
        assert {group.question, group.assumes, group.follows} <= set(
            re.split(r"\n  (?:assumed: |if not:  )|\n+", shown)
        )


MISTAKES = {
    "advance(a_operand, kA.step(k * kTerms))": "advance(a_operand, kA.step(0))",
    "kTransposeB>(sum, fragments[k], b)": "kTransposeB>(sum, fragments[0], b)",
    "shared.full[stage], first + 2 * i);": "shared.full[stage], first + i);",
    "fragments[(kM * 4 + i) * 32 + lane]": "fragments[(kM * 4 + i) * 32]",
    "fma_rn(a[i / 8], b[i % 8],": "fma_rn(a[i % 8], b[i % 8],",
    "store4(target + 4 * i, load4(source + 4 * i))": "store4(target + 4 * i, load4(source))",
    "w = add_rn(w, v);": "w = sub_rn(w, v);",
    "blockIdx.x == 0 && threadIdx.x == 0": "blockIdx.x == 0 && threadIdx.x == 1 && *count < 2",
}


@pytest.mark.slow
def test_a_wrong_kernel_is_not_timed(cxx, tmp_path, monkeypatch, capsys):
    text = machine.SOURCE.read_text().replace('"../src', f'"{machine.ROOT}/src')
    for right, wrong in MISTAKES.items():
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    source = tmp_path / "machine.cu"
    source.write_text(text)
    monkeypatch.setattr(machine, "SOURCE", source)
    monkeypatch.setattr(machine, "CACHE", tmp_path / "build")
    assert machine.main(["--device", "emu", "-o", str(tmp_path / "machine.json")]) == 1
    for row in json.loads((tmp_path / "machine.json").read_text())["rows"]:
        assert row["row"] in GPU_ONLY or row["status"].startswith("wrong result: "), row


# ---- a library that does not measure but misbehaves ----

PRETENDER = """
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int machine_run(const char* row, int device, double seconds, double* measured, char* error, int size) {
  if (!strcmp(row, "copy driver")) {
    measured[0] = 2, measured[2] = 8e12, measured[3] = 132;
    return 0;
  }
  if (!strcmp(row, "copy kernel")) BEHAVE;
  snprintf(error, size, "wrong result: %d %g", device, seconds);
  return 1;
}
"""


@pytest.fixture
def pretender(cxx, tmp_path):
    def build(behaviour: str) -> Path:
        (tmp_path / "pretender.c").write_text(PRETENDER.replace("BEHAVE", behaviour))
        library = tmp_path / "pretender.so"
        subprocess.run(
            ["g++", "-x", "c", "-shared", "-fPIC", tmp_path / "pretender.c", "-o", library], check=True, timeout=100
        )
        return library

    return build


COPY = ("measured", machine.Measured(2.0, 0.0, 8e12, 132.0))


@pytest.mark.parametrize(
    ("behaviour", "statuses"),
    [
        ("return 2", ["", "wrong result: 3 0.5"]),
        ("for (;;) pause()", ["stopped after the 3 s of its group", "not reached"]),
        ("raise(SIGSEGV)", ["ended the process with exit code -11: ", "not reached"]),
    ],
)
def test_a_row_that_misbehaves_costs_its_group_alone(pretender, behaviour, statuses):
    assert machine.run_group("memory", pretender(behaviour), 3, 0.5, limit=3) == [COPY, *((s, None) for s in statuses)]


def test_what_was_measured_stands_beside_what_is_assumed(pretender, monkeypatch, tmp_path, capsys):
    from convnet.devices import cuda as cuda

    gpus = [{"compute_capability": "8.0"}]
    monkeypatch.setattr(cuda, "describe", lambda: {"gpus": gpus})
    monkeypatch.setattr(machine, "build", lambda architecture: pretender("return 1"))
    monkeypatch.setattr(machine, "GROUPS", {name: machine.GROUPS[name] for name in ("l2", "memory")})
    assert machine.main(["--device", "cuda", "-o", str(tmp_path / "machine.json")]) == 1
    rows = {row["row"]: row for row in json.loads((tmp_path / "machine.json").read_text())["rows"]}
    assert rows["copy driver"]["measured"] == 4.0  # TB/s
    assert rows["copy driver"]["assumed"] == 4.3
    assert rows["l2 64"]["status"] == "needs sm_90a"
    assert re.search(r"^copy driver +4\.3 +4 +0\.93 x +4$", capsys.readouterr().out, re.MULTILINE)
    assert machine.UNITS["clocks per wgmma"](machine.Row("", 0, 100.0), machine.Measured(1, 50, 4000, 2)) == 2.5


def test_devices_that_cannot_be_measured(monkeypatch, tmp_path, capsys):
    from convnet.devices import cuda as cuda

    def outcome(*arguments: str) -> tuple[int, str]:
        return machine.timing.command(lambda: machine.main([*arguments])), capsys.readouterr().err

    assert outcome("--device", "cpu") == (
        2, "error: machine: --device cpu is no GPU to measure; use cuda:i, or emu to see the kernels run\n",
    )  # fmt: skip
    monkeypatch.setattr(cuda, "describe", lambda: {"gpus": [{"compute_capability": "9.0"}]})
    assert outcome("--device", "cuda:1") == (6, "error: cuda:1: the driver shows 1 GPUs, numbered from 0\n")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.delenv("CUDACXX", raising=False)
    code, error = outcome("--device", "cuda:0")
    assert code == 6
    assert error.startswith("error: machine: there is no nvcc on PATH to compile benchmarks/machine.cu with; install")


# ---- the machine code ----


def loops(section: str) -> list[list[str]]:
    """The instructions, with modifiers, between each label and the last jump back to it.

    Waiting that takes longer goes on behind the end of the kernel and jumps back from there: that is no loop.
    """
    labels: dict[str, int] = {}
    code: list[str] = []
    ends: dict[str, int] = {}
    for line in section.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z].*?)\s*;", line):
            code.append(instruction[1])
            jump = re.match(r"BRA\S* .*`\((\.L\w+)\)", instruction[1])
            if jump and jump[1] in labels:
                ends[jump[1]] = len(code)
    found = [code[labels[label] : end] for label, end in ends.items()]
    return [loop for loop in found if "EXIT" not in loop]


def counted(loop: list[str], pattern: str) -> int:
    return sum(re.match(pattern, instruction) is not None for instruction in loop)


def test_loops_are_found():
    section = """
.L_x_1:
        /*0010*/              @!P0 BRA `(.L_x_2) ;
        /*0020*/                   HMMA.16816.F32.BF16 R16, R8.reuse, R20, RZ ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/                   EXIT ;
.L_x_3:
        /*0050*/                   BRA `(.L_x_2) ;
"""
    assert loops(section) == [["BRA `(.L_x_2)", "HMMA.16816.F32.BF16 R16, R8.reuse, R20, RZ", "BRA `(.L_x_1)"]]


# what the timed loops consist of, and how many of it a trip has
TIMED = {
    r"wgmma_kernel<Forward, (\d+)>": (r"HGMMA.64x{}x16.F32.BF16 R\d+, gdesc\S+\.tnspA\.tnspB,", 4),
    r"wgmma_kernel<BackwardData, (\d+)>": (r"HGMMA.64x{}x16.F32.BF16 R\d+, gdesc[^.]+\.tnspA,", 4),
    r"wgmma_kernel<BackwardFilter, (\d+)>": (r"HGMMA.64x{}x16.F32.BF16 R\d+, gdesc[^.]+,", 4),
    r"wgmma_kernel<Registers, (\d+)>": (r"HGMMA.64x{}x16.F32.BF16 R\d+, R\d+, gdesc\S+\.tnspB,", 4),
    r"copy_boxes_kernel<Alone, \d+>": (r"UTMALDG.5D \[", 2),
    r"copy_boxes_kernel<Pair, \d+>": (r"UTMALDG.5D.MULTICAST \[", 1),
    r"mma_kernel<false>": (r"HMMA.16816.F32.BF16 ", 32),
    r"mma_kernel<true>": (r"HMMA.1688.F32.TF32 ", 32),
    r"ffma_kernel": (r"FFMA ", 64),
    r"copy_kernel": (r"STG.E.128 ", 1),
    r"update_kernel": (r"STG.E.128 ", 2),
    r"counting_kernel": (r"", 0),
    r"busy_kernel": (r"CS2R R\d+, SR_CLOCKLO", 1),
}


@pytest.mark.slow
def test_the_timed_loops_consist_of_what_they_measure():
    compiler, program = cubins.nvcc(), sass_report.nvdisasm()
    if compiler is None:
        pytest.skip("nvcc is not installed")
    if program is None:
        pytest.skip("there is no nvdisasm: pip install nvidia-cuda-nvdisasm, or set NVDISASM")
    cubin = cubins.compile_one(machine.SOURCE, "sm_90a", compiler)
    resources = ptxas_report.parse(cubins.readable(cubin.log))
    assert not [(name, use) for name, use in resources.items() if any(use[what] for what in ptxas_report.FORBIDDEN)]
    listing = subprocess.run([program, "-c", cubin.path], capture_output=True, text=True, check=True).stdout
    counts = sass_report.parse(listing)
    sections = re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.MULTILINE)[1:]
    names = [cubins.short(name) for name in cubins.readable("\n".join(counts)).splitlines()]
    kinds: Counter[str] = Counter()
    for name, section, count in zip(names, sections, counts.values(), strict=True):
        kind, found = next((kind, m) for kind in TIMED if (m := re.fullmatch(kind, name)))
        kinds[kind] += 1
        assert not count["LDL"]
        assert not count["STL"]
        assert not count["EARLY"], name
        pattern, per_trip = TIMED[kind]
        if not per_trip:
            continue
        pattern = pattern.format(*found.groups())
        timed = [loop for loop in loops(section) if counted(loop, pattern)]
        # A tensor copy of one thread is a loop of its own inside of the timed one.
        if kind.startswith("copy_boxes"):
            timed = [max(timed, key=len)]
            assert counted(timed[0], r"SYNCS.PHASECHK") == 2
            assert not counted(timed[0], r"MEMBAR|CCTL|BAR\.")  # fences would be what is measured
        assert timed, name
        for loop in timed:
            products = counted(loop, pattern)
            assert products % per_trip == 0, name
            if kind.startswith("wgmma"):
                assert products == counted(loop, "HGMMA"), name
                groups = products // per_trip
                assert sum("HGMMA" in instruction and "gsb0" in instruction for instruction in loop) == groups, name
                assert counted(loop, r"WARPGROUP.DEPBAR.LE gsb0, 0x1") == groups, name  # never for all of them
            if kind.startswith(("wgmma", "mma", "ffma")):
                assert not counted(loop, r"LD|ST|BAR|CALL"), name
                others = len(loop) - products
                assert others < 20 + (3 * products if kind.startswith("wgmma") else 0), name  # descriptors
        if kind.startswith(("wgmma", "mma", "ffma", "copy_boxes")):
            assert section.count("SR_CLOCKLO") == 2, name
    assert kinds == {
        **dict.fromkeys(TIMED, 1),
        **{kind: kinds[kind] for kind in TIMED if kind.startswith(("wgmma", "copy_boxes"))},
    }
    products = sum(count for kind, count in kinds.items() if kind.startswith("wgmma"))
    assert products == sum(row.startswith("wgmma") for row in ROWS)


@pytest.mark.slow
def test_the_library_for_a_gpu_has_every_row():
    if cubins.nvcc() is None:
        pytest.skip("nvcc is not installed")
    library = machine.build("90a")
    for name, group in machine.GROUPS.items():
        answers = machine.run_group(name, library, 0, 0.0)
        assert len(answers) == len(group.rows)
        assert not [status for status, _ in answers if status.startswith(("not ", "ended", "stopped"))]
