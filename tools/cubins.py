"""Every kernel source compiled to machine code, once for each architecture that has budgets.

What is unchanged since the last time is taken from build/cubins.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "src" / "kernels"
CACHE = ROOT / "build" / "cubins"
ARCHITECTURES = ("sm_80", "sm_90a")


@dataclass(frozen=True)
class Cubin:
    architecture: str
    file: str  # of the source
    path: Path
    log: str  # of the compiler, names as in the binary


def nvcc() -> str | None:
    """The compiler: the one CUDACXX names, on PATH, or in its usual place."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def release(compiler: str) -> str:
    """Its release, for example "13.0": budgets hold for one release only."""
    output = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", output)
    return found[1] if found else output.strip()


def readable(text: str) -> str:
    """With the names of functions as in the source."""
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def short(name: str) -> str:
    """A readable kernel without its return type, namespaces and parameter list."""
    name = name.replace("(anonymous namespace)::", "").replace("convnet::", "").removeprefix("void ")
    depth = 0
    for position, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:position]
    return name


def compile_one(source: Path, architecture: str, compiler: str) -> Cubin:
    headers = [
        file for pattern in ("*.hpp", "*.cuh") for file in sorted(KERNELS.rglob(pattern)) if "emu" not in file.parts
    ]
    content = hashlib.sha256(release(compiler).encode())
    for file in [Path(__file__), *headers, source]:
        content.update(file.read_bytes())
    cached = CACHE / f"{source.stem}-{architecture}-{content.hexdigest()[:16]}.cubin"
    log = cached.with_suffix(".log")
    if not log.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        target = ["-gencode", f"arch={architecture.replace('sm_', 'compute_')},code={architecture}"]
        options = ["-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-v", "-cubin", "-o", str(cached)]
        done = subprocess.run([compiler, *target, *options, str(source)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile for {architecture}:\n{done.stdout}{done.stderr}")
        log.write_text(done.stdout + done.stderr)  # last: where there is a log, there is all of the rest
    return Cubin(architecture, source.name, cached, log.read_text())


def listing(cubin: Path, program: str) -> str:
    """Of its machine code, by nvdisasm; kept beside it."""
    kept = cubin.with_suffix(".sass")
    if not kept.exists():
        done = subprocess.run([program, str(cubin)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvdisasm cannot read {cubin.name}:\n{done.stdout}{done.stderr}")
        unfinished = kept.with_suffix(f".{os.getpid()}")  # another process may be at it, too
        unfinished.write_text(done.stdout)
        unfinished.replace(kept)
    return kept.read_text()


def compile_all(compiler: str) -> list[Cubin]:
    """All kernels for all architectures, several at a time."""
    jobs = [(source, architecture) for architecture in ARCHITECTURES for source in sorted(KERNELS.glob("*.cu"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_one(*job, compiler), jobs))
