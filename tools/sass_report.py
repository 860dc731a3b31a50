"""What the machine code of every kernel consists of: tensor-core products, asynchronous copies, local memory.

    python tools/sass_report.py    compiles all kernels for sm_80 and sm_90a, prints a table, checks the rules below

Counts are of instructions in the code, each once however often it runs. Needs nvcc, and nvdisasm of its release or a
newer one (pip install nvidia-cuda-nvdisasm). What is unchanged since the last time is not compiled again.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cubins

COLUMNS = {
    "HGMMA": "products of a warpgroup (wgmma)",
    "UTMALDG": "tensor copies to shared memory (TMA)",
    "UTMASTG": "tensor copies to global memory",
    "HMMA": "products of a warp (mma.sync)",
    "LDSM": "matrix loads (ldmatrix)",
    "LDGSTS": "asynchronous copies (cp.async)",
    "LDS": "loads from shared memory",
    "STS": "stores to shared memory",
    "CCTL": "prefetches into the second level of cache",
    "FFMA": "multiply-adds in float32",
    "LDL": "loads from local memory",
    "STL": "stores to local memory",
    "ACQBULK": "waits for the kernels before (griddepcontrol.wait)",
    "EARLY": "accesses to global memory in front of the first such wait",
    "HASTY": "leave for the next kernel to begin (launch_dependents) in front of that wait",
    "STALE": "loads that may return what was there before the kernel began (ld.global.nc)",
}
OVERLAPPING = ("EARLY", "HASTY", "STALE")  # counted above under another name, or not at all
GLOBAL_ACCESSES = {"LD", "ST", "LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP", "ATOM", "ATOMG", "RED", "REDG"}


@dataclass(frozen=True)
class Rule:
    """What the kernels whose names match must contain, and what not."""

    kernels: str  # a regular expression that is found somewhere in the name
    architectures: tuple[str, ...] = cubins.ARCHITECTURES
    contain: tuple[str, ...] = ()
    lack: tuple[str, ...] = ()
    may_be_absent: bool = False  # else it is wrong when no kernel matches


RULES = [
    Rule("", lack=("LDL", "STL")),
    Rule("", ("sm_90a",), contain=("ACQBULK",), lack=("EARLY", "HASTY")),
    # The kernel before may still write what this one reads when it begins, and memory is used again within a step.
    Rule("", lack=("STALE",)),
    Rule("SimtTile", contain=("FFMA", "LDGSTS"), lack=("HMMA",)),
    Rule("MmaTile<Tf32", contain=("HMMA", "LDGSTS")),
    Rule("MmaTile<Bf16", contain=("HMMA", "LDGSTS", "LDSM")),
    Rule("gradient_kernel<.*WeightUpdate", contain=("CCTL",)),
    Rule("wgmma_maps_kernel", ("sm_90a",), contain=("HGMMA", "UTMALDG", "UTMASTG"), lack=("HMMA", "FFMA", "LDGSTS")),
    Rule("wgmma_filter", ("sm_90a",), contain=("HGMMA", "UTMALDG"), lack=("HMMA", "FFMA", "LDGSTS")),
    Rule("wgmma.*tf32", ("sm_90a",), contain=("HGMMA", "UTMALDG", "LDS", "STS"), lack=("HMMA", "FFMA", "LDGSTS")),
]

# {("sm_80", "relu.cu", "relu_forward_kernel"): {"LDG": 2, ...}}
Kernel = tuple[str, str, str]
Counts = dict[Kernel, Counter[str]]


def nvdisasm() -> str | None:
    """The disassembler: the one NVDISASM names, on PATH, beside nvcc, or from the package of that name."""
    beside = Path(cubins.nvcc() or "/usr/local/cuda/bin/nvcc").with_name("nvdisasm")
    found = os.environ.get("NVDISASM") or shutil.which("nvdisasm") or shutil.which(beside)
    if found:
        return found
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == "nvdisasm"), None)


def parse(listing: str) -> dict[str, Counter[str]]:
    """Instructions without their modifiers per section of code, from what ``nvdisasm`` prints."""
    kernels: dict[str, Counter[str]] = {}
    for section in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.MULTILINE)[1:]:
        name = re.split(r"[,\s]", section, maxsplit=1)[0]
        # /*0110*/   @!PT LDS.64 RZ, [RZ] ;
        whole = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", section, re.MULTILINE)
        code = [instruction.partition(".")[0] for instruction in whole]
        kernels[name] = Counter(code)
        kernels[name]["STALE"] = sum(bool(re.match(r"LDG\b.*\.CONSTANT\b", instruction)) for instruction in whole)
        if "ACQBULK" in code:
            in_front = code[: code.index("ACQBULK")]
            kernels[name]["EARLY"] = sum(instruction in GLOBAL_ACCESSES for instruction in in_front)
            kernels[name]["HASTY"] = in_front.count("PREEXIT")
    return kernels


def disassemble(cubin: cubins.Cubin, program: str) -> Counts:
    kernels = parse(cubins.listing(cubin.path, program))
    names = cubins.readable("\n".join(kernels)).splitlines()
    return {
        (cubin.architecture, cubin.file, cubins.short(name)): counts
        for name, counts in zip(names, kernels.values(), strict=True)
    }


def report(compiler: str, program: str) -> Counts:
    """Compiles and disassembles all kernels."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda cubin: disassemble(cubin, program), cubins.compile_all(compiler))
        return {kernel: counts for part in parts for kernel, counts in part.items()}


def matches(counts: Counts, rule: Rule) -> list[Kernel]:
    return [k for k in counts if k[0] in rule.architectures and re.search(rule.kernels, k[2])]


def complaints(counts: Counts, rules: list[Rule]) -> list[str]:
    found = []
    for rule in rules:
        matching = matches(counts, rule)
        if not matching and not rule.may_be_absent:
            found.append(f"no kernel has a name like {rule.kernels!r}: the rule for them means nothing")
        for kernel in matching:
            name = " ".join(kernel)
            found += [f"{name}: has no {what} ({COLUMNS[what]})" for what in rule.contain if not counts[kernel][what]]
            found += [
                f"{name}: {counts[kernel][what]} {what} ({COLUMNS[what]})" for what in rule.lack if counts[kernel][what]
            ]
    return found


def main() -> int:
    compiler, program = cubins.nvcc(), nvdisasm()
    if compiler is None:
        print("sass_report: there is no nvcc on PATH; set CUDACXX", file=sys.stderr)
        return 2
    if program is None:
        print("sass_report: there is no nvdisasm; pip install nvidia-cuda-nvdisasm, or set NVDISASM", file=sys.stderr)
        return 2
    counts = report(compiler, program)
    print(f"{'':34}" + "".join(f"{column:>8}" for column in [*COLUMNS, "all"]))
    for kernel, count in counts.items():
        numbers = [*(count[column] for column in COLUMNS), count.total() - sum(count[name] for name in OVERLAPPING)]
        print(f"{kernel[0]:7} {kernel[1]:26}" + "".join(f"{number:8}" for number in numbers) + f"  {kernel[2]}")
    for rule in RULES:
        print(f"{len(matches(counts, rule)):4} kernels have a name like {rule.kernels!r}")
    found = complaints(counts, RULES)
    print("\n".join(found) or "every kernel consists of what it should")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
