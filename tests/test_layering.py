"""Who may import whom, and what nobody may contain. Every rule is also shown to fail on a made-up violation."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "src" / "kernels"
BINDINGS = ROOT / "src" / "bindings"

# What the network and the modules below it may import of ours, at the top of the file or anywhere else. Modules not
# listed stand above these: training, commands, figures.
FOUNDATION = {
    "precision": set(),
    "shapes": {"precision"},
    "rng": set(),
    "files": set(),
    "control": set(),
    "parallel": set(),
    "switches": set(),
    "spec": {"shapes"},
    "backend": {"shapes", "spec", "precision", "device", "host"},  # the devices inside functions only: see LAZY
    "layout": {"shapes", "precision", "backend"},
    "blas_common": {"shapes", "rng", "control", "parallel"},
    "blas_conv": {"shapes", "control", "parallel", "blas_common"},
    "blas_maps": {"shapes", "parallel", "blas_common"},
    "blas_kernels": {"shapes", "control", "parallel", "blas_common", "blas_conv", "blas_maps"},
    "failures": {"backend"},
    "device": {"shapes", "spec", "backend", "failures", "switches", "_gpu"},
    "host": {"shapes", "spec", "precision", "backend", "blas_kernels", "_emu"},
    "ops": {"shapes", "spec", "precision", "control", "backend"},
    "arguments": {"shapes", "precision", "backend"},
    "call": {"precision", "backend", "layout", "arguments"},
    "functional": {"shapes", "layout", "control", "ops", "arguments", "call"},
    "plan": {"backend"},
    "layers": {"shapes", "precision", "control", "backend", "ops", "plan"},
    "assemble": {"shapes", "spec", "layers"},
    "initial": {"spec", "rng"},
    "exchange": {"backend", "ops", "layers"},
    "intake": {"arguments", "switches", "shapes", "backend", "ops", "layers"},
    "wiring": {"shapes", "spec", "backend", "ops", "layers", "assemble", "exchange"},
    "parameters": {"layout", "layers", "wiring"},
    "diagnosis": {"backend", "layout", "wiring"},
    "graphs": {"backend", "switches"},
    "model": {
        "arguments",
        "spec",
        "control",
        "backend",
        "layout",
        "layers",
        "assemble",
        "wiring",
        "parameters",
        "diagnosis",
        "graphs",
        "switches",
        "intake",
        "initial",
    },
}
LAZY = {"backend": {"device", "host"}, "device": {"_gpu"}, "host": {"_emu", "blas_kernels"}}
DATA_MAY_IMPORT = {"data", "rng", "files"}
DATA_DEPENDENCIES = {"numpy", "PIL", "simplejpeg", "tqdm"}
# tomli on Python 3.10, where the standard library has no tomllib
DEPENDENCIES = {"numpy", "PIL", "safetensors", "tqdm", "matplotlib", "threadpoolctl", "tomli", "tomllib"}
DEPENDENCIES |= {"pycuda", "simplejpeg"}  # optional
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


def ours(path: str, name: str) -> str | None:
    """The module of convnet that an import means ("data" for all of convnet/data), None for other packages."""
    package = path.split("/")[:-1]  # ["convnet"] or ["convnet", "data"]
    dots = len(name) - len(name.lstrip("."))
    parts = [*package[: len(package) - dots + 1], *name.lstrip(".").split(".")] if dots else name.split(".")
    return parts[1] if parts[0] == "convnet" and len(parts) > 1 else None


# ---- rules for Python: (path relative to the root, parsed file) -> complaints ----


def only_device_imports_pycuda(path: str, tree: ast.AST) -> Iterator[str]:
    if path != "convnet/device.py":
        yield from (f"imports {name}" for name, _ in imports(tree) if name.split(".")[0] == "pycuda")


def device_imports_pycuda_late(path: str, tree: ast.AST) -> Iterator[str]:
    yield from (f"imports {name} on load" for name, top in imports(tree) if name.split(".")[0] == "pycuda" and top)


def foundation_imports_downwards(path: str, tree: ast.AST) -> Iterator[str]:
    module = path.removeprefix("convnet/").removesuffix(".py")
    if module not in FOUNDATION:
        return
    for name, top in imports(tree):
        target = ours(path, name)
        if target is None or target.startswith("__"):
            continue
        if target not in FOUNDATION[module]:
            yield f"imports {target}"
        elif top and target in LAZY.get(module, ()):
            yield f"imports {target} on load"


def data_stands_alone(path: str, tree: ast.AST) -> Iterator[str]:
    if not path.startswith("convnet/data/"):
        return
    for name, _ in imports(tree):
        target = ours(path, name)
        if target is not None and target not in DATA_MAY_IMPORT:
            yield f"imports {target}"
        package = name.split(".")[0]
        if target is None and package not in {"convnet"} | DATA_DEPENDENCIES | sys.stdlib_module_names:
            yield f"imports {package}"


def nothing_imports_the_commands(path: str, tree: ast.AST) -> Iterator[str]:
    if not path.startswith("convnet/cli/"):
        yield from (f"imports {name}" for name, _ in imports(tree) if ours(path, name) == "cli")


def only_declared_dependencies(path: str, tree: ast.AST) -> Iterator[str]:
    for name, _ in imports(tree):
        package = name.split(".")[0]
        if package and package not in {"convnet"} | DEPENDENCIES | sys.stdlib_module_names:
            yield f"imports {package}"


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
        if re.fullmatch(
            r"(builtins\.)?(eval|exec)|c?[pP]ickle\.(loads?|Unpickler)|yaml\.(unsafe_|full_)?load|torch\.load|marshal\.loads?",
            called,
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
PICKLES = {"shelve", "joblib", "dill", "cloudpickle", "marshal"}


def no_network_and_no_shell(path: str, tree: ast.AST) -> Iterator[str]:
    """Nothing is fetched, served, or handed to a shell, which would run what a file's name contains."""
    for name, _ in imports(tree):
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
    (only_device_imports_pycuda, "convnet/model.py", "def f():\n    import pycuda.driver as driver"),
    (device_imports_pycuda_late, "convnet/device.py", "from pycuda import driver"),
    (foundation_imports_downwards, "convnet/shapes.py", "from .spec import network"),
    (foundation_imports_downwards, "convnet/spec.py", "from . import backend"),
    (foundation_imports_downwards, "convnet/ops.py", "from convnet.layers import build"),
    (foundation_imports_downwards, "convnet/model.py", "def f():\n    from . import device"),
    (foundation_imports_downwards, "convnet/backend.py", "from . import device"),
    (data_stands_alone, "convnet/data/folder.py", "from convnet.backend import Device"),
    (data_stands_alone, "convnet/data/folder.py", "from .. import model"),
    (data_stands_alone, "convnet/data/folder.py", "import torch"),
    (nothing_imports_the_commands, "convnet/train.py", "from .cli import train"),
    (only_declared_dependencies, "convnet/train.py", "import torch.nn"),
    (no_code_from_data, "convnet/checkpoint.py", "import pickle\npickle.load(file)"),
    (no_code_from_data, "convnet/checkpoint.py", "class Reader(pickle.Unpickler): ..."),
    (no_code_from_data, "convnet/config.py", "eval(text)"),
    (no_code_from_data, "convnet/config.py", "yaml.load(text)"),
    (no_code_from_data, "convnet/data/cifar.py", "archive.extractall(folder)"),
    (no_code_from_data, "convnet/data/cifar.py", "np.load(file, allow_pickle=True)"),
    (no_code_from_data, "tools/cubins.py", "def f():\n    builtins.exec(text)"),
    (no_code_from_data, "benchmarks/report.py", "from pickle import loads"),
    (no_network_and_no_shell, "convnet/train.py", "import urllib.request"),
    (no_network_and_no_shell, "convnet/data/store.py", "def f():\n    from http import client"),
    (no_network_and_no_shell, "convnet/journal.py", "import shelve"),
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


def test_foundation_names_real_modules():
    assert all((ROOT / "convnet" / f"{name}.py").exists() for name in FOUNDATION)


# ---- rules for C++ and CUDA: (path relative to src, text) -> complaints ----


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def includes(text: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.MULTILINE)


def hardware_only_in_arch(path: str, text: str) -> Iterator[str]:
    if not path.startswith(("kernels/arch/", "kernels/emu/")):
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


def bindings_see_plain_headers(path: str, text: str) -> Iterator[str]:
    if path.startswith("bindings/"):
        allowed = r"\.\./kernels/\w+\.hpp|\w+\.hpp|pybind11/\w+\.h|\w+"
        own = {
            "bindings/emulator.cpp": {"../kernels/emu/launch.hpp"},
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
