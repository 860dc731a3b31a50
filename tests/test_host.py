"""The host devices: put-off work, events, guard regions, poison, memory. Kernels here are plain functions."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from convnet import host
from convnet.backend import DeviceError, open_device, open_devices
from convnet.host import HostDevice


def floats(address: int, first: int, count: int):
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
