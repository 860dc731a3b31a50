"""What the CUDA assembler says of every kernel: registers, spills, static shared memory.

    python tools/ptxas_report.py            compiles all kernels for sm_80 and sm_90a, prints a table, compares with the
                                            budgets
    python tools/ptxas_report.py --update   makes the present numbers the budgets (tests/golden/resources.json)

Needs nvcc. Compiling takes a minute or two; what is unchanged since the last time is not compiled again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter

import cubins

GOLDEN = cubins.ROOT / "tests" / "golden" / "resources.json"
FORBIDDEN = ("stack", "spill_stores", "spill_loads", "remarks")  # bytes, and remarks; have no budget
# What ptxas says of products of a warpgroup that it had to serialise or wait for. C7519 is none of these: it added a
# fence, which costs nothing beside a product.
REMARK = re.compile(r"\(C75(?!19)\d\d\).* in (?:the )?function '(.+?)'$", re.MULTILINE)

# {"sm_80": {"relu.cu": {"relu_forward_kernel": {"registers": 12, "shared": 0, "stack": 0, ...}}}}; budgets know
# registers and shared memory only.
Report = dict[str, dict[str, dict[str, dict[str, int]]]]


def parse(log: str) -> dict[str, dict[str, int]]:
    """The kernels in a log of ``ptxas -v`` whose names are readable already."""
    kernels: dict[str, dict[str, int]] = {}
    remarks = Counter(cubins.short(name) for name in REMARK.findall(log))
    blocks = re.split(r"ptxas info\s*: Compiling entry function '", log)[1:]
    for block in blocks:
        name, rest = block.split("' for 'sm_", 1)
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", rest)
        used = re.search(r"Used (\d+) registers", rest)
        shared = re.search(r"(\d+) bytes smem", rest)
        if not spills or not used:
            raise ValueError(f"ptxas printed something unknown about {name}: {rest[:500]}")
        kernels[cubins.short(name)] = {
            "registers": int(used[1]),
            "shared": int(shared[1]) if shared else 0,
            **dict(zip(FORBIDDEN, map(int, spills.groups()), strict=False)),
            "remarks": remarks[cubins.short(name)],
        }
    return kernels


def report(compiler: str) -> Report:
    """Compiles all kernels."""
    measured: Report = {}
    for cubin in cubins.compile_all(compiler):
        measured.setdefault(cubin.architecture, {})[cubin.file] = parse(cubins.readable(cubin.log))
    return measured


def complaints(measured: Report, budgets: Report) -> list[str]:
    """What is wrong: spills, stack frames, more registers or shared memory than budgeted, kernels without a budget."""
    found = []
    for architecture in sorted({*measured, *budgets}):
        here, allowed = measured.get(architecture, {}), budgets.get(architecture, {})
        for file, kernels in here.items():
            for name, use in kernels.items():
                kernel = f"{architecture} {file} {name}"
                found += [f"{kernel}: {use[what]} bytes of {what}" for what in FORBIDDEN if use[what]]
                budget = allowed.get(file, {}).get(name)
                if budget is None:
                    found.append(f"{kernel}: no budget; run python tools/ptxas_report.py --update")
                    continue
                found += [
                    f"{kernel}: {use[what]} {what}, budget {budget[what]}"
                    for what in budget
                    if use[what] > budget[what]
                ]
        gone = [(file, name) for file in allowed for name in allowed[file] if name not in here.get(file, {})]
        found += [f"{architecture} {file} {name}: has a budget but does not exist" for file, name in gone]
    return found


def budgets_of(measured: Report) -> Report:
    return {
        architecture: {
            file: {
                name: {"registers": use["registers"], "shared": use["shared"]} for name, use in sorted(kernels.items())
            }
            for file, kernels in files.items()
        }
        for architecture, files in measured.items()
    }


def write(release: str, budgets: Report) -> None:
    text = json.dumps({"nvcc": release, "kernels": budgets}, indent=1)
    line_per_kernel = re.sub(r'\{\s*("registers": \d+),\s*("shared": \d+)\s*\}', r"{\1, \2}", text)
    GOLDEN.write_text(line_per_kernel + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="make the present numbers the budgets")
    options = parser.parse_args()
    compiler = cubins.nvcc()
    if compiler is None:
        print("ptxas_report: there is no nvcc on PATH; set CUDACXX", file=sys.stderr)
        return 2
    release = cubins.release(compiler)
    measured = report(compiler)
    for architecture, files in measured.items():
        for file, kernels in files.items():
            for name, use in kernels.items():
                spilled = use["spill_stores"] + use["spill_loads"]
                print(f"{architecture:7} {file:26} {use['registers']:4} registers {spilled:4} bytes spilled  {name}")
    if options.update:
        write(release, budgets_of(measured))
        return 0
    golden = json.loads(GOLDEN.read_text())
    if golden["nvcc"] != release:
        print(f"budgets are for nvcc {golden['nvcc']}, this is {release}: not compared")
        return 0
    found = complaints(measured, golden["kernels"])
    print("\n".join(found) or "every kernel is within its budget")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
