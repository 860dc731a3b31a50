"""The CUDA device layer against a stand-in driver: contexts, memory, copies between devices, errors. Needs no GPU."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_cuda import Machine, modules

import convnet
from convnet import backend, device

emu = pytest.importorskip("convnet._emu", reason="the emulator is not built")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    """Makes the process see a machine with GPUs."""

    def make(**options: Any) -> Machine:
        fake = Machine(**options)
        for name, module in modules(fake, emu).items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(device, "_load_driver_library", lambda: None)
        monkeypatch.setattr(convnet, "_gpu", sys.modules["convnet._gpu"], raising=False)
        device._driver.cache_clear()
        return fake

    yield make
    gc.collect()
    device._driver.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_gpus_compute_what_two_emulators_do(machine: Callable[..., Machine], precision: str) -> None:
    fake = machine()
    images = np.random.default_rng(0).normal(size=(8, 3, 64, 64)).astype(np.float32)
    labels = np.arange(8) % 10
    results = []
    for names in ("cuda:0,cuda:1", "emu:0,emu:1"):
        with convnet.Network("alexnet-tiny", names, batch_size=8, precision=precision, width=0.25) as net:
            logits = net.forward(images, train=True)
            loss = net.backward(labels)
            net.step()
            results.append((logits, loss, net.weights(), net.exchanges()))
    (logits, loss, weights, exchanges), expected = results[0], results[1]
    np.testing.assert_array_equal(logits, expected[0])
    assert loss == expected[1]
    assert exchanges == expected[3]
    assert {name for name, _, _ in exchanges} == {"conv3", "fc6", "fc7", "fc8"}
    for name, value in expected[2].items():
        np.testing.assert_array_equal(weights[name], value)
    assert fake.enabled == {(0, 1), (1, 0)}
    assert not fake.stack


@pytest.mark.parametrize(("model", "expected"), [("alexnet-tiny", ["cuda:0", "cuda:1"]), ("alexnet-1gpu", ["cuda:0"])])
def test_auto_takes_a_gpu_per_tower(machine: Callable[..., Machine], model: str, expected: list[str]) -> None:
    machine(gpus=3)
    with convnet.Network(model, devices="auto", batch_size=1, width=0.1, crop=67, num_classes=3) as net:
        assert net.devices == expected


def test_without_peer_access_exchanges_go_through_the_host(
    machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    fake = machine(peers=False)
    first, second = backend.open_devices("cuda:0,cuda:1")
    values = np.arange(12, dtype=np.float32)
    source, target = first.empty((12,)), second.empty((12,))
    first.stream().upload(source, values)
    second.stream().copy(target, source)
    np.testing.assert_array_equal(target.download(), values)
    assert not fake.enabled
    assert "go through the host" in caplog.text


def test_memory_is_counted_and_freed(machine: Callable[..., Machine]) -> None:
    fake = machine(gpus=1)
    gpu = backend.open_device("cuda:0")
    small, large = gpu.empty((10,)), gpu.empty((1 << 19,))
    assert gpu.allocated == 40 + (4 << 19)
    part = large.view((4,), 8)
    del large
    gc.collect()
    gpu.stream().upload(part, np.ones(4, np.float32))
    np.testing.assert_array_equal(part.download(), 1)
    del part, small
    gc.collect()
    assert gpu.allocated == 0
    assert not fake.memory
    assert not fake.stack


def test_out_of_memory_names_the_numbers(machine: Callable[..., Machine]) -> None:
    machine(gpus=1, capacity=50_000_000)
    gpu = backend.open_device("cuda:0")
    kept = gpu.empty((5_000_000,))
    numbers = r"no memory for 40 MB: 30 of 50 MB are free.*holds 20 MB; use a smaller batch"
    with pytest.raises(convnet.DeviceError, match=numbers):
        gpu.empty((10_000_000,))
    assert kept.nbytes == gpu.allocated
    assert gpu.free() == 30_000_000


def test_a_gpu_that_the_kernels_were_not_built_for(machine: Callable[..., Machine]) -> None:
    machine(capability=(7, 5))
    assert device.names() == []
    with pytest.raises(convnet.DeviceError, match="needs kernels for sm_75, built are 80,90a; install again with"):
        backend.open_device("cuda:0")


@pytest.mark.parametrize(("capability", "usable"), [((8, 0), 1), ((8, 6), 1), ((9, 0), 1), ((9, 1), 0), ((10, 0), 0)])
def test_which_gpus_machine_code_runs_on(
    machine: Callable[..., Machine], capability: tuple[int, int], usable: int
) -> None:
    machine(gpus=1, capability=capability)
    assert len(device.names()) == usable


def test_an_unknown_device_index(machine: Callable[..., Machine]) -> None:
    machine(gpus=1)
    with pytest.raises(convnet.DeviceError, match="there are 1 CUDA devices"):
        backend.open_device("cuda:3")


def test_the_stand_in_is_strict(machine: Callable[..., Machine]) -> None:
    """A device layer that forgot the context, or peer access, would not get through."""
    fake = machine()
    first, second = backend.open_devices("cuda:0,cuda:1")
    a, b = first.empty((4,)), second.empty((4,))
    driver = sys.modules["pycuda.driver"]
    with pytest.raises(Exception, match="none is current"):
        driver.mem_alloc(4)  # type: ignore[attr-defined]
    stream = second.stream()
    with second.current(), pytest.raises(Exception, match="peer access is not enabled"):  # type: ignore[attr-defined]
        driver.memcpy_dtod_async(b.handle, a.handle, 16, stream.stream)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="memory of another device"):
        second.stream().launch(second.kernels.relu_forward, 4, "fp32", a, a)
    assert not fake.stack


@pytest.mark.skipif(device.unavailable() is None, reason="this machine has a usable GPU")
def test_without_a_gpu_the_reason_and_the_remedy_are_told() -> None:
    with pytest.raises(convnet.DeviceError, match=r"pip install|nvidia-smi|no GPU|no NVIDIA driver"):
        backend.open_device("cuda:0")


def test_pycuda_and_driver_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "convnet._gpu", emu)
    monkeypatch.setattr(convnet, "_gpu", emu, raising=False)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    for load, text in ((missing, "no NVIDIA driver on this machine"), (lambda: None, "run: pip install pycuda")):
        monkeypatch.setattr(device, "_load_driver_library", load)
        device._driver.cache_clear()
        with pytest.raises(convnet.DeviceError, match=text):
            backend.open_device("cuda:0")
    device._driver.cache_clear()
