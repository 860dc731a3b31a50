"""How many instructions every kernel of a training step or of inference executes, from its machine code for sm_90a.

    python tools/count_instructions.py            compiles the kernels, compares with what is committed
    python tools/count_instructions.py --update   writes it (tests/golden/instructions.json)
    python tools/count_instructions.py --of step alexnet 256 bf16    counts another, and prints its entries as JSON

Which kernels are started, and with what parameters, comes from benchmarks/launches.py; execute.py follows the
branches that they take. Needs nvcc and nvdisasm, as sass_report.py does, and the emulator. benchmarks/predict.py makes
times of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cubins
import ptxas_report
import sass_report
from execute import execute
from machine_code import code_of, sections

sys.path.insert(0, str(cubins.ROOT))
from benchmarks import launches, predict
from convnet.network.networks import network

GOLDEN = predict.GOLDEN
ARCHITECTURE = "sm_90a"
Work = tuple[str, str, int, str]  # step or forward, network, images, precision
COMMITTED: list[Work] = [
    (part, "alexnet", images, precision)
    for part, images in (("step", 128), ("forward", 8))
    for precision in ("bf16", "tf32", "fp32")
]


@dataclass(frozen=True)
class Kernel:
    """Text of the code and of the words for its indirect branches, and registers per thread."""

    code: str
    table: str
    registers: int


def kernels(compiler: str, program: str) -> dict[str, Kernel]:
    """All of them, by name."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = sorted(cubins.KERNELS.glob("*.cu"))
        compiled = list(pool.map(lambda source: cubins.compile_one(source, ARCHITECTURE, compiler), sources))
        listings = list(pool.map(lambda cubin: cubins.listing(cubin.path, program), compiled))
    found = {}
    for cubin, listing in zip(compiled, listings, strict=True):
        codes, tables = sections(listing, ".text."), sections(listing, ".nv.constant2.")
        used = ptxas_report.parse(cubins.readable(cubin.log))
        names = cubins.readable("\n".join(codes)).splitlines()
        for name, (mangled, code) in zip(map(cubins.short, names), codes.items(), strict=True):
            found[name] = Kernel(code, tables.get(mangled, ""), used[name]["registers"])
    return found


def words(text: str) -> list[int]:
    data = bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2})\b", text))
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data) - 3, 4)]


def count(name: str, kernel: Kernel, launch: launches.Launch) -> dict[str, Any]:
    """An entry of the committed file. ``heaviest``: products of the block with the most by their mean, or instructions
    where tensor cores multiply nothing."""
    counted = execute(code_of(kernel.code, words(kernel.table)), launch)
    products = [n for kind, n in counted.instructions.items() if re.match("HMMA|HGMMA.64", kind) and n.any()]
    per_block = sum(products or counted.instructions.values())
    return {
        "kernel": name, "grid": [*launch.grid], "block": [*launch.block], "shared_bytes": launch.shared_bytes,
        "registers": kernel.registers, "heaviest": round(float(per_block.max() / per_block.mean()), 3),
        "loaded": round(float(counted.loaded.mean()) * launch.blocks),
        "stored": round(float(counted.stored.mean()) * launch.blocks),
        "instructions": {kind: n for kind in counted.instructions if (n := round(counted.total(kind)))},
    }  # fmt: skip


def report(compiler: str, program: str, wanted: list[Work] = COMMITTED) -> dict[str, list[dict[str, Any]]]:
    """Every launch of what is ``wanted``. Equal launches are executed once."""
    works = {
        predict.key(part, model, images, precision): launches.of(part, network(model), images, precision)
        for part, model, images, precision in wanted
    }
    compiled = kernels(compiler, program)
    different: dict[tuple[Any, ...], tuple[str, Kernel, launches.Launch]] = {}
    for launch in (launch for work in works.values() for launch in work):
        names = [name for name in compiled if launches.is_kernel(launch.kernel, name)]
        if len(names) != 1:
            raise RuntimeError(f"{launch.kernel} should be one of the compiled kernels, and is {names or 'none'}")
        different[_identity(launch)] = names[0], compiled[names[0]], launch
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        counted = dict(zip(different, pool.map(count, *zip(*different.values(), strict=True)), strict=True))
    return {name: [counted[_identity(launch)] for launch in work] for name, work in works.items()}


def _identity(launch: launches.Launch) -> tuple[Any, ...]:
    return launch.kernel, launch.grid, launch.block, launch.cluster, tuple(map(tuple, launch.parameters))


def write(release: str, works: dict[str, list[dict[str, Any]]]) -> None:
    lines = ",\n".join(
        f' "{name}": [\n' + ",\n".join("  " + json.dumps(entry) for entry in work) + "\n ]"
        for name, work in works.items()
    )
    GOLDEN.write_text(f'{{"nvcc": "{release}", "launches": {{\n{lines}\n}}}}\n')


def differences(counted: dict[str, list[dict[str, Any]]], golden: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Launches that are not what is committed."""
    found = [f"{name}: is counted here or there only" for name in sorted({*counted} ^ {*golden})]
    for name in sorted({*counted} & {*golden}):
        if len(counted[name]) != len(golden[name]):
            found.append(f"{name}: {len(counted[name])} launches, {len(golden[name])} are committed")
            continue
        for number, (here, there) in enumerate(zip(counted[name], golden[name], strict=True)):
            for what in here:
                if here[what] != there.get(what):
                    found.append(f"{name}, launch {number}, {here['kernel']}: {what} {there.get(what)} -> {here[what]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write what is counted")
    parser.add_argument(
        "--of", nargs=4, metavar=("PART", "MODEL", "IMAGES", "PRECISION"), help="print the entries of this one"
    )
    options = parser.parse_args()
    compiler, program = cubins.nvcc(), sass_report.nvdisasm()
    if compiler is None or program is None:
        print("count_instructions: needs nvcc (or CUDACXX) and nvdisasm (or NVDISASM)", file=sys.stderr)
        return 2
    if options.of:
        part, model, images, precision = options.of
        if part not in launches.PARTS:
            parser.error(f"PART must be one of {', '.join(launches.PARTS)}, got {part}")
        (entries,) = report(compiler, program, [(part, model, int(images), precision)]).values()
        print(json.dumps(entries))
        return 0
    counted, release = report(compiler, program), cubins.release(compiler)
    for name, work in counted.items():
        total = sum(sum(entry["instructions"].values()) for entry in work)
        print(f"{name}: {len(work)} launches, {total / 1e6:.0f} million instructions of warps")
    if options.update:
        write(release, counted)
        return 0
    golden = json.loads(GOLDEN.read_text())
    if golden["nvcc"] != release:
        print(f"what is committed is of nvcc {golden['nvcc']}, this is {release}: not compared")
        return 0
    found = differences(counted, golden["launches"])
    print("\n".join(found) or "all as committed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
