"""The host devices: put-off work, events, guard regions, poison, memory. Kernels here are plain functions."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from convnet.devices import host
from convnet.devices.host import HostDevice
from convnet.devices.opening import open_device, open_devices
from convnet.devices.protocol import DeviceError


def floats(address: int | np.ndarray, first: int, count: int):
    """The floats that a kernel is given: by their address, or as they are on "cpu"."""
    if isinstance(address, np.ndarray):
        return address.reshape(-1)[first : first + count]
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address + 4 * first))


def add_one(x: int, count: int, stream: int) -> None:
    with np.errstate(invalid="ignore"):  # guards hold a signalling NaN
        floats(x, 0, count)[...] += 1


@pytest.fixture
def pair():
    """Two emulated devices without the emulator's kernels."""
    devices = [HostDevice("emu", index, SimpleNamespace()) for index in range(2)]
    yield devices
    for device in devices:
        device.close()


def zeros(stream, count: int = 4):
    array = stream.device.empty((count,))
    stream.upload(array, np.zeros(count, np.float32))
    return array


def test_fresh_memory_is_poisoned(pair):
    assert np.isnan(pair[0].empty((3, 5)).download()).all()
    assert (pair[0].empty((7,), np.int32).download() == -1).all()


def test_work_is_put_off_until_somebody_looks(pair):
    stream = pair[0].stream()
    x = zeros(stream)
    stream.launch(add_one, x, 4)
    assert np.isnan(x.values).all(), "work ran although nobody waited for it"
    np.testing.assert_array_equal(x.download(), np.ones(4))


def test_uploaded_values_may_be_reused_at_once(pair):
    stream, values = pair[0].stream(), np.arange(4, dtype=np.float32)
    x = pair[0].empty((4,))
    stream.upload(x, values)
    values[:] = -1
    np.testing.assert_array_equal(x.download(), [0, 1, 2, 3])


def results_over_seeds(run) -> set:
    found = set()
    for seed in range(20):
        host.seed_order(seed)
        found.add(run())
    return found


def test_without_an_event_the_order_is_open(pair):
    """A missing wait shows: the copy sometimes runs before the kernel whose result it fetches."""

    def run(wait: bool):
        producer, consumer = pair[0].stream(), pair[1].stream()
        x, y = zeros(producer), zeros(consumer)
        producer.launch(add_one, x, 4)
        done = producer.record()
        if wait:
            consumer.wait(done)
        consumer.copy(y, x)
        return y.download()[0].item()

    assert results_over_seeds(lambda: run(wait=True)) == {1.0}
    assert {0.0, 1.0} <= {value for value in results_over_seeds(lambda: run(wait=False)) if value == value}


def test_streams_keep_their_own_order(pair):
    def run():
        streams = [pair[0].stream() for _ in range(3)]
        order: list[tuple[int, int]] = []
        for step in range(4):
            for index, stream in enumerate(streams):
                stream.launch(lambda i, s, _: order.append((i, s)), index, step)
        pair[0].synchronize()
        assert all([s for i, s in order if i == index] == [0, 1, 2, 3] for index in range(3))
        return tuple(order)

    assert len(results_over_seeds(run)) > 10
    host.seed_order(3)
    first = run()
    host.seed_order(3)
    assert run() == first


def test_an_event_holds_back_later_work_only(pair):
    a, b = pair[0].stream(), pair[0].stream()
    order: list[str] = []

    def note(stream, what: str) -> None:
        stream.launch(lambda text, _: order.append(text), what)

    def run():
        order.clear()
        note(b, "before")
        note(a, "first")
        event = a.record()
        b.wait(event)
        note(b, "after")
        pair[0].synchronize()
        assert order.index("after") > order.index("first")
        return tuple(order)

    assert results_over_seeds(run) == {("before", "first", "after"), ("first", "before", "after")}


def test_streams_that_wait_for_each_other_are_reported(pair):
    a, b = pair[0].stream(), pair[1].stream()
    a.wait(host.HostEvent())
    with pytest.raises(DeviceError, match="wait for each other"):
        b.synchronize()
    x = zeros(a)
    np.testing.assert_array_equal(x.download(), np.zeros(4))  # the queues are usable again


@pytest.mark.parametrize("first", [-64, -1])
def test_writing_before_an_array_is_caught(pair, first):
    stream = pair[0].stream()
    x = zeros(stream, 37)
    stream.launch(lambda address, _: floats(address, first, 1).fill(0), x)
    with pytest.raises(DeviceError, match="outside"):
        stream.synchronize()


@pytest.mark.parametrize("count", [1, 16, 37, 64, 1000])
@pytest.mark.parametrize("beyond", [0, 1, 15, 63])
def test_writing_behind_an_array_is_caught(pair, count, beyond):
    """From the very first element behind it on."""
    stream = pair[0].stream()
    x = zeros(stream, count)
    stream.launch(lambda address, _: floats(address, count + beyond, 1).fill(0), x)
    with pytest.raises(DeviceError, match="outside"):
        stream.synchronize()


def test_one_byte_too_many_is_caught(pair):
    stream = pair[0].stream()
    x = pair[0].empty((13,), np.uint8)
    stream.launch(lambda address, _: ctypes.memset(address, 0, 14), x)
    with pytest.raises(DeviceError, match="outside"):
        stream.synchronize()


def test_writing_through_a_view_is_caught_too(pair):
    stream = pair[0].stream()
    x = zeros(stream, 20)
    stream.launch(add_one, x.view((10,), 10), 10)
    np.testing.assert_array_equal(x.download(), [0] * 10 + [1] * 10)
    stream.launch(add_one, x.view((10,), 10), 11)
    with pytest.raises(DeviceError, match="outside"):
        stream.synchronize()


def test_views_share_memory(pair):
    stream = pair[0].stream()
    x = pair[0].empty((4, 6))
    stream.upload(x, np.arange(24, dtype=np.float32).reshape(4, 6))
    np.testing.assert_array_equal(x.view((2, 3), 6).download(), [[6, 7, 8], [9, 10, 11]])
    bits = x.view((24,), dtype=np.uint32).download()
    np.testing.assert_array_equal(bits.view(np.float32), np.arange(24))


def test_memory_is_counted_and_given_back(pair):
    before = pair[0].allocated
    x, y = pair[0].empty((1000,)), pair[0].empty((10,), np.uint8)
    assert pair[0].allocated == before + 4010
    view = x.view((5,))
    del x
    assert pair[0].allocated == before + 4010
    del view, y
    assert pair[0].allocated == before


@pytest.mark.parametrize("name", ["cpu", "emu", "emu:3"])
def test_lanes(name):
    device = HostDevice(name.partition(":")[0], 0, SimpleNamespace())
    lanes = [device.lanes(N) for N in (1, 8, 9, 63, 64, 65, 128)]
    assert lanes == ([1, 8, 9, 63, 64, 65, 128] if name == "cpu" else [8, 8, 16, 64, 64, 64, 64])
    device.close()


def test_cpu_runs_at_once():
    device = open_device("cpu")
    stream = device.stream()
    x = device.empty((3,))
    stream.upload(x, np.ones(3, np.float32))
    np.testing.assert_array_equal(x.values, np.ones(3))
    device.close()
    device.close()


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", "emu:-1", "", "cuda:0:1", "CPU"])
def test_wrong_names(name):
    with pytest.raises(ValueError, match="device must be"):
        open_device(name)


@pytest.mark.parametrize("names", ["cpu,cpu", "emu,emu:0", "cpu,emu:0"])
def test_wrong_lists(names):
    with pytest.raises(ValueError, match=r"differ|one kind"):
        open_devices(names)


def test_a_device_that_is_not_there():
    with pytest.raises(DeviceError):
        open_device("cuda:99")


# ---- graphs


@pytest.fixture(params=["cpu", "emu"])
def one(request):
    device = HostDevice(request.param, 0, SimpleNamespace())
    yield device
    device.close()


def test_captured_work_runs_at_every_launch_and_only_then(one):
    stream = one.stream()
    x, y = zeros(stream), zeros(stream)
    with stream.capture() as graph:
        stream.launch(add_one, x, 4)
        stream.copy(y, x)
    np.testing.assert_array_equal(x.download(), np.zeros(4))
    for _ in range(2):
        graph.launch()
        stream.upload(x, x.download() * 10)
    graph.launch()
    np.testing.assert_array_equal(y.download(), np.full(4, 111.0))
    np.testing.assert_array_equal(x.download(), np.full(4, 111.0))


@pytest.mark.parametrize("wait", [True, False])
def test_a_missing_wait_in_a_graph_is_caught(pair, wait):
    """Two devices that need each other's results, in both directions: right in all orders, or seen to be wrong."""

    def run():
        first, second = pair[0].stream(), pair[1].stream()
        x, y, copy_of_x, copy_of_y = zeros(first), zeros(second), zeros(second), zeros(first)
        with first.capture([second]) as graph:
            first.launch(add_one, x, 4)
            second.launch(add_one, y, 4)
            done = [first.record(), second.record()]
            first.wait(done[1])
            if wait:
                second.wait(done[0])
            first.copy(copy_of_y, y)
            second.copy(copy_of_x, x)
            read = [first.record(), second.record()]  # nobody changes what the other still copies
            first.wait(read[1])
            second.wait(read[0])
        for _ in range(3):
            graph.launch()
        return copy_of_x.download()[0].item(), copy_of_y.download()[0].item()

    assert results_over_seeds(run) == ({(3.0, 3.0)} if wait else {(2.0, 3.0), (3.0, 3.0)})


def test_a_launch_comes_behind_what_was_queued_and_in_front_of_what_comes(pair):
    """On all of its streams, not only the first; and so do launches among themselves."""
    streams = [pair[0].stream(), pair[0].stream(), pair[1].stream()]
    order: list[str] = []

    def note(stream, what: str) -> None:
        stream.launch(lambda text, _: order.append(text), what)

    with streams[0].capture(streams[1:]) as graph:
        for stream in streams:
            note(stream, "graph")

    def run():
        order.clear()
        for stream in streams:
            note(stream, "before")
        graph.launch()
        for stream in streams:
            note(stream, "between")
        graph.launch()
        for stream in streams:
            note(stream, "after")
        pair[0].synchronize()
        return tuple(order)

    expected = [word for word in ("before", "graph", "between", "graph", "after") for _ in streams]
    assert results_over_seeds(run) == {tuple(expected)}


def test_every_launch_has_its_own_events(pair):
    """An event of the first launch does not let the second go on."""
    producer, consumer = pair[0].stream(), pair[0].stream()
    x, seen = zeros(producer), []
    with producer.capture([consumer]) as graph:
        producer.launch(add_one, x, 4)
        consumer.wait(producer.record())
        consumer.launch(lambda address, _: seen.append(floats(address, 0, 1).item()), x)

    def run():
        producer.upload(x, np.zeros(4, np.float32))
        seen.clear()
        graph.launch()
        graph.launch()
        producer.synchronize()
        return tuple(seen)

    assert results_over_seeds(run) == {(1.0, 2.0)}


FORBIDDEN = {
    "upload": lambda stream, x, outside: stream.upload(x, np.zeros(4, np.float32)),
    "fetch": lambda stream, x, outside: stream.fetch(x),
    "download": lambda stream, x, outside: x.download(),
    "synchronize": lambda stream, x, outside: stream.synchronize(),
    "synchronize the device": lambda stream, x, outside: x.device.synchronize(),
    "allocate": lambda stream, x, outside: x.device.empty((4,)),
    "use another stream": lambda stream, x, outside: x.device.stream().launch(add_one, x, 4),
    "record on another stream": lambda stream, x, outside: x.device.stream().record(),
    "wait for an event from outside": lambda stream, x, outside: stream.wait(outside),
    "capture": lambda stream, x, outside: stream.capture().__enter__(),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_cannot_be_captured(one, what):
    stream = one.stream()
    x = zeros(stream)
    outside = stream.record()
    begun = []

    def capture() -> None:
        with stream.capture() as graph:
            begun.append(graph)
            stream.launch(add_one, x, 4)
            FORBIDDEN[what](stream, x, outside)

    with pytest.raises(RuntimeError, match="captured"):
        capture()
    np.testing.assert_array_equal(x.download(), np.zeros(4))  # everything is as before
    with pytest.raises(RuntimeError, match="its capture has not ended, or failed"):
        begun[0].launch()
    with stream.capture() as graph:
        stream.launch(add_one, x, 4)
    graph.launch()
    np.testing.assert_array_equal(x.download(), np.ones(4))


def test_captures_do_not_mix(one):
    stream = one.stream()
    with stream.capture() as first:
        inside = stream.record()
        with pytest.raises(RuntimeError, match="has not ended"):
            first.launch()
    with pytest.raises(RuntimeError, match="same capture alone"):
        stream.wait(inside)
    with stream.capture():
        with pytest.raises(RuntimeError, match="same capture alone"):
            stream.wait(inside)
        with pytest.raises(RuntimeError, match="a graph cannot be launched while work is captured"):
            first.launch()


# ---- fetching and counting


def test_fetched_values_are_those_of_that_moment(one):
    stream = one.stream()
    x = zeros(stream)
    stream.launch(add_one, x, 4)
    fetched = stream.fetch(x)
    stream.launch(add_one, x, 4)
    for _ in range(2):
        np.testing.assert_array_equal(fetched.get(), np.ones(4))
    np.testing.assert_array_equal(x.download(), np.full(4, 2.0))


def test_fetching_waits_for_nothing_behind_it(pair):
    stream = pair[0].stream()
    x = zeros(stream)
    fetched = stream.fetch(x)
    stream.launch(add_one, x, 4)
    np.testing.assert_array_equal(fetched.get(), np.zeros(4))
    np.testing.assert_array_equal(x.values, np.zeros(4))


def test_allocations_are_counted_for_ever(one):
    x, y = one.empty((3,)), one.empty((5,))
    assert one.allocations == 2
    view = x.view((2,))
    del x, y
    one.empty((1,))
    assert one.allocations == 3
    assert view.size == 2
