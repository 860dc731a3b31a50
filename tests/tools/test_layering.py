"""Who may import whom, and what nobody may contain. Every rule is also shown to fail on a made-up violation."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "src" / "kernels"
BINDINGS = ROOT / "src" / "bindings"

DATA_DEPENDENCIES = {"numpy", "PIL", "simplejpeg", "pyarrow", "tqdm"}
# tomli on Python 3.10, where the standard library has no tomllib
DEPENDENCIES = {"numpy", "PIL", "safetensors", "tqdm", "matplotlib", "threadpoolctl", "tomli", "tomllib"}
DEPENDENCIES |= {"pycuda", "simplejpeg", "pyarrow", "onnx", "onnxruntime", "google", "tensorboardX"}  # optional
DEPENDENCIES |= {"starlette", "uvicorn", "jinja2"}  # optional, for the page
DEPENDENCIES |= {"mpi4py", "nccl"}  # optional, for several processes
DEPENDENCIES |= {"sklearn"}  # which asks, and is not asked for
HEADER_ENTRIES = ["What", "Tensors", "Work", "Shared", "Barriers", "Needs", "Cost"]


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every import in ``tree`` as a dotted name, and whether it runs when the file is loaded."""
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    top = set(ast.walk(tree)).difference(*map(ast.walk, functions))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = node.module + "." if node.module else ""
                yield "." * node.level + module + alias.name, node in top


# ---- rules for Python: (path relative to the root, parsed file) -> complaints ----


def only_device_imports_pycuda(path: str, tree: ast.AST) -> Iterator[str]:
    if path != "convnet/devices/cuda.py":
        yield from (f"imports {name}" for name, _ in imports(tree) if name.split(".")[0] == "pycuda")


def device_imports_pycuda_late(path: str, tree: ast.AST) -> Iterator[str]:
    yield from (f"imports {name} on load" for name, top in imports(tree) if name.split(".")[0] == "pycuda" and top)


def compiled_modules_are_imported_late(path: str, tree: ast.AST) -> Iterator[str]:
    """Where they are missing, everything else works."""
    if path.startswith("convnet/"):
        compiled = {"_cpu", "_gpu", "_emu", "_glass"}
        yield from (f"imports {name} on load" for name, top in imports(tree) if top and name.split(".")[-1] in compiled)


def data_has_few_dependencies(path: str, tree: ast.AST) -> Iterator[str]:
    if not path.startswith("convnet/data/"):
        return
    for name, _ in imports(tree):
        package = name.split(".")[0]
        if package and package not in {"convnet"} | DATA_DEPENDENCIES | sys.stdlib_module_names:
            yield f"imports {package}"


def rooms_import_nothing(path: str, tree: ast.AST) -> Iterator[str]:
    """A room says in a sentence what lives there, and is no face: but for data, whose kinds are recognised there, the
    commands, for what they have in common, and interop, which users import."""
    if path.endswith("/__init__.py") and path.count("/") > 1 and path.split("/")[1] not in ("data", "cli", "interop"):
        yield from (f"imports {name}" for name, _ in imports(tree))
        if ast.get_docstring(tree) is None:
            yield "says nothing"


def only_declared_dependencies(path: str, tree: ast.AST) -> Iterator[str]:
    known = {"convnet"} | DEPENDENCIES | sys.stdlib_module_names | ({"torch"} if path == "convnet/torch.py" else set())
    for name, _ in imports(tree):
        package = name.split(".")[0]
        if package and package not in known:
            yield f"imports {package}"


# what the processes of one run tell each other comes from this very program, not from a file
AMONG_OURSELVES = {("convnet/group/mpi.py", "pickle.loads")}


def no_code_from_data(path: str, tree: ast.AST) -> Iterator[str]:
    """No call that may run what a file contains, or write where it says: pickle, eval, YAML objects, archives."""
    dangerous = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "shutil.unpack_archive"}
    yield from (f"imports {name}" for name, _ in imports(tree) if name in dangerous)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and path != "convnet/data/pickles.py":
            yield from (f"derives from {ast.unparse(b)}" for b in node.bases if "Unpickler" in ast.unparse(b))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if (
            re.fullmatch(
                r"(builtins\.)?(eval|exec)|c?[pP]ickle\.(loads?|Unpickler)|yaml\.(unsafe_|full_)?load|torch\.load|marshal\.loads?",
                called,
            )
            and (path, called) not in AMONG_OURSELVES
        ):
            yield f"calls {called}"
        if called.endswith((".extractall", "unpack_archive")):
            yield f"calls {called}"
        if any(
            k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and not k.value.value)
            for k in node.keywords
        ):
            yield f"calls {called} with allow_pickle"


# modules that reach for other machines or listen to them, and those that keep objects as pickles
NETWORK = {"socket", "socketserver", "ssl", "http", "urllib", "urllib3", "ftplib", "smtplib", "poplib", "imaplib"}
NETWORK |= {"telnetlib", "xmlrpc", "webbrowser", "asyncio", "requests", "httpx", "aiohttp", "huggingface_hub"}
SERVING = {
    "convnet/cli/explore.py": {"socket", "webbrowser"},
    "convnet/explore/serving.py": {"socket"},
    "convnet/explore/server.py": {"asyncio"},
}
PICKLES = {"shelve", "joblib", "dill", "cloudpickle", "marshal"}


def no_network_and_no_shell(path: str, tree: ast.AST) -> Iterator[str]:
    """Nothing is fetched, served, or handed to a shell, which would run what a file's name contains. A page is served
    to this machine alone."""
    for name, _ in imports(tree):
        if name in SERVING.get(path, ()):
            continue
        if name.split(".")[0] in NETWORK | PICKLES or name.startswith("multiprocessing.managers"):
            yield f"imports {name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if re.fullmatch(r"os\.(system|popen|spawn\w+)|subprocess\.(getoutput|getstatusoutput)|__import__", called):
            yield f"calls {called}"
        for keyword in node.keywords:
            if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value):
                yield f"calls {called} with shell"


# rule, a path where it applies, a violation there
PYTHON_RULES: list[tuple[Callable[[str, ast.AST], Iterator[str]], str, str]] = [
    (only_device_imports_pycuda, "convnet/network/model.py", "def f():\n    import pycuda.driver as driver"),
    (device_imports_pycuda_late, "convnet/devices/cuda.py", "from pycuda import driver"),
    (data_has_few_dependencies, "convnet/data/folder.py", "import torch"),
    (compiled_modules_are_imported_late, "convnet/devices/host.py", "from ..kernels import _cpu"),
    (compiled_modules_are_imported_late, "convnet/devices/cuda.py", "import convnet.kernels._gpu"),
    (rooms_import_nothing, "convnet/ops/__init__.py", '"""Ops."""\nfrom . import ops'),
    (rooms_import_nothing, "convnet/devices/blas/__init__.py", ""),
    (only_declared_dependencies, "convnet/training/train.py", "import torch.nn"),
    (no_code_from_data, "convnet/training/checkpoint.py", "import pickle\npickle.load(file)"),
    (no_code_from_data, "convnet/training/checkpoint.py", "class Reader(pickle.Unpickler): ..."),
    (no_code_from_data, "convnet/training/config.py", "eval(text)"),
    (no_code_from_data, "convnet/training/config.py", "yaml.load(text)"),
    (no_code_from_data, "convnet/data/cifar.py", "archive.extractall(folder)"),
    (no_code_from_data, "convnet/data/cifar.py", "np.load(file, allow_pickle=True)"),
    (no_code_from_data, "tools/cubins.py", "def f():\n    builtins.exec(text)"),
    (no_code_from_data, "benchmarks/report.py", "from pickle import loads"),
    (no_network_and_no_shell, "convnet/training/train.py", "import urllib.request"),
    (no_network_and_no_shell, "convnet/data/store.py", "def f():\n    from http import client"),
    (no_network_and_no_shell, "convnet/prepare/journal.py", "import shelve"),
    (no_network_and_no_shell, "convnet/explore/server.py", "import urllib.request"),
    (no_network_and_no_shell, "tools/cubins.py", "subprocess.run(line, shell=True)"),
    (no_network_and_no_shell, "benchmarks/timing.py", "os.system(line)"),
]


def python_files() -> list[Path]:
    folders = ("convnet", "benchmarks", "tools", "build_backend")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "tools/gpu-check"]


EVERYWHERE = (only_device_imports_pycuda, no_code_from_data, no_network_and_no_shell)  # not in convnet/ alone


@pytest.mark.parametrize(
    "rule", sorted({rule for rule, *_ in PYTHON_RULES}, key=lambda r: r.__name__), ids=lambda r: r.__name__
)
def test_python(rule):
    complaints = []
    for file in python_files():
        path = file.relative_to(ROOT).as_posix()
        # benchmarks may compare with other libraries; only convnet's own devices use pycuda
        if path.startswith("convnet/") or rule in EVERYWHERE:
            complaints += [f"{path} {complaint}" for complaint in rule(path, ast.parse(file.read_text()))]
    assert not complaints


@pytest.mark.parametrize(("rule", "path", "violation"), PYTHON_RULES, ids=lambda v: getattr(v, "__name__", None))
def test_python_rule_sees_violation(rule, path, violation):
    assert list(rule(path, ast.parse(violation)))


# ---- rooms: the rules are contracts in pyproject.toml ----


def layers() -> list[str]:
    """The rooms from the top, by the contract."""
    linted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (rooms,) = (contract for contract in linted["contracts"] if contract["id"] == "rooms")
    return [name for line in rooms["layers"] for name in line.split(" | ")]


def test_rooms_are_told_once_and_the_same():
    """The contract, the package itself and the README list them in the same order, the latter two in the same words."""
    text = (ROOT / "convnet" / "__init__.py").read_text()
    told = re.findall(r"^    (\w+) {2,}(\S.*)$", text, re.MULTILINE)
    readme = re.findall(r"^  (\w+)/?(?:\.py)? {2,}(\S.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _ in told] == [name for name in layers() if name not in ("__main__", "version")]
    assert [line for line in readme if line in told] == told


def test_few_files_stand_outside_of_rooms():
    assert len(list((ROOT / "convnet").glob("*.py"))) <= 6
    for file in (ROOT / "convnet").rglob("*.py"):
        assert (file.parent / "__init__.py").exists(), file


# a file and an import that it must not have
CROSSINGS = [
    ("kernels/shapes.py", "from ..devices import protocol"),
    ("devices/protocol.py", "def f():\n    from . import cuda"),
    ("devices/host.py", "import pycuda.driver"),
    ("functional.py", "import torch.nn"),
    ("network/model.py", "from .. import torch"),
    ("data/folder.py", "from ..devices import protocol"),
    ("definitions/ini.py", "from ..data import DataError"),
    ("data/folder.py", "from ..definitions import ini"),
    ("output/files.py", "from ..data import DataError"),
    ("network/spec.py", "from ..output import console"),
    ("network/plan.py", "from . import layers"),
    ("prepare/journal.py", "from ..network import spec"),
    ("interop/onnx_in.py", "from ..training import checkpoint"),
    ("training/run.py", "from ..cli import train"),
    ("cli/eval.py", "from . import train"),
    ("explore/looks.py", "from . import study"),
    ("explore/study.py", "from starlette.routing import Route"),
    ("analysis/show.py", "from ..explore import looks"),
    ("training/schedule.py", "from . import config"),  # which imports schedule
    ("new.py", ""),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [*command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def copied(tmp_path) -> Path:
    """The package and its contracts."""
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    shutil.copytree(ROOT / "convnet", tmp_path / "convnet", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_rooms(copied):
    done = lint(copied)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("path", "text"), CROSSINGS, ids=lambda value: value if value.endswith(".py") else "")
def test_a_crossing_of_rooms_is_seen(copied, path, text):
    file = copied / "convnet" / path
    old = file.read_text() if file.exists() else ""
    file.write_text(f"{old}\n\n{text}\n")
    done = lint(copied)
    assert done.returncode != 0, done.stdout
    assert "BROKEN" in done.stdout or "new" in done.stdout


# ---- rules for C++ and CUDA: (path relative to src, text) -> complaints ----


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def includes(text: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.MULTILINE)


def hardware_only_in_arch(path: str, text: str) -> Iterator[str]:
    if not path.startswith(("kernels/arch/", "kernels/emu/", "kernels/cpu/direct_rows.hpp")):
        pattern = (
            r"\basm\b|__asm__|\b__shfl\w*|\b__ballot\w*|<<<|\bcudaLaunch\w*|\bcuTensorMapEncode\w*|\bcuda_runtime\.h"
        )
        yield from (f"contains {found}" for found in re.findall(pattern, without_comments(text)))


def kernels_promise_no_constant_memory(path: str, text: str) -> Iterator[str]:
    """What a kernel reads, the one before it may still be writing when it begins: no load may be told otherwise. (A
    pointer to results may say that nothing else leads there.)"""
    code = without_comments(text)
    yield from (f"contains {found}" for found in re.findall(r"const\s+[\w:]+\s*\*\s*__restrict__", code))
    yield from (f"contains {found}" for found in re.findall(r"\b__ldg\b|\bld\.global\.nc\b", code))


def ops_stand_alone(path: str, text: str) -> Iterator[str]:
    """An op includes its own header, arch/arch.cuh, tile/ and the common headers."""
    if not re.fullmatch(r"kernels/\w+\.cu", path):
        return
    allowed = {Path(path).stem + ".hpp", "arch/arch.cuh", "shapes.hpp", "check.hpp"}
    for name in includes(text):
        if name.endswith((".cu", ".cuh", ".hpp", ".h")) and name not in allowed and not name.startswith("tile/"):
            yield f"includes {name}"


def headers_of_ops_are_plain(path: str, text: str) -> Iterator[str]:
    """They are what the bindings see: no CUDA in them."""
    if re.fullmatch(r"kernels/\w+\.hpp", path):
        plain = r"(shapes|variants|control)\.hpp|\w+"
        yield from (f"includes {name}" for name in includes(text) if not re.fullmatch(plain, name))


def tiles_know_no_ops(path: str, text: str) -> Iterator[str]:
    if path.startswith("kernels/tile/"):
        allowed = r"\w+\.cuh|\.\./arch/arch\.cuh|\.\./(shapes|check|variants|control)\.hpp|\w+"
        yield from (f"includes {name}" for name in includes(text) if not re.fullmatch(allowed, name))


def machines_know_no_ops(path: str, text: str) -> Iterator[str]:
    if path.startswith(("kernels/arch/", "kernels/emu/")):
        allowed = r"(gpu/|\.\./emu/)?\w+\.(cuh|hpp)|(\.\./)+(shapes|check|tensor_map|arch/tensor_map)\.hpp|[\w/]+(\.h)?"
        yield from (f"includes {name}" for name in includes(text) if not re.fullmatch(allowed, name))


def cpu_knows_no_device(path: str, text: str) -> Iterator[str]:
    """Loops in C++: what the processor has is asked in one place."""
    if path.startswith("kernels/cpu/"):
        allowed = r"(\.\./)?\w+\.hpp|pthread\.h|\w+"
        yield from (f"includes {name}" for name in includes(text) if not re.fullmatch(allowed, name))
        if path != "kernels/cpu/level.hpp":
            yield from (f"contains {found}" for found in re.findall(r"\btarget\(|\b_mm\w+|immintrin", text))


def bindings_see_plain_headers(path: str, text: str) -> Iterator[str]:
    if path.startswith("bindings/"):
        allowed = r"\.\./kernels/\w+\.hpp|\w+\.hpp|pybind11/\w+\.h|\w+"
        own = {
            "bindings/cpu.cpp": {"../kernels/cpu/level.hpp", "../kernels/cpu/work.hpp"},
            "bindings/emulator.cpp": {"../kernels/emu/launch.hpp"},
            "bindings/glass.cpp": {"../kernels/emu/glass.hpp", "../kernels/emu/launch.hpp"},
            "bindings/graph.cpp": {
                "cuda_runtime_api.h",
                "../kernels/arch/gpu/error.hpp",
                "../kernels/arch/gpu/launches.hpp",
            },
        }
        for name in includes(text):
            if not re.fullmatch(allowed, name) and name not in own.get(path, ()):
                yield f"includes {name}"


def ops_have_their_header_comment(path: str, text: str) -> Iterator[str]:
    if re.fullmatch(r"kernels/\w+\.cu", path):
        comment = text.split("#include")[0]
        entries = [entry for entry in re.findall(r"^// (\w+)  +\S", comment, re.MULTILINE) if entry in HEADER_ENTRIES]
        if entries != HEADER_ENTRIES:
            yield f"begins with the entries {entries}, not {HEADER_ENTRIES}"


CPP_RULES: list[tuple[Callable[[str, str], Iterator[str]], str, str]] = [
    (hardware_only_in_arch, "kernels/relu.cu", 'asm volatile("");'),
    (hardware_only_in_arch, "kernels/lrn.cu", "x += __shfl_xor_sync(~0u, x, 1);"),
    (hardware_only_in_arch, "kernels/tile/sums.cuh", "kernel<<<1, 1>>>();"),
    (hardware_only_in_arch, "bindings/linear.cpp", "cudaLaunchKernel(f);"),
    (kernels_promise_no_constant_memory, "kernels/lrn.cu", "void f(const T* __restrict__ x) {}"),
    (kernels_promise_no_constant_memory, "kernels/arch/gpu/memory.cuh", "return __ldg(address);"),
    (kernels_promise_no_constant_memory, "kernels/arch/gpu/memory.cuh", 'asm("ld.global.nc.f32 %0, [%1];");'),
    (ops_stand_alone, "kernels/lrn.cu", '#include "relu.cu"'),
    (ops_stand_alone, "kernels/lrn.cu", '#include "maxpool.hpp"'),
    (ops_stand_alone, "kernels/lrn.cu", '#include "arch/gpu/warp.cuh"'),
    (headers_of_ops_are_plain, "kernels/lrn.hpp", '#include "arch/arch.cuh"'),
    (headers_of_ops_are_plain, "kernels/lrn.hpp", "#include <cuda_runtime.h>"),
    (tiles_know_no_ops, "kernels/tile/sums.cuh", '#include "../lrn.hpp"'),
    (tiles_know_no_ops, "kernels/tile/sums.cuh", '#include "../arch/gpu/warp.cuh"'),
    (machines_know_no_ops, "kernels/arch/gpu/warp.cuh", '#include "../../tile/sums.cuh"'),
    (machines_know_no_ops, "kernels/emu/block.cpp", '#include "../lrn.hpp"'),
    (cpu_knows_no_device, "kernels/cpu/lrn.cpp", '#include "../arch/arch.cuh"'),
    (cpu_knows_no_device, "kernels/cpu/lrn.cpp", '__attribute__((target("avx2"))) void f();'),
    (bindings_see_plain_headers, "bindings/linear.cpp", "#include <cuda_runtime_api.h>"),
    (bindings_see_plain_headers, "bindings/linear.cpp", '#include "../kernels/arch/arch.cuh"'),
    (bindings_see_plain_headers, "bindings/graph.cpp", '#include "../kernels/arch/arch.cuh"'),
    (
        ops_have_their_header_comment,
        "kernels/lrn.cu",
        '// LRN.\n//\n// What       x\n// Work       y\n#include "lrn.hpp"',
    ),
]


@pytest.mark.parametrize(
    "rule", sorted({rule for rule, *_ in CPP_RULES}, key=lambda r: r.__name__), ids=lambda r: r.__name__
)
def test_cpp(rule):
    files = [f for f in sorted((ROOT / "src").rglob("*")) if f.suffix in {".cu", ".cuh", ".hpp", ".cpp"}]
    assert len(files) > 30
    paths = [(file.relative_to(ROOT / "src").as_posix(), file.read_text()) for file in files]
    assert not [f"{path} {complaint}" for path, text in paths for complaint in rule(path, text)]


@pytest.mark.parametrize(("rule", "path", "violation"), CPP_RULES, ids=lambda v: getattr(v, "__name__", None))
def test_cpp_rule_sees_violation(rule, path, violation):
    assert list(rule(path, violation))


def test_comments_do_not_count():
    assert not list(hardware_only_in_arch("kernels/relu.cu", "// no asm here\n/* nor <<< */"))
