"""Takes the synchronisation out of the shipped kernels, one call at a time, and says which test notices.

    python tools/remove_barriers.py                the whole list, as a table (some minutes)
    python tools/remove_barriers.py wgmma_maps     only files whose name contains this

Every barrier, wait, fence, commit and release in src/kernels is removed from a copy of the sources; the programs of
tests/emu that use the file are built from it and run in the emulator under several seeds. The removal is noticed when a
program reports an error, hangs, or prints something else than before. Needs g++. Exits with 1 when a removal goes
unnoticed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "src" / "kernels"
PROGRAMS = ROOT / "tests" / "emu"
SEEDS = (1, 2, 3)
FLAGS = ["-std=c++20", "-O1", "-Wno-unknown-pragmas", "-fno-math-errno", "-ffp-contract=off", "-DCONVNET_EMU"]
SECONDS = 120  # a program that runs longer hangs: undisturbed it takes a few

# Calls that order something. raise_registers and prefetch are not among them: they change no result.
CALLS = (
    "__syncthreads|__syncwarp|named_barrier|cluster_sync|meet|drain|"
    "barrier_init|fence_barrier_init|barrier_expect|barrier_arrive|barrier_arrive_at|barrier_wait|"
    "fence_async_proxy|bulk_commit|bulk_wait|bulk_wait_read|"
    "wgmma_fence|wgmma_commit|wgmma_wait|release|"
    "copy_async_commit|copy_async_wait"
)
CALL = re.compile(rf"(?<![\w.])(?:\w+\.)?(?:{CALLS})(?:<[^;<>]*>)?\([^;{{]*\);")

# The programs: sources beside the emulator, and the runs whose output must stay.
OPS = (
    "conv_backward_filter", "conv_forward", "gemm", "ingest", "ingest_planar", "lrn_pool_backward", "lrn_pool_forward",
    "pack", "softmax",
)  # fmt: skip
PROGRAM_SOURCES = {  # the quickest to build first
    "products": [PROGRAMS / "products.cu"],
    "layers": [PROGRAMS / "layers.cpp", *(KERNELS / f"{op}.cu" for op in OPS)],
}


@dataclass(frozen=True)
class Place:
    """A call in a file of src/kernels."""

    file: Path  # relative to src/kernels
    line: int
    start: int
    end: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.text}"


def places() -> list[Place]:
    """All calls, outside of comments, of the sources that are compiled for both machines."""
    found = []
    for file in sorted(KERNELS.glob("*.cu")) + sorted((KERNELS / "tile").glob("*.cuh")):
        text = file.read_text()
        for match in CALL.finditer(text):
            line_start = text.rfind("\n", 0, match.start()) + 1
            if "//" in text[line_start : match.start()]:
                continue
            line = text.count("\n", 0, match.start()) + 1
            call = " ".join(match.group().split())
            found.append(Place(file.relative_to(KERNELS), line, match.start(), match.end(), call))
    return found


def included(source: Path) -> set[Path]:
    """The project's own files that a source includes, directly or not, and itself."""
    found: set[Path] = set()
    new = {source.resolve()}
    while new:
        found |= new
        names = [(file, name) for file in new for name in re.findall(r'#include "(.+)"', file.read_text())]
        paths = {(folder / name).resolve() for file, name in names for folder in (file.parent, KERNELS)}
        new = {path for path in paths if path.is_file()} - found
    return found


def compile_object(source: Path, target: Path, kernels: Path) -> Path:
    command = [shutil.which("g++"), *FLAGS, f"-I{kernels}", "-x", "c++", "-c", source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stderr[-3000:]}")
    return target


def link(program: Path, objects: list[Path]) -> Path:
    subprocess.run([shutil.which("g++"), *objects, "-o", program, "-pthread"], check=True)
    return program


def outputs(program: Path, scenario: str, seed: int) -> str:
    try:
        done = subprocess.run(
            [program, scenario, str(seed)], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "error: hangs"
    return done.stdout if done.returncode == 0 else f"error: ended with {done.returncode}"


class Programs:
    """The programs as they are, and built without one call."""

    def __init__(self, folder: Path):
        self.folder = folder
        sources = sorted((KERNELS / "emu").glob("*.cpp")) + [s for many in PROGRAM_SOURCES.values() for s in many]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(lambda s: compile_object(s, folder / f"{s.name}.o", KERNELS), sources)
            self.objects = dict(zip(sources, compiled, strict=True))
        self.expected: dict[tuple[str, str], str] = {}
        self.scenarios: dict[str, list[str]] = {}
        for name in PROGRAM_SOURCES:
            program = link(folder / name, self._objects(name, {}))
            listed = subprocess.run([program], capture_output=True, text=True, check=False).stdout
            self.scenarios[name] = listed.split()
            if not self.scenarios[name]:
                raise RuntimeError(f"{name} lists no scenarios")
            for scenario in self.scenarios[name]:
                found = {outputs(program, scenario, seed) for seed in SEEDS}
                if len(found) != 1 or next(iter(found)).startswith("error"):
                    raise RuntimeError(f"{name} {scenario} fails undisturbed: {found}")
                self.expected[name, scenario] = found.pop()

    def _objects(self, name: str, replaced: dict[Path, Path]) -> list[Path]:
        emulator = [path for source, path in self.objects.items() if source.parent.name == "emu" and
                    source.parent.parent == KERNELS]  # fmt: skip
        return [*emulator, *(replaced.get(source, self.objects[source]) for source in PROGRAM_SOURCES[name])]

    def without(self, place: Place) -> str | None:
        """What noticed that the call is missing, or None. Raises where no program uses the file."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            work = Path(name)
            kernels = work / "kernels"
            shutil.copytree(KERNELS, kernels)
            text = (KERNELS / place.file).read_text()
            (kernels / place.file).write_text(text[: place.start] + ";" + text[place.end :])
            used = False
            for program, sources in PROGRAM_SOURCES.items():
                replaced = {}
                for source in sources:
                    if (KERNELS / place.file).resolve() in included(source):
                        inside = source.is_relative_to(KERNELS)
                        copy = kernels / source.relative_to(KERNELS) if inside else source
                        replaced[source] = compile_object(copy, work / f"{source.name}.o", kernels)
                if not replaced:
                    continue
                used = True
                mutant = link(work / program, self._objects(program, replaced))
                for scenario in self.scenarios[program]:
                    for seed in SEEDS:
                        found = outputs(mutant, scenario, seed)
                        if found != self.expected[program, scenario]:
                            return f"{program} {scenario}, seed {seed}: {' '.join(found.split())[:110]}"
            if not used:
                raise RuntimeError(f"no program of tests/emu uses {place.file}")
            return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="parts of file names; none: all")
    options = parser.parse_args()
    chosen = [place for place in places() if not options.files or any(part in str(place) for part in options.files)]
    if not chosen:
        parser.error(f"no call in a file whose name contains {' or '.join(options.files)}")
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(Path(folder))
        unnoticed = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for place, noticed in zip(chosen, pool.map(programs.without, chosen), strict=True):
                print(f"{'UNNOTICED' if noticed is None else 'noticed  '}  {place}", flush=True)
                print(f"           {noticed or 'every program gave its usual output'}", flush=True)
                unnoticed += noticed is None
    print(f"{len(chosen)} removals, {unnoticed} unnoticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
