"""The build's decisions: is _gpu built, for which GPUs, and must nvcc come from PyPI. Nothing is compiled here.

CMake and the build backend decide from the same outside facts; each case is put to both.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCC_13 = "Cuda compilation tools, release 13.0, V13.0.88"


def load_backend(stand_in: Path):
    """The build backend, with a stand-in for scikit-build-core, which need not be installed here."""
    sys.path.insert(0, str(stand_in))
    try:
        spec = importlib.util.spec_from_file_location("convnet_build", ROOT / "build_backend" / "convnet_build.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(stand_in))
        for name in [name for name in sys.modules if name.startswith("scikit_build_core")]:
            del sys.modules[name]


@pytest.fixture
def backend(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("scikit_build_core")]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "stand_in" / "scikit_build_core"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "build.py").write_text(
        "import os\n"
        "def build_wheel(folder, settings, metadata):\n"
        "    return os.environ.get('CUDACXX', '') + ' ' + os.environ.get('LIBRARY_PATH', '')\n"
        "def get_requires_for_build_wheel(settings): return ['ninja']\n"
        "build_editable = build_sdist = build_wheel\n"
        "get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel\n"
        "prepare_metadata_for_build_wheel = prepare_metadata_for_build_editable = build_wheel\n"
    )
    return load_backend(package.parent)


class Machine:
    """A PATH with made-up programs in front of nothing."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        for name in ("CUDACXX", "CUDAARCHS", "LIBRARY_PATH", "CXX"):
            monkeypatch.delenv(name, raising=False)
        self.program("c++", "")

    def program(self, name: str, output: str, code: int = 0) -> None:
        path = self.folder / name
        path.write_text(
            f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n".replace("cat", shutil.which("cat", path="/bin"))
        )
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path / "bin", monkeypatch)


@pytest.fixture
def only_path(backend, monkeypatch):
    """Hides a CUDA toolkit in its usual place, which this machine may have."""
    run = backend._output
    monkeypatch.setattr(backend, "_output", lambda *command: "" if "/usr/local/cuda" in command[0] else run(*command))


def cmake(mode: str, nvcc: bool, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs cmake/choose_cuda.cmake alone: exit code and all that it printed, on one line."""
    program = shutil.which("cmake", path=os.defpath + ":/usr/local/bin:" + str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("cmake is not installed")
    compiler = "nvcc" if nvcc else ""  # set to "", CMake does not search
    command = [program, f"-DCONVNET_CUDA={mode}", f"-DCMAKE_CUDA_COMPILER={compiler}", "-P"]
    done = subprocess.run(
        [*command, str(ROOT / "cmake" / "choose_cuda.cmake")],
        capture_output=True, text=True, timeout=60, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize(("system", "code"), [("Linux", 0), ("Darwin", 1), ("Windows", 1), ("", 0)])
def test_other_systems_are_told_in_one_sentence(system, code):
    """ "": the one of this machine."""
    program = shutil.which("cmake", path=os.defpath + ":/usr/local/bin:" + str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("cmake is not installed")
    command = [program, f"-DCONVNET_SYSTEM={system}", "-P", str(ROOT / "cmake" / "require_linux.cmake")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    if code:
        assert f"runs on Linux alone, and this is {system}: use a Linux machine" in " ".join(done.stderr.split())


# mode, compute capabilities that nvidia-smi prints (None: there is none), nvcc there -> what CMake says, nvcc from PyPI
HOPPER, NONE = "9.0", None
CASES = [
    ("AUTO", NONE, False, "CPU-only, because", False),
    ("AUTO", NONE, True, "CUDA kernels for 80,90a", False),
    ("AUTO", HOPPER, False, "there is no nvcc", True),
    ("AUTO", HOPPER, True, "CUDA kernels for 90a", False),
    ("AUTO", "8.6\n9.0\n8.6", True, "CUDA kernels for 86,90a", False),
    ("AUTO", "12.0", True, "CUDA kernels for 120", False),
    ("AUTO", "6.1", False, "CPU-only, because", False),
    ("AUTO", "7.5", True, "CUDA kernels for 80,90a", False),
    ("AUTO", "NVIDIA-SMI has failed", False, "CPU-only, because", False),
    ("ON", NONE, False, "there is no nvcc", True),
    ("ON", NONE, True, "CUDA kernels for 80,90a", False),
    ("ON", HOPPER, True, "CUDA kernels for 90a", False),
    ("OFF", HOPPER, True, "CPU-only, as asked", False),
    ("OFF", HOPPER, False, "CPU-only, as asked", False),
]
IDS = [f"{mode}-{(gpu or 'no gpu').splitlines()[0]}-{'nvcc' if nvcc else 'no nvcc'}" for mode, gpu, nvcc, *_ in CASES]


@pytest.mark.parametrize(("mode", "gpu", "nvcc", "said", "from_pypi"), CASES, ids=IDS)
def test_decision(backend, machine, only_path, mode, gpu, nvcc, said, from_pypi):
    if gpu is not None:
        machine.program("nvidia-smi", gpu)
    if nvcc:
        machine.program("nvcc", NVCC_13)
    settings = {"cmake.define.CONVNET_CUDA": mode}
    assert backend.needs_nvcc_wheel(settings) == from_pypi
    assert (backend.NVCC_REQUIREMENT in backend.get_requires_for_build_wheel(settings)) == from_pypi
    assert (backend.NVCC_REQUIREMENT in backend.get_requires_for_build_editable(settings)) == from_pypi
    code, text = cmake(mode, nvcc)
    assert said in text
    # A wanted build that cannot be fails; the backend prevents that by bringing nvcc.
    assert (code != 0) == from_pypi


def test_unknown_mode_is_refused(machine):
    code, text = cmake("YES", nvcc=False)
    assert code != 0
    assert 'CONVNET_CUDA must be AUTO, ON or OFF, got "YES"' in text


def test_mode_defaults_to_auto_and_the_last_one_counts(backend):
    assert backend.cuda_mode(None) == "AUTO"
    assert backend.cuda_mode({"cmake.define.CONVNET_CUDA": ["ON", "OFF"]}) == "OFF"


def test_architectures_can_be_chosen(machine):
    machine.program("nvidia-smi", "9.0")
    assert "CUDA kernels for 75" in cmake("ON", nvcc=True, environment={"CUDAARCHS": "75"})[1]


def test_failing_nvidia_smi_is_no_gpu(backend, machine):
    machine.program("nvidia-smi", "9.0", code=9)
    assert not backend.has_gpu()


@pytest.mark.parametrize(("output", "usable"), [(NVCC_13, True), ("release 11.8, V11.8.89", False), ("", False)])
def test_nvcc_is_judged_by_what_it_prints(backend, machine, only_path, output, usable):
    machine.program("nvcc", output)
    assert backend.has_nvcc() == usable


def test_chosen_nvcc_is_respected(backend, machine, monkeypatch):
    monkeypatch.setenv("CUDACXX", "/somewhere/nvcc")
    assert not backend.needs_nvcc_wheel({"cmake.define.CONVNET_CUDA": "ON"})


def test_nvcc_from_pypi_is_handed_to_cmake(backend, machine, only_path, tmp_path, monkeypatch):
    """As the wheels lay it out: nvidia/cu13/bin/nvcc, libraries in lib, where nvcc does not look by itself."""
    site = tmp_path / "site"
    (site / "nvidia" / "cu13" / "bin").mkdir(parents=True)
    (site / "nvidia" / "cu13" / "bin" / "nvcc").write_text("")
    info = site / "nvidia_cuda_nvcc-13.0.88.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-cuda-nvcc\nVersion: 13.0.88\n")
    (info / "RECORD").write_text("nvidia/cu13/bin/nvcc,,\nnvidia/cu13/bin/nvcc.profile,,\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("CUDACXX", "")  # known to monkeypatch, which takes away in the end what the backend sets
    root = site / "nvidia" / "cu13"
    for build in (backend.build_wheel, backend.build_editable):
        monkeypatch.delenv("CUDACXX", raising=False)
        monkeypatch.setenv("LIBRARY_PATH", "/before")
        result = build("out", {"cmake.define.CONVNET_CUDA": "ON"})
        assert result == f"{root / 'bin' / 'nvcc'} {root / 'lib'}:/before"


def test_missing_nvcc_without_isolation_names_the_remedy(backend, machine, only_path, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(SystemExit, match=re.escape("pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'")):
        backend.build_wheel("out", {"cmake.define.CONVNET_CUDA": "ON"})


def test_missing_compiler_is_said_in_one_line(backend, machine):
    (machine.folder / "c++").unlink()
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler"):
        backend.build_wheel("out", {"cmake.define.CONVNET_CUDA": "OFF"})
