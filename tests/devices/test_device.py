"""The CUDA device layer against a stand-in driver: contexts, memory, copies between devices, errors. Needs no GPU."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_cuda import Machine, install

import convnet
from convnet.devices import cuda as device
from convnet.devices import opening
from convnet.kernels import _emu as emu


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    """Makes the process see a machine with GPUs."""

    def make(**options: Any) -> Machine:
        return install(monkeypatch, Machine(**options), emu)

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
    first, second = opening.open_devices("cuda:0,cuda:1")
    values = np.arange(12, dtype=np.float32)
    source, target = first.empty((12,)), second.empty((12,))
    first.stream().upload(source, values)
    second.stream().copy(target, source)
    np.testing.assert_array_equal(target.download(), values)
    assert not fake.enabled
    assert "go through the host" in caplog.text


def test_memory_is_counted_and_freed(machine: Callable[..., Machine]) -> None:
    fake = machine(gpus=1)
    gpu = opening.open_device("cuda:0")
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
    gpu = opening.open_device("cuda:0")
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
        opening.open_device("cuda:0")


@pytest.mark.parametrize(("capability", "usable"), [((8, 0), 1), ((8, 6), 1), ((9, 0), 1), ((9, 1), 0), ((10, 0), 0)])
def test_which_gpus_machine_code_runs_on(
    machine: Callable[..., Machine], capability: tuple[int, int], usable: int
) -> None:
    machine(gpus=1, capability=capability)
    assert len(device.names()) == usable


def test_an_unknown_device_index(machine: Callable[..., Machine]) -> None:
    machine(gpus=1)
    with pytest.raises(convnet.DeviceError, match="there are 1 CUDA devices"):
        opening.open_device("cuda:3")


def test_the_stand_in_is_strict(machine: Callable[..., Machine]) -> None:
    """A device layer that forgot the context, or peer access, would not get through."""
    fake = machine()
    first, second = opening.open_devices("cuda:0,cuda:1")
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


# ---- graphs


@pytest.fixture
def pair(machine: Callable[..., Machine]) -> tuple[Machine, list[Any], Any]:
    """Two GPUs, a stream on each, and a function that makes an array of ones on a stream's device."""
    fake = machine()
    streams = [gpu.stream() for gpu in opening.open_devices("cuda:0,cuda:1")]

    def ones(stream: Any, count: int = 4) -> Any:
        array = stream.device.empty((count,))
        stream.upload(array, np.ones(count, np.float32))
        return array

    return fake, streams, ones


def double(stream: Any, x: Any) -> None:
    stream.launch(stream.device.kernels.add, x.size, "fp32", x, x, x)


@pytest.mark.parametrize("wait", [True, False])
def test_one_graph_over_two_gpus(pair: Any, wait: bool) -> None:
    """Both use the other's result: a graph that lacks a wait runs in the wrong order sooner or later."""
    fake, (first, second), ones = pair
    x, y, copy_of_x, copy_of_y = ones(first), ones(second), ones(second), ones(first)
    with first.capture([second]) as graph:
        double(first, x)
        double(second, y)
        done = [first.record(), second.record()]
        first.wait(done[1])
        if wait:
            second.wait(done[0])
        first.copy(copy_of_y, y)
        second.copy(copy_of_x, x)
    np.testing.assert_array_equal(x.download(), 1)  # nothing has run
    found = set()
    for seed in range(20):
        fake.order.seed(seed)
        for array, stream in ((x, first), (y, second)):
            stream.upload(array, np.ones(4, np.float32))
        graph.launch()
        graph.launch()
        found.add((copy_of_x.download()[0].item(), copy_of_y.download()[0].item()))
    assert found == ({(4.0, 4.0)} if wait else {(2.0, 4.0), (4.0, 4.0)})
    assert not fake.stack


def test_a_graph_keeps_its_memory(pair: Any) -> None:
    fake, (first, second), ones = pair
    x, y = ones(first), ones(second)
    with first.capture([second]) as graph:
        double(first, x)
        second.wait(first.record())
        second.copy(y, x)
    del x
    gc.collect()
    graph.launch()
    np.testing.assert_array_equal(y.download(), 2)
    del graph
    gc.collect()
    assert len(fake.memory) == 1


FORBIDDEN = {
    "upload": lambda stream, x, outside: stream.upload(x, np.zeros(4, np.float32)),
    "fetch": lambda stream, x, outside: stream.fetch(x),
    "download": lambda stream, x, outside: x.download(),
    "synchronize": lambda stream, x, outside: stream.synchronize(),
    "synchronize the device": lambda stream, x, outside: x.device.synchronize(),
    "allocate": lambda stream, x, outside: x.device.empty((4,)),
    "use another stream": lambda stream, x, outside: double(x.device.stream(), x),
    "copy on another stream": lambda stream, x, outside: x.device.stream().copy(x, x),
    "record on another stream": lambda stream, x, outside: x.device.stream().record(),
    "wait for an event from outside": lambda stream, x, outside: stream.wait(outside),
    "capture": lambda stream, x, outside: stream.capture().__enter__(),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_cannot_be_captured(pair: Any, what: str) -> None:
    """It raises without spoiling anything: the streams are usable, and so is the next capture."""
    _, (first, second), ones = pair
    x = ones(first)
    outside = first.record()

    def capture() -> None:
        with first.capture([second]):
            double(first, x)
            FORBIDDEN[what](first, x, outside)

    with pytest.raises(RuntimeError, match="captured"):
        capture()
    with first.capture([second]) as graph:
        double(first, x)
    graph.launch()
    double(first, x)
    np.testing.assert_array_equal(x.download(), 4)


def test_a_kernel_that_fails_ends_the_capture(pair: Any) -> None:
    _, (first, second), ones = pair
    x = ones(first)

    def refuse(*_: Any) -> None:
        raise ValueError("add: no such shape")

    def capture() -> None:
        with first.capture([second]):
            first.launch(refuse, x)

    with pytest.raises(ValueError, match="no such shape"):
        capture()
    double(first, x)
    np.testing.assert_array_equal(x.download(), 2)


def test_exchanges_through_the_host_cannot_be_captured(machine: Callable[..., Machine]) -> None:
    machine(peers=False)
    first, second = (gpu.stream() for gpu in opening.open_devices("cuda:0,cuda:1"))
    with pytest.raises(convnet.DeviceError, match="queue every step in the ordinary way"):
        first.capture([second]).__enter__()
    with first.capture():
        pass


def test_the_stand_in_is_strict_about_captures(pair: Any) -> None:
    """What CUDA says to a device layer that forbids nothing itself."""
    _, (first, second), ones = pair
    driver, kernels = sys.modules["pycuda.driver"], first.device.kernels
    x, y = ones(first), ones(second)

    def spoilt(act: Callable[[Any], object]) -> None:
        """``act`` on a stream under capture fails, and so does the capture."""
        with first.device.current():
            kernels.begin_capture(first.stream.handle)
            with pytest.raises(Exception, match=r"not permitted|uncaptured work"):
                act(first.stream)
            with pytest.raises(RuntimeError, match="previous error"):
                kernels.end_capture(first.stream.handle)

    with first.device.current():
        before, inside = driver.Event(), driver.Event()
        before.record(first.stream)
    spoilt(lambda stream: stream.synchronize())
    spoilt(lambda stream: first.device.context.synchronize())
    spoilt(lambda stream: driver.mem_alloc(4))
    spoilt(lambda stream: driver.pagelocked_empty(4, np.uint8))
    spoilt(lambda stream: driver.memcpy_htod_async(x.handle, np.zeros(4, np.float32), stream))
    spoilt(lambda stream: driver.memcpy_dtoh(np.zeros(4, np.float32), x.handle))
    spoilt(lambda stream: stream.wait_for_event(before))
    spoilt(lambda stream: inside.record(stream) or inside.query())
    spoilt(lambda stream: inside.record(stream) or inside.synchronize())
    with first.device.current():
        kernels.begin_capture(first.stream.handle)
        inside.record(first.stream)
        with second.device.current():
            second.stream.wait_for_event(inside)
            kernels.add(4, "fp32", y.handle, y.handle, y.handle, second.stream.handle)
        with pytest.raises(RuntimeError, match="unjoined"):
            kernels.end_capture(first.stream.handle)
        with pytest.raises(RuntimeError, match="not initiated"):
            kernels.end_capture(first.stream.handle)
        with pytest.raises(Exception, match="last recorded in a capturing stream"):
            first.stream.wait_for_event(inside)


# ---- what steps cost the host


def test_steps_allocate_nothing_after_the_first(pair: Any) -> None:
    fake, (first, second), ones = pair
    x, y, control = ones(first), ones(second), first.device.empty((8,), np.uint32)
    with first.capture([second]) as graph:
        double(first, x)
        second.wait(first.record())
        second.copy(y, x)
    events = sys.modules["pycuda.driver"].Event.made  # type: ignore[attr-defined]

    def step(number: int) -> Any:
        first.upload(control, np.full(8, number, np.uint32))
        graph.launch()
        return second.fetch(y)

    step(0).get()
    before = first.device.allocations, second.device.allocations, len(fake.memory), len(fake.pinned), len(events)
    for number in range(1, 30):
        assert step(number).get()[0] == 2.0 ** (number + 1)
    after = first.device.allocations, second.device.allocations, len(fake.memory), len(fake.pinned), len(events)
    assert after == before
    np.testing.assert_array_equal(control.download(), 29)


def test_fetches_do_not_share_memory(pair: Any) -> None:
    _, (stream, _), ones = pair
    x = ones(stream)
    for expected in (1, 4):
        fetches = [stream.fetch(x)]
        double(stream, x)
        fetches.append(stream.fetch(x))
        double(stream, x)
        assert [fetch.get()[0] for fetch in fetches] == [expected, 2 * expected]


def test_uploads_that_are_under_way_keep_their_memory(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next upload takes other memory, until there is much of it: then it waits for the first."""
    fake, (stream, _), _ = pair
    monkeypatch.setattr(device, "STAGED_BYTES", 3 * 4096)
    monkeypatch.setattr(sys.modules["pycuda.driver"].Event, "query", lambda self: False)  # type: ignore[attr-defined]
    x = stream.device.empty((1000,))
    before = stream.device.allocations
    for _ in range(10):
        stream.upload(x, np.zeros(1000, np.float32))
    assert stream.device.allocations == before + 3
    assert len(fake.pinned) == 3


def test_large_uploads_go_in_pieces(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, (stream, _), _ = pair
    monkeypatch.setattr(device, "PIECE_BYTES", 4096)
    values = np.arange(12_345, dtype=np.float32).reshape(3, 5, -1)[:, ::-1]
    x = stream.device.empty(values.shape)
    stream.upload(x, values)
    np.testing.assert_array_equal(x.download(), values)
    assert max(memory.nbytes for memory in fake.pinned) == 4096


def test_contexts_are_switched_only_where_they_change(pair: Any) -> None:
    fake, (first, second), ones = pair
    x = ones(first)
    before = fake.pushes
    with first.device.current():
        double(first, x)
        first.upload(x, np.ones(4, np.float32))
        assert fake.pushes == before + 1
        second.record()
        assert fake.pushes == before + 2
        double(first, x)
        assert fake.pushes == before + 2
    assert not fake.stack


def test_driver_errors_say_which_device(pair: Any) -> None:
    fake, (_, second), _ = pair
    with pytest.raises(convnet.DeviceError, match="cuda:1: invalid address"), second.device.current():
        fake.owner(5)
    assert not fake.stack


@pytest.mark.skipif(device.unavailable() is None, reason="this machine has a usable GPU")
def test_without_a_gpu_the_reason_and_the_remedy_are_told() -> None:
    with pytest.raises(convnet.DeviceError, match=r"pip install|nvidia-smi|no GPU|no NVIDIA driver"):
        opening.open_device("cuda:0")


def test_pycuda_and_driver_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "convnet.kernels._gpu", emu)
    monkeypatch.setattr(convnet, "_gpu", emu, raising=False)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    for load, text in ((missing, "no NVIDIA driver on this machine"), (lambda: 13000, "run: pip install pycuda")):
        monkeypatch.setattr(device, "_load_driver_library", load)
        device._driver.cache_clear()
        with pytest.raises(convnet.DeviceError, match=text):
            opening.open_device("cuda:0")
    device._driver.cache_clear()
