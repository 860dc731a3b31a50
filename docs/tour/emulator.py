"""CUDA kernels that stand in a notebook, compiled for the project's emulator and called with NumPy arrays.

The emulator is a folder of C++ (src/kernels/emu) with the names that kernels use. Here it is compiled as it is, with
g++, which the installation of the project needs as well.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

KERNELS = Path(__file__).resolve().parents[2] / "src" / "kernels"
FLAGS = ["-std=c++20", "-O0", "-fPIC", "-fno-math-errno", "-ffp-contract=off", "-Wno-unknown-pragmas", "-DCONVNET_EMU"]

SOURCE = """
#include <cstdio>
#include <utility>
#include "arch/arch.cuh"
#include "tile/wgmma_ring.cuh"
namespace convnet {
#line 1 "kernel.cu"
%s
template <class... Arrays, std::size_t... kIndex>
void run_with(void (*run)(Arrays*...), void** arrays, std::index_sequence<kIndex...>) {
  run(static_cast<Arrays*>(arrays[kIndex])...);
}
template <class... Arrays>
int run_with(void (*run)(Arrays*...), void** arrays, int count) {
  if (count != sizeof...(Arrays)) return 2;
  run_with(run, arrays, std::index_sequence_for<Arrays...>{});
  return 0;
}
}
extern "C" int run_with(unsigned long seed, void** arrays, int count, char* error, unsigned long size) {
  convnet::emu::seed_order(seed);
  try {
    return convnet::run_with(convnet::run, arrays, count);
  } catch (const std::exception& exception) {
    std::snprintf(error, size, "%%s", exception.what());
    return 1;
  }
}
"""


class Complaint(Exception):
    """What the emulator says of a kernel."""


def compiled(source: str, without: str | None = None) -> Callable[..., None]:
    """A function of NumPy arrays, contiguous ones, that calls ``run`` of the source with their addresses.

    ``source`` has kernels and ``void run(float* x, ...)``, which launches them. ``without`` is a piece of it, or of one
    of the headers in src/kernels/tile, that is taken out beforehand. The function takes ``seed``, which chooses the
    order of threads, and raises ``Complaint`` with what the emulator says.
    """
    folder = Path(tempfile.mkdtemp(dir=_emulator()))
    kernels = KERNELS
    if without is not None:
        source, kernels = _taken_out(source, without, folder)
    (folder / "kernel.cpp").write_text(SOURCE % source)
    library = folder / "kernel.so"
    _gcc([f"-I{kernels}", "-shared", folder / "kernel.cpp", *_emulator().glob("*.o"), "-pthread", "-o", library])
    function = ctypes.CDLL(str(library)).run_with

    def run(*arrays: np.ndarray, seed: int = 1) -> None:
        if not all(array.flags.c_contiguous for array in arrays):
            raise ValueError("a kernel takes contiguous arrays: np.ascontiguousarray makes one")
        addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        error = ctypes.create_string_buffer(4096)
        ended = function(ctypes.c_ulong(seed), addresses, len(arrays), error, ctypes.c_ulong(len(error)))
        if ended == 2:
            raise TypeError(f"run takes another number of arrays than {len(arrays)}")
        if ended:
            raise Complaint(error.value.decode())

    return run


def _taken_out(source: str, piece: str, folder: Path) -> tuple[str, Path]:
    """The source without a piece, and the folder of the kernels, a copy if that is where the piece was."""
    if source.count(piece) == 1:
        return source.replace(piece, ""), KERNELS
    headers = [file for file in sorted((KERNELS / "tile").glob("*.cuh")) if file.read_text().count(piece) == 1]
    if source.count(piece) or len(headers) != 1:
        raise ValueError(f"{piece!r} should stand once in the source or in one of the headers")
    copy = folder / "kernels"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("cpu", "*.cu"))
    (copy / "tile" / headers[0].name).write_text(headers[0].read_text().replace(piece, ""))
    return source, copy


@functools.cache
def _emulator() -> Path:
    """A folder with the emulator's objects, which goes when Python ends."""
    folder = tempfile.TemporaryDirectory(prefix="convnet-tour-")
    _KEPT.append(folder)
    sources = sorted((KERNELS / "emu").glob("*.cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda file: _gcc(["-c", file, "-o", Path(folder.name) / f"{file.stem}.o"]), sources))
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _gcc(arguments: list[str | Path]) -> None:
    if shutil.which("g++") is None:
        raise RuntimeError("this chapter compiles kernels: it needs g++, version 11 or newer")
    done = subprocess.run(["g++", *FLAGS, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the kernel does not compile:\n{done.stderr[:3000]}")
