"""What all tests share: the devices they run on, fixed seeds, no network, and a summary of what ran where."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: one thread of BLAS for each, before NumPy starts them
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

CHECKOUT = Path(__file__).resolve().parents[1]
if not any((CHECKOUT / "convnet" / "kernels" / f"_emu{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
    # "python -m pytest" puts the checkout in front, which holds no compiled modules: the installed package is meant.
    # Where it holds some, they were built in place to be used.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != CHECKOUT]

import numpy as np
import programs
import pytest

if find_spec("convnet") is None:
    pytest.exit("convnet is not installed: pip install '.[test]'", returncode=4)

from convnet.devices import host, opening
from convnet.devices import protocol as backend
from convnet.kernels.precision import activation_dtype
from convnet.ops.layout import pack_activations, to_bf16, to_float32, unpack_activations

# A shell starts background jobs with SIGINT ignored, and nohup all that it starts with SIGHUP, which the programs under
# test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

DEVICES = ("cpu", "emu", "cuda")
ran: Counter[str] = Counter()
worst: dict[tuple[str, str], tuple[float, str]] = {}


def missing(kind: str, count: int = 1) -> str | None:
    """Why tests cannot run on ``count`` devices of this kind, or None."""
    if kind == "cpu":
        return None
    try:
        for index in range(count):
            opening.open_device(f"{kind}:{index}").close()
    except backend.DeviceError as error:
        return str(error)
    return None


reasons = {kind: missing(kind) for kind in DEVICES}


def parameters(item) -> dict:
    return item.callspec.params if hasattr(item, "callspec") else {}


def device_kind(item) -> str | None:
    chosen = parameters(item).get("arithmetic", parameters(item).get("tensor_cores"))
    return chosen.device if chosen else parameters(item).get("device")


def precision_of(item) -> str | None:
    chosen = parameters(item).get("arithmetic", parameters(item).get("tensor_cores"))
    return chosen.precision if chosen else parameters(item).get("precision")


def has_precision(item) -> bool:
    """The kernels of "cpu" compute in float32 alone."""
    return parameters(item).get("device") != "cpu" or parameters(item).get("precision", "fp32") == "fp32"


def pytest_configure():
    if reasons["emu"]:
        raise pytest.UsageError(f"{reasons['emu'].partition(' (')[0]}, and half of all tests need it: pip install .")


def pytest_addoption(parser):
    parser.addoption(
        "--order-seed", type=int, default=0, metavar="N", help="of the orders in which emulated threads and streams run"
    )
    parser.addoption(
        "--thin",
        type=int,
        default=1,
        metavar="N",
        help="of a function's cases run each N-th, the first included",
    )
    parser.addoption("--kills", type=int, metavar="N", help="of a training run: a campaign, see docs/reliability.md")


def thinned(items, every: int):
    """Each ``every``-th case of a function; of every device and precision there are some."""
    seen: Counter[tuple] = Counter()
    for item in items:
        kind = item.path, item.originalname, device_kind(item), precision_of(item)
        if seen[kind] % every == 0:
            yield item
        seen[kind] += 1


def pytest_collection_modifyitems(config, items):
    items[:] = thinned(filter(has_precision, items), config.getoption("thin"))
    for item in items:
        kind = device_kind(item)
        count = 2 if item.get_closest_marker("two_gpu") else 1
        if kind == "cuda" or item.get_closest_marker("gpu") or count == 2:
            item.add_marker(pytest.mark.gpu)
            reason = reasons["cuda"] if count == 1 else missing("cuda", 2)
        else:
            reason = reasons.get(kind) if kind else None
        if reason:
            reason = reason.partition(" (")[0]  # in full in the summary, once
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_logreport(report):
    """Collects from reports, not from the tests, so that it also works where those run in other processes (-n)."""
    if report.when != "call":
        return
    if report.passed and (device := dict(report.user_properties).get("device")):
        ran[device] += 1
    for name, value in report.user_properties:
        if name == "error / limit":
            family, device, ratio = value
            worst[family, device] = max(worst.get((family, device), (0.0, "")), (ratio, report.nodeid.split("::")[-1]))


def pytest_terminal_summary(terminalreporter):
    counts = []
    for kind in DEVICES:
        note = " (no CUDA device)" if reasons[kind] else ""
        counts.append(f"{kind} {ran[kind]}{note}")
    terminalreporter.write_line("tests per device: " + ", ".join(counts))
    for reason in filter(None, reasons.values()):
        terminalreporter.write_line(reason)
    if worst:
        terminalreporter.section("largest error / limit")
        for (family, device), (value, test) in sorted(worst.items()):
            terminalreporter.write_line(f"{family:28} {device:5} {value:.3f}  {test}")


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """The name of a device; the test runs once for each kind."""
    request.node.user_properties.append(("device", request.param))
    return request.param


@dataclass(frozen=True)
class Arithmetic:
    """A device and what its products are made of. The emulator plays ``architecture``, where kernels depend on it."""

    device: str
    precision: str
    architecture: int | None = None

    def __str__(self) -> str:
        return f"{self.device}-{self.precision}" + (f"-sm{self.architecture}" if self.architecture else "")


TENSOR_CORES = [
    Arithmetic("emu", "tf32", 80),
    Arithmetic("emu", "tf32", 90),
    Arithmetic("emu", "bf16", 80),
    Arithmetic("emu", "bf16", 90),
    Arithmetic("cuda", "tf32"),
    Arithmetic("cuda", "bf16"),
]


def _played(request) -> Iterator[Arithmetic]:
    arithmetic = request.param
    request.node.user_properties.append(("device", arithmetic.device))
    if arithmetic.architecture is None:
        yield arithmetic
        return
    from convnet.kernels import _emu

    _emu.set_architecture(arithmetic.architecture)
    yield arithmetic
    _emu.set_architecture(90)


@pytest.fixture(params=TENSOR_CORES, ids=str)
def tensor_cores(request):
    """A device and a precision of its tensor cores; the test runs once for each."""
    yield from _played(request)


@pytest.fixture(params=[*(Arithmetic(device, "fp32") for device in DEVICES), *TENSOR_CORES], ids=str)
def arithmetic(request):
    """A device and a precision; the test runs once for each."""
    yield from _played(request)


@pytest.fixture(params=["fp32", "bf16"])
def precision(request) -> str:
    """What a device keeps activations in; the test runs once for each."""
    return request.param


@pytest.fixture
def within(request):
    """Fails where error / limit exceeds 1, and keeps the largest of each family for the summary."""

    def check(family: str, ratio: float) -> None:
        device = dict(request.node.user_properties).get("device", "cpu")
        if parameters(request.node).get("precision") == "bf16":
            family += " bf16"
        request.node.user_properties.append(("error / limit", (family, device, float(ratio))))
        assert ratio <= 1, f"{family}: the error is {ratio:.3g} times the limit"

    return check


class Machine:
    """A device for tests that call ``convnet.ops.ops`` themselves."""

    def __init__(self, name: str):
        self.device = opening.open_device(name)
        self.stream = self.device.stream()

    def put(self, values):
        array = self.device.empty(values.shape, values.dtype)
        self.stream.upload(array, np.ascontiguousarray(values))
        return array

    def put_rounded(self, values, precision: str = "fp32"):
        """Activations of any shape."""
        return self.put(to_bf16(values) if precision == "bf16" else values)

    def put_images(self, values, precision: str = "fp32"):
        return self.put_rounded(pack_activations(values, self.device.lanes(len(values))), precision)

    def images(self, array, n: int):
        return to_float32(unpack_activations(array.download(), n))

    def empty(self, shape, dtype=np.float32):
        """Memory full of NaN (or -1), on every kind of device."""
        array = self.device.empty(shape, dtype)
        poison = np.full(array.nbytes, 0xFF, np.uint8).view(array.dtype).reshape(array.shape)
        self.stream.upload(array, poison)
        return array

    def activations(self, shape, precision: str):
        return self.empty(shape, activation_dtype(precision))

    def workspace(self, nbytes: int):
        return self.empty((nbytes // 4,)) if nbytes else None

    def padded(self, shape):
        """A problem shape made for N images as this device lays it out."""
        lanes = self.device.lanes(shape.N)
        return replace(shape, N=backend.padded(shape.N, lanes), lanes=lanes)


@pytest.fixture
def machine(device):
    opened = Machine(device)
    yield opened
    opened.device.close()


@pytest.fixture
def images() -> str:
    """A folder of a few small images, the same for all tests."""
    import runs

    return runs.shared_images()


@pytest.fixture
def straight() -> Path:
    """The folder of a run on them that nothing disturbed."""
    import runs

    return runs.straight_run()


@pytest.fixture(autouse=True)
def _seeds(request):
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (for code under test that should not, but might, use the global generator)
    order = request.config.getoption("order_seed")
    host.seed_order(order)
    if not reasons["emu"]:
        from convnet.kernels import _emu

        _emu.seed_order(order)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing under test may reach for the network; sockets inside the machine (between processes) are left alone."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not (
            address[0] == "::1" or address[0].startswith("127.")
        ):
            raise RuntimeError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory) -> list[Path]:
    """The emulator's object files, for programs of tests/emu."""
    if programs.COMPILER is None:
        pytest.skip("g++ is not installed")
    return programs.compile_objects(tmp_path_factory.mktemp("emulator"), programs.EMULATOR, *programs.PLAIN)


@pytest.fixture(scope="session")
def checked_emulator(tmp_path_factory) -> list[Path]:
    """The same with AddressSanitizer and UBSan."""
    if programs.COMPILER is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("checked")
    (folder / "empty.cpp").write_text("int main() {}")
    command = [programs.COMPILER, *programs.CHECKED, folder / "empty.cpp", "-o", folder / "empty"]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("g++ has no AddressSanitizer here")
    return programs.compile_objects(folder, programs.EMULATOR, *programs.CHECKED)
