"""Small programs, compiled with g++ against the emulator. Each runs in a process of its own: some must crash."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "emu"
KERNELS = Path(__file__).parents[1] / "src" / "kernels"
EMULATOR = sorted((KERNELS / "emu").glob("*.cpp"))
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fno-math-errno", "-ffp-contract=off"]
PLAIN = ["-O1"]
CHECKED = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def compile_object(source: Path, target: Path, *flags: str, kernels: Path = KERNELS) -> Path:
    command = [COMPILER, *FLAGS, *flags, "-DCONVNET_EMU", f"-I{kernels}", "-x", "c++", "-c", source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def compile_objects(folder: Path, sources: list[Path], *flags: str) -> list[Path]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compile_object(source, folder / f"{source.name}.o", *flags), sources))


def link(program: Path, objects: list[Path], *flags: str) -> Path:
    subprocess.run([COMPILER, *flags, *objects, "-o", program, "-pthread"], check=True, timeout=300)
    return program


def runner(program: Path) -> Run:
    def run(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        command = [program, *map(str, arguments)]
        everything = {**os.environ, **environment}
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, env=everything)

    return run


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout
