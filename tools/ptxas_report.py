"""What the CUDA assembler says of every kernel: registers, spills, static shared memory.

    python tools/ptxas_report.py            compiles all kernels for sm_90a, prints a table, compares with the budgets
    python tools/ptxas_report.py --update   makes the present numbers the budgets (tests/golden/resources.json)

Needs nvcc. Compiling takes a minute; what is unchanged since the last time is taken from build/ptxas.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "src" / "kernels"
GOLDEN = ROOT / "tests" / "golden" / "resources.json"
ARCHITECTURE = "90a"

# {"relu.cu": {"relu_forward_kernel": {"registers": 12, "stack": 0, "spill_stores": 0, "spill_loads": 0, "shared": 0}}}
Report = dict[str, dict[str, dict[str, int]]]


def nvcc() -> str | None:
    """The compiler: the one CUDACXX names, on PATH, or in its usual place."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def release(compiler: str) -> str:
    """Its release, for example "13.0": budgets hold for one release only."""
    output = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", output)
    return found[1] if found else output.strip()


def parse(log: str) -> dict[str, dict[str, int]]:
    """The kernels in a log of ``ptxas -v`` whose names are readable already."""
    kernels: dict[str, dict[str, int]] = {}
    blocks = re.split(r"ptxas info\s*: Compiling entry function '", log)[1:]
    for block in blocks:
        name, rest = block.split("' for 'sm_", 1)
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", rest)
        used = re.search(r"Used (\d+) registers", rest)
        shared = re.search(r"(\d+) bytes smem", rest)
        if not spills or not used:
            raise ValueError(f"ptxas printed something unknown about {name}: {rest[:500]}")
        kernels[short(name)] = {
            "registers": int(used[1]),
            "stack": int(spills[1]),
            "spill_stores": int(spills[2]),
            "spill_loads": int(spills[3]),
            "shared": int(shared[1]) if shared else 0,
        }
    return kernels


def short(name: str) -> str:
    """A demangled kernel without its return type, namespaces and parameter list."""
    name = name.replace("(anonymous namespace)::", "").replace("convnet::", "").removeprefix("void ")
    depth = 0
    for position, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:position]
    return name


def compile_one(source: Path, compiler: str) -> dict[str, dict[str, int]]:
    headers = [
        file for pattern in ("*.hpp", "*.cuh") for file in sorted(KERNELS.rglob(pattern)) if "emu" not in file.parts
    ]
    content = hashlib.sha256(release(compiler).encode())
    for file in [Path(__file__), *headers, source]:
        content.update(file.read_bytes())
    cached = ROOT / "build" / "ptxas" / f"{source.stem}-{content.hexdigest()[:16]}.json"
    if cached.exists():
        return json.loads(cached.read_text())
    target = ["-gencode", f"arch=compute_{ARCHITECTURE},code=sm_{ARCHITECTURE}"]
    options = ["-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-v", "-cubin", "-o", os.devnull]
    done = subprocess.run([compiler, *target, *options, str(source)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stdout}{done.stderr}")
    readable = subprocess.run(["c++filt"], input=done.stdout + done.stderr, capture_output=True, text=True, check=True)
    kernels = parse(readable.stdout)
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(json.dumps(kernels))
    return kernels


def report(compiler: str) -> Report:
    """Compiles all kernels, several files at a time."""
    sources = sorted(KERNELS.glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip((s.name for s in sources), pool.map(lambda s: compile_one(s, compiler), sources), strict=True))


def complaints(measured: Report, budgets: Report) -> list[str]:
    """What is wrong: spills, stack frames, more registers or shared memory than budgeted, kernels without a budget."""
    found = []
    for file, kernels in measured.items():
        for name, use in kernels.items():
            found += [
                f"{file} {name}: {use[what]} bytes of {what}"
                for what in ("stack", "spill_stores", "spill_loads")
                if use[what]
            ]
            budget = budgets.get(file, {}).get(name)
            if budget is None:
                found.append(f"{file} {name}: no budget; run python tools/ptxas_report.py --update")
                continue
            found += [
                f"{file} {name}: {use[what]} {what}, budget {budget[what]}"
                for what in ("registers", "shared")
                if use[what] > budget[what]
            ]
    gone = [(file, name) for file in budgets for name in budgets[file] if name not in measured.get(file, {})]
    return found + [f"{file} {name}: has a budget but does not exist" for file, name in gone]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="make the present numbers the budgets")
    options = parser.parse_args()
    compiler = nvcc()
    if compiler is None:
        print("ptxas_report: there is no nvcc on PATH; set CUDACXX", file=sys.stderr)
        return 2
    measured = report(compiler)
    for file, kernels in measured.items():
        for name, use in kernels.items():
            spilled = use["spill_stores"] + use["spill_loads"]
            print(f"{file:26} {use['registers']:4} registers {spilled:4} bytes spilled  {name}")
    if options.update:
        GOLDEN.write_text(json.dumps({"nvcc": release(compiler), "kernels": measured}, indent=1) + "\n")
        return 0
    golden = json.loads(GOLDEN.read_text())
    if golden["nvcc"] != release(compiler):
        print(f"budgets are for nvcc {golden['nvcc']}, this is {release(compiler)}: not compared")
        return 0
    found = complaints(measured, golden["kernels"])
    print("\n".join(found) or "every kernel is within its budget")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
