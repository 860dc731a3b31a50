"""PEP 517 backend: scikit-build-core, plus an nvcc from PyPI where CUDA kernels are wanted and the machine has none.

``cmake/choose_cuda.cmake`` decides what ``CONVNET_CUDA`` means (``pip install . -C cmake.define.CONVNET_CUDA=ON``).
This module answers one question before that, twice, since pip may run the hooks in separate processes: must nvcc come
from PyPI?
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scikit_build_core import build as _skbuild
from scikit_build_core.build import (  # noqa: F401  (hooks of PEP 517 and 660, looked up by name)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

Settings = Mapping[str, Any] | None

# The metapackage pins a matching set; nvcc's own wheel leaves the versions of its parts open. CUDA 13.0 runs on every
# driver from 580 on. cccl holds headers that cuda_bf16.h includes.
NVCC_REQUIREMENT = "cuda-toolkit[nvcc,cccl]==13.0.*"
OLDEST_NVCC = (12, 0)  # the first to know sm_90a


def cuda_mode(settings: Settings) -> str:
    """AUTO, ON or OFF, as given to pip."""
    value = (settings or {}).get("cmake.define.CONVNET_CUDA", "AUTO")
    return str(value[-1] if isinstance(value, list) else value)


def _output(*command: str) -> str:
    """What a command prints, "" when it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def has_gpu() -> bool:
    """Whether the driver lists a GPU that the kernels can run on (compute capability 8.0 or more)."""
    capabilities = _output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return any(int(major) >= 8 for major in re.findall(r"^\s*(\d+)\.\d", capabilities, re.MULTILINE))


def has_nvcc() -> bool:
    """Whether CMake will find an nvcc that is new enough; one chosen by CUDACXX is taken as it is."""
    if os.environ.get("CUDACXX"):
        return True
    for nvcc in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        release = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version")) if nvcc else None
        if release:
            return (int(release[1]), int(release[2])) >= OLDEST_NVCC
    return False


def needs_nvcc_wheel(settings: Settings) -> bool:
    """Whether the CUDA kernels are to be built although the machine has no usable nvcc."""
    mode = cuda_mode(settings)
    return (mode == "ON" or (mode == "AUTO" and has_gpu())) and not has_nvcc()


def wheel_toolkit() -> Path | None:
    """The folder of the CUDA toolkit installed from PyPI in this environment, which has bin/nvcc in it."""
    try:
        files = importlib.metadata.distribution("nvidia-cuda-nvcc").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    compilers = [Path(str(file.locate())) for file in files if file.parts[-2:] == ("bin", "nvcc")]
    return compilers[0].resolve().parent.parent if compilers else None


def prepare(settings: Settings) -> None:
    """Points CMake at the nvcc from PyPI where it is needed. Ends with one clear line when a tool is missing."""
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise SystemExit("convnet: no C++ compiler found; install one, for example: apt-get install g++")
    if not needs_nvcc_wheel(settings):
        return
    root = wheel_toolkit()
    if root is None:
        raise SystemExit(
            "convnet: the CUDA kernels are wanted but there is no nvcc; without build isolation, run first: "
            f"pip install '{NVCC_REQUIREMENT}'; or build without them: -C cmake.define.CONVNET_CUDA=OFF"
        )
    os.environ["CUDACXX"] = str(root / "bin" / "nvcc")
    # This nvcc looks for its libraries in lib64; the wheels have lib.
    libraries = [str(root / "lib"), *filter(None, [os.environ.get("LIBRARY_PATH")])]
    os.environ["LIBRARY_PATH"] = os.pathsep.join(libraries)


def _requirements(base: list[str], settings: Settings) -> list[str]:
    return [*base, *([NVCC_REQUIREMENT] if needs_nvcc_wheel(settings) else [])]


def get_requires_for_build_wheel(settings: Settings = None) -> list[str]:
    return _requirements(_skbuild.get_requires_for_build_wheel(settings), settings)


def get_requires_for_build_editable(settings: Settings = None) -> list[str]:
    return _requirements(_skbuild.get_requires_for_build_editable(settings), settings)


def build_wheel(folder: str, settings: Settings = None, metadata: str | None = None) -> str:
    prepare(settings)
    return _skbuild.build_wheel(folder, settings, metadata)


def build_editable(folder: str, settings: Settings = None, metadata: str | None = None) -> str:
    prepare(settings)
    return _skbuild.build_editable(folder, settings, metadata)
