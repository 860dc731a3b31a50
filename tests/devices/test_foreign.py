"""Arrays of other libraries, in and out: copies are counted, streams waited for, memory kept alive. On the CPU with
PyTorch's tensors, on GPUs with classes that look like CuPy's and pycuda's on the stand-in driver."""

from __future__ import annotations

import ctypes
import gc
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_cuda import Foreign, Machine, install

import convnet
import convnet.functional as F
from convnet.devices import cuda as device
from convnet.devices import dlpack, opening
from convnet.devices.foreign import seen
from convnet.devices.host import HostDevice
from convnet.kernels import _emu as emu
from convnet.ops import call

TINY = {"model": "alexnet-tiny", "batch_size": 8, "width": 0.25}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with two GPUs."""
    machine = install(monkeypatch, Machine(gpus=2), emu)
    call._open.cache_clear()
    yield machine
    call._open.cache_clear()
    gc.collect()
    device._driver.cache_clear()


class Like:
    """What CuPy's, pycuda's and Numba's arrays have in common: memory of a GPU, and the interface. ``steps`` between
    its values, in values, where there are gaps."""

    version = 3

    def __init__(self, fake: Machine, values: Any, gpu: int = 0, front: int = 0, steps: tuple[int, ...] | None = None):
        values = np.asarray(values)
        self.shape, self.dtype, self.steps, self.stream = values.shape, values.dtype, steps, None
        flat = np.ascontiguousarray(values).reshape(-1)
        if steps is not None:
            flat = np.zeros(sum((n - 1) * s for n, s in zip(values.shape, steps, strict=True)) + 1, values.dtype)
            np.lib.stride_tricks.as_strided(flat, values.shape, [s * flat.itemsize for s in steps])[...] = values
        with opening.open_device(f"cuda:{gpu}").current():  # type: ignore[attr-defined]
            self.allocation = sys.modules["pycuda.driver"].mem_alloc(flat.nbytes + front * flat.itemsize)
        self.address = int(self.allocation) + front * flat.itemsize
        ctypes.memmove(self.address, flat.ctypes.data, flat.nbytes)
        self.fake, self.context = fake, fake.contexts[gpu]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = None if self.steps is None else tuple(s * self.dtype.itemsize for s in self.steps)
        return {
            "version": self.version,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": strides,
            **self.told(),
        }

    def told(self) -> dict[str, Any]:
        return {}

    def __array__(self, *_: Any, **__: Any) -> np.ndarray[Any, Any]:
        raise AssertionError("this would be a copy through the host")


class LikeCupy(Like):
    """It names the stream that it works on, and refuses to be an array of the host, too."""

    def told(self) -> dict[str, Any]:
        return {"stream": None if self.stream is None else self.stream.handle}

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("__cuda_array_interface__ comes first")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.context.index)


class LikeTorch(Like):
    """Version 2, which knows no streams."""

    version = 2


def transfers(fake: Machine) -> dict[str, int]:
    return {name: fake.launched.count(name) for name in ("upload", "fetch")} | fake.copies


def behind(fake: Machine, call: Callable[[], Any]) -> dict[str, int]:
    """What was copied meanwhile."""
    before = transfers(fake)
    call()
    return {name: count - before[name] for name, count in transfers(fake).items()}


# ---- in, on a GPU


RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((5, 4, 9, 8), dtype=np.float32)
W = RANDOM.standard_normal((6, 2, 3, 3), dtype=np.float32)
B = RANDOM.standard_normal(6, dtype=np.float32)
LOCAL = RANDOM.standard_normal((7, 6, 6, 2, 3, 3), dtype=np.float32)
DY = RANDOM.standard_normal((5, 6, 7, 6), dtype=np.float32)
ROWS, MATRIX = X.reshape(5, -1), RANDOM.standard_normal((7, 288), dtype=np.float32)
DROP = {"seed": 1, "step": 2, "layer": 3}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "conv2d": (F.conv2d, (X, W, B), {"groups": 2}),
    "conv2d_backward": (F.conv2d_backward, (DY, X, W), {"groups": 2}),
    "local2d": (F.local2d, (X, LOCAL, LOCAL[:, :, :, 0, 0, 0].transpose(2, 0, 1)), {"groups": 2}),
    "local2d_backward": (F.local2d_backward, (DY, X, LOCAL), {"groups": 2}),
    "add_position_bias": (F.add_position_bias, (DY, DY[0]), {}),
    "add_position_bias_backward": (F.add_position_bias_backward, (DY,), {}),
    "max_pool2d": (F.max_pool2d, (X, 3, 2), {}),
    "max_pool2d_backward": (F.max_pool2d_backward, (X[:, :, :4, :3], X, 3, 2), {}),
    "avg_pool2d": (F.avg_pool2d, (X, 3, 2), {}),
    "avg_pool2d_backward": (F.avg_pool2d_backward, (X[:, :, :4, :3], X, 3, 2), {}),
    "rand_pool2d": (F.rand_pool2d, (X, 3, 2), DROP),
    "rand_pool2d_mean": (F.rand_pool2d_mean, (X, 3, 2), {}),
    "rand_pool2d_backward": (F.rand_pool2d_backward, (X[:, :, :4, :3], X, 3, 2), DROP),
    "spatial_response_norm": (F.spatial_response_norm, (X, 3, 0.1, 0.75, 1.0), {}),
    "spatial_response_norm_backward": (F.spatial_response_norm_backward, (X[::-1], X, 3, 0.1, 0.75, 1.0), {}),
    "local_contrast_norm": (F.local_contrast_norm, (X, 3, 0.1, 0.75, 1.0), {}),
    "local_contrast_norm_backward": (F.local_contrast_norm_backward, (X[::-1], X, 3, 0.1, 0.75, 1.0), {}),
    "blur2d": (F.blur2d, (X, 5, 1.0), {}),
    "blur2d_backward": (F.blur2d_backward, (X, 5, 1.0), {}),
    "nailbed2d": (F.nailbed2d, (X, 2), {}),
    "nailbed2d_backward": (F.nailbed2d_backward, (X[:, :, :5, :4], X, 2), {}),
    "local_response_norm": (F.local_response_norm, (X,), {}),
    "local_response_norm_backward": (F.local_response_norm_backward, (X[::-1], X), {}),
    "linear": (F.linear, (ROWS, MATRIX, MATRIX[:, 0]), {}),
    "linear_backward": (F.linear_backward, (ROWS[:, :7], ROWS, MATRIX), {}),
    "relu": (F.relu, (X,), {}),
    "relu_backward": (F.relu_backward, (X[::-1], X), {}),
    "tanh": (F.tanh, (X,), {}),
    "tanh_backward": (F.tanh_backward, (X[::-1], X), {}),
    "activation": (F.activation, (X, "logistic"), {}),
    "activation_backward": (F.activation_backward, (X[::-1], X, "tanh"), {"a": 1.5, "b": 0.5}),
    "weighted_sum": (F.weighted_sum, ([X, X[::-1]], [0.5, -2.0]), {}),
    "weighted_sum_backward": (F.weighted_sum_backward, (X, [0.5, -2.0]), {}),
    "elementwise_max": (F.elementwise_max, ([X, X[::-1]],), {}),
    "elementwise_max_backward": (F.elementwise_max_backward, (X, [X, X[::-1]]), {}),
    "gather_channels": (F.gather_channels, (X, np.arange(7) % X.shape[1]), {}),
    "gather_channels_backward": (F.gather_channels_backward, (X, np.arange(X.shape[1]) % 2), {"channels": 3}),
    "mirror2d": (F.mirror2d, (X,), {}),
    "cost": (F.cost, (ROWS, "squared-error", np.arange(5)), {"coefficient": 0.5}),
    "dropout": (F.dropout, (X, 0.5), DROP),
    "softmax_cross_entropy": (F.softmax_cross_entropy, (ROWS, np.arange(5)), {}),
    "sgd": (F.sgd, (X, X + 1, X - 1), SGD),
}
# uploads of what no array is: labels, tables, and the control block
UPLOADS = {"dropout": 1, "softmax_cross_entropy": 2, "sgd": 1, "cost": 2}
UPLOADS |= {"gather_channels": 1, "gather_channels_backward": 2, "mirror2d": 1}
UPLOADS |= {"rand_pool2d": 1, "rand_pool2d_backward": 1}


def results(found: Any) -> list[np.ndarray[Any, Any]]:
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize(("precision", "how"), [("fp32", "as it was"), ("fp32", "one value on"), ("bf16", "with gaps")])
@pytest.mark.parametrize("name", CALLS)
def test_every_function_reads_gpus(fake: Machine, name: str, precision: str, how: str) -> None:
    """The bits of host arrays, and no float crosses to the GPU; arguments stay as they are."""
    function, arguments, options = CALLS[name]
    options = {**options, "device": "cuda:0"} | ({} if name == "sgd" else {"precision": precision})
    expected = results(function(*arguments, **options))

    def given(values: Any) -> Any:
        if isinstance(values, list):
            return [given(value) for value in values]
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
            return values
        steps = tuple(stride // 2 for stride in np.empty(values.shape, np.float32).strides)
        return LikeCupy(fake, values, front=int(how == "one value on"), steps=steps if how == "with gaps" else None)

    theirs = [given(values) for values in arguments]
    kept = [ctypes.string_at(a.address, a.dtype.itemsize) for a in theirs if isinstance(a, Like)]
    found: list[np.ndarray[Any, Any]] = []
    copied = behind(fake, lambda: found.extend(results(function(*theirs, **options))))
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    assert copied["upload"] == UPLOADS.get(name, 0)
    assert copied["direct"] == 0
    assert copied["to_host"] == len(found)
    assert kept == [ctypes.string_at(a.address, a.dtype.itemsize) for a in theirs if isinstance(a, Like)]
    assert not fake.stack
    assert not fake.library.events


def test_what_lies_right_is_not_moved_at_all(fake: Machine) -> None:
    """ReLU reads the other library's memory itself: one kernel, and memory for its result alone."""
    x = LikeCupy(fake, X)
    F.relu(X, device="cuda:0")
    gpu = call._open("cuda:0").device
    before, launched = gpu.allocations, len(fake.launched)
    F.relu(x, device="cuda:0")
    assert gpu.allocations == before + 1
    assert fake.launched[launched:] == ["relu_forward"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("devices", ["cuda:0", "cuda:0,cuda:1"])
@pytest.mark.parametrize("lying", ["contiguous", "channels last"])
def test_networks_read_images_of_gpus(fake: Machine, devices: str, precision: str, lying: str) -> None:
    """Images of one GPU reach the other without the host; labels come from the host, where they are checked. Passes are
    queued piece by piece: of captured work nobody sees what it copies."""
    images = RANDOM.standard_normal((7, 3, 64, 64), dtype=np.float32)
    steps = None if lying == "contiguous" else (3 * 64 * 64, 1, 3 * 64, 3)
    with convnet.Network(devices=devices, precision=precision, **TINY) as net:  # type: ignore[arg-type]
        net._passes.capturing = False
        expected = net.forward(images)
        for gpu in range(devices.count("cuda")):
            theirs, found = LikeCupy(fake, images, gpu=gpu, steps=steps), []
            exchanged = behind(fake, lambda: net.forward(images))["direct"]
            copied = behind(fake, lambda: found.append(net.forward(theirs)))  # noqa: B023
            np.testing.assert_array_equal(found[0], expected)
            assert copied["upload"] == 0
            assert copied["direct"] == exchanged + devices.count(",")
        assert np.isfinite(net.forward(theirs, train=True)).all()
        assert np.isfinite(net.backward(np.arange(7)))


@pytest.mark.parametrize("devices", ["cuda:0", "cuda:0,cuda:1"])
def test_training_reads_stored_images_of_gpus(fake: Machine, devices: str) -> None:
    """The bits of host images, in one call and in a captured step; the images themselves are not copied where they
    lie."""
    stored = RANDOM.integers(0, 256, (8, 70, 66, 3), np.uint8)
    windows, noise = np.array([(k % 6, k % 2, k % 2) for k in range(8)], np.int32), np.ones((8, 3), np.float32)
    labels = np.arange(8) % 10
    outcomes = []
    for make in (lambda: stored, lambda: LikeCupy(fake, stored)):
        with convnet.Network(devices=devices, **TINY) as net:  # type: ignore[arg-type]
            losses, _ = net.train_batch(make(), labels, windows, noise)
            net.step()
            stepped = [net.train_step(make(), labels, windows, noise).get()[0] for _ in range(3)]
            images, small = make(), 3 * len(net.devices)  # windows, noise and one of labels and control on each
            copied = behind(fake, lambda: net.evaluate_batch(images, windows))  # noqa: B023
            outcomes.append((losses, *stepped, net.weights()["conv1.weight"], net.evaluate_batch(images, windows)))
        if isinstance(images, Like):
            assert copied["upload"] < small
    for actual, expected in zip(outcomes[1], outcomes[0], strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_images_may_be_overwritten_when_a_step_returns(fake: Machine) -> None:
    """The step goes on; what it reads of others is read. (Kernels here take a second each, on the device's clock.)"""
    stored = LikeCupy(fake, RANDOM.integers(0, 256, (8, 64, 64, 3), np.uint8))
    windows, noise, labels = np.zeros((8, 3), np.int32), np.zeros((8, 3), np.float32), np.arange(8)
    with convnet.Network(devices="cuda:0", **TINY) as net:  # type: ignore[arg-type]
        net.train_step(stored, labels, windows, noise)
        fake.seconds = lambda name: 1.0
        start = fake.now
        net.train_step(stored, labels, windows, noise)
        intake = net._intake._streams[0].stream  # type: ignore[attr-defined]
        assert fake.now >= start + 3  # windows, noise and the kernel that reads the images
        assert intake.time == fake.now + 1  # labels come behind
        assert net._sides[0].stream.stream.time > fake.now + 10  # type: ignore[attr-defined]
        fake.seconds = lambda name: 0.0


def test_the_other_gpu_waits_for_what_it_copies(fake: Machine) -> None:
    images = LikeCupy(fake, np.ones((2, 3, 64, 64), np.float32))
    with convnet.Network(devices="cuda:0,cuda:1", **TINY) as net:  # type: ignore[arg-type]
        fake.seconds = lambda name: 5.0 if name == "pack" else 0.0
        net._intake.gather(seen(images))
        first, second = (stream.stream for stream in net._intake._streams)  # type: ignore[attr-defined]
        assert second.time >= first.time >= 5


# ---- streams and lifetimes


def queued(fake: Machine, seconds: float) -> Foreign:
    """Another library's stream, with work on it."""
    stream = Foreign(fake, fake.contexts[0])
    stream.time = seconds
    return stream


def test_the_stream_of_the_interface_is_waited_for(fake: Machine) -> None:
    for stream, expected in ((None, 0.0), (queued(fake, 7.0), 7.0)):
        array = LikeCupy(fake, X)
        array.stream = stream
        ours = opening.open_device("cuda:0").stream()
        ours.adopt(seen(array))
        assert ours.stream.time == expected  # type: ignore[attr-defined]
        assert fake.now == 0.0  # the host did not wait


def test_where_no_stream_is_told_all_work_is_waited_for(fake: Machine) -> None:
    queued(fake, 7.0)
    stream = opening.open_device("cuda:0").stream()
    stream.adopt(seen(LikeCupy(fake, X)))
    assert fake.now == 0.0
    stream.adopt(seen(LikeTorch(fake, X)))
    assert fake.now == 7.0


@pytest.mark.parametrize("number", [1, 2])
def test_cudas_own_streams_are_waited_for(fake: Machine, number: int) -> None:
    array = LikeCupy(fake, X)
    own = fake.defaults[0, number] = Foreign(fake, fake.contexts[0])
    own.time, own.handle = 5.0, number
    array.stream = own
    stream = opening.open_device("cuda:0").stream()
    stream.adopt(seen(array))
    assert stream.stream.time == 5.0  # type: ignore[attr-defined]


def test_what_is_read_is_kept_alive(fake: Machine) -> None:
    array = LikeCupy(fake, X)
    gone = weakref.ref(array)
    adopted = opening.open_device("cuda:0").stream().adopt(seen(array)).view((4,))
    del array
    gc.collect()
    assert gone() is not None
    del adopted
    gc.collect()
    assert gone() is None


# ---- out, on a GPU


def test_our_arrays_are_shown_behind_all_work(fake: Machine) -> None:
    gpu = opening.open_device("cuda:0")
    one, other = gpu.stream(), gpu.stream()
    array = gpu.empty((2, 3))
    one.upload(array, np.arange(6, dtype=np.float32).reshape(2, 3))
    fake.seconds = lambda name: 3.0
    one.launch(gpu.kernels.add, 6, "fp32", array, array, array)
    other.launch(gpu.kernels.add, 6, "fp32", array, array, array)
    interface = array.__cuda_array_interface__  # type: ignore[attr-defined]
    assert {name: interface[name] for name in ("version", "shape", "typestr", "data", "strides")} == {
        "version": 3, "shape": (2, 3), "typestr": "<f4", "data": (array.handle, False), "strides": None,
    }  # fmt: skip
    assert fake.now < 3  # nobody waited
    assert fake.streams[interface["stream"]].time >= 3
    assert array.__cuda_array_interface__["stream"] == interface["stream"]  # type: ignore[attr-defined]


def test_our_arrays_go_in_again(fake: Machine) -> None:
    gpu = opening.open_device("cuda:0")
    array = gpu.empty(X.shape)
    gpu.stream().upload(array, X)
    copied = behind(fake, lambda: np.testing.assert_array_equal(F.relu(array, device="cuda:0"), np.maximum(X, 0)))
    assert copied["upload"] == 0


def test_memory_lives_as_long_as_a_view_of_it(fake: Machine) -> None:
    """Whoever holds the array, or a capsule of it, holds its memory, whether the device is closed or not."""
    gpu = opening.open_device("cuda:0")
    array = gpu.empty((4,))
    gpu.stream().upload(array, np.ones(4, np.float32))
    address, capsule = array.handle, array.__dlpack__()  # type: ignore[attr-defined]
    gpu.close()
    with pytest.raises(RuntimeError, match="cuda:0 is closed: its arrays cannot be shared"):
        _ = array.__cuda_array_interface__  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="cuda:0 is closed"):
        array.__dlpack__()  # type: ignore[attr-defined]
    del array
    gc.collect()
    assert fake.owner(address)
    del capsule
    gc.collect()
    with pytest.raises(Exception, match="invalid address"):
        fake.owner(address)


def structure(capsule: Any, versioned: bool) -> Any:
    """What a capsule points to."""
    kind, name = (
        (dlpack.DLManagedTensorVersioned, b"dltensor_versioned") if versioned else (dlpack.DLManagedTensor, b"dltensor")
    )
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return kind.from_address(get(capsule, name))


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int32, np.uint16])
def test_dlpack_says_where_and_what(fake: Machine, versioned: bool, dtype: Any) -> None:
    gpu = opening.open_device("cuda:1")
    array = gpu.empty((2, 3, 4), dtype)
    assert array.__dlpack_device__() == (2, 1)  # type: ignore[attr-defined]
    capsule = array.__dlpack__(max_version=(1, 1) if versioned else None)  # type: ignore[attr-defined]
    managed = structure(capsule, versioned)
    tensor = managed.dl_tensor
    assert (tensor.data, tensor.ndim, tensor.byte_offset) == (array.handle, 3, 0)
    assert (tensor.device.device_type, tensor.device.device_id) == (2, 1)
    code = {"f": 2, "u": 1, "i": 0}[np.dtype(dtype).kind]
    assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (code, 8 * np.dtype(dtype).itemsize, 1)
    assert (tensor.shape[:3], tensor.strides[:3]) == ([2, 3, 4], [12, 4, 1])
    if versioned:
        assert (managed.major, managed.minor, managed.flags) == (1, 0, 0)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_a_capsule_lets_go_once(fake: Machine, versioned: bool, taken: bool) -> None:
    """Taken over, the deleter does it and the destructor keeps out; else the destructor does."""
    array = opening.open_device("cuda:0").empty((4,))
    address = array.handle
    capsule = array.__dlpack__(max_version=(1, 0) if versioned else None)  # type: ignore[attr-defined]
    del array
    managed = structure(capsule, versioned)
    where = ctypes.addressof(managed)
    if taken:
        rename = ctypes.pythonapi.PyCapsule_SetName
        rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
        used = b"used_dltensor_versioned" if versioned else b"used_dltensor"
        rename(capsule, used)
        del capsule
        gc.collect()
        assert fake.owner(address)
        managed.deleter(where)
    else:
        del capsule
    gc.collect()
    assert where not in dlpack._held
    with pytest.raises(Exception, match="invalid address"):
        fake.owner(address)


def test_another_librarys_reader_understands_capsules(fake: Machine) -> None:
    """PyTorch reads one that says host memory, as the stand-in's is."""
    torch = pytest.importorskip("torch")
    for versioned in (False, True):
        gpu = opening.open_device("cuda:0")
        array = gpu.empty((2, 3))
        gpu.stream().upload(array, np.arange(6, dtype=np.float32).reshape(2, 3))
        capsule = array.__dlpack__(max_version=(1, 0) if versioned else None)  # type: ignore[attr-defined]
        structure(capsule, versioned).dl_tensor.device.device_type = 1
        tensor = torch.utils.dlpack.from_dlpack(capsule)
        address = array.handle
        del array, capsule
        gc.collect()
        assert tensor.data_ptr() == address
        assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
        del tensor
        gc.collect()
        assert not dlpack._held
        with pytest.raises(Exception, match="invalid address"):
            fake.owner(address)


def test_streams_and_copies_of_dlpack(fake: Machine) -> None:
    gpu = opening.open_device("cuda:0")
    stream, array = gpu.stream(), gpu.empty((4,))
    stream.upload(array, np.ones(4, np.float32))
    fake.seconds = lambda name: 3.0
    stream.launch(gpu.kernels.add, 4, "fp32", array, array, array)
    theirs, others = Foreign(fake, fake.contexts[0]), Foreign(fake, fake.contexts[0])
    array.__dlpack__(stream=theirs.handle)  # type: ignore[attr-defined]
    array.__dlpack__(stream=-1)  # type: ignore[attr-defined]
    assert theirs.time >= 3
    assert others.time == 0
    array.__dlpack__()  # type: ignore[attr-defined]
    assert fake.defaults[0, 1].time >= 3
    copy = array.__dlpack__(copy=True, max_version=(1, 0))  # type: ignore[attr-defined]
    managed = structure(copy, True)
    assert managed.flags == 2
    assert managed.dl_tensor.data != array.handle
    np.testing.assert_array_equal(np.frombuffer(ctypes.string_at(managed.dl_tensor.data, 16), np.float32), 2)
    host = np.from_dlpack(HostBound(array))
    np.testing.assert_array_equal(host, 2)
    for wrong in ({"stream": 0}, {"dl_device": (1, 0), "copy": False}, {"dl_device": (2, 1)}):
        with pytest.raises(BufferError, match="cuda:0"):
            array.__dlpack__(**wrong)  # type: ignore[attr-defined]
    assert not fake.library.events


class HostBound:
    """Asks an array for the host's device."""

    def __init__(self, array: Any):
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(dl_device=(1, 0))


# ---- refused, on a GPU


def test_what_a_gpu_cannot_read_is_refused(fake: Machine) -> None:
    here, there = LikeCupy(fake, X), LikeCupy(fake, X, gpu=1)
    with pytest.raises(
        ValueError, match=r"relu: x must not lie on a GPU: the device is cpu; give x\.cpu\(\) \(PyTorch\)"
    ):
        F.relu(here)
    with pytest.raises(ValueError, match="conv2d: weight must not lie on a GPU: the device is emu"):
        F.conv2d(X, LikeCupy(fake, W), groups=2, device="emu")
    with pytest.raises(ValueError, match="an array of 1440 values does not lie on cuda:0; copy it there"):
        F.relu(there, device="cuda:0")
    with pytest.raises(
        ValueError, match=r"labels must not lie on a GPU: it is checked on the host first; give labels.cpu"
    ):
        F.softmax_cross_entropy(ROWS, LikeCupy(fake, np.arange(5)), device="cuda:0")
    with pytest.raises(ValueError, match="relu: x must be a float32 array, got float64"):
        F.relu(LikeCupy(fake, X.astype(np.float64)), device="cuda:0")
    reversed_ = LikeCupy(fake, X)
    reversed_.steps, reversed_.address = (-288, 72, 8, 1), reversed_.address + 4 * 288 * 4
    with pytest.raises(ValueError, match="cannot be read as it is; make it contiguous"):
        F.relu(reversed_, device="cuda:0")
    fake.primary[here.address] = 1
    with pytest.raises(ValueError, match=r"another CUDA context of cuda:0; .* import pycuda.autoprimaryctx"):
        F.relu(here, device="cuda:0")
    with convnet.Network(devices="cuda:0", **TINY) as net:  # type: ignore[arg-type]
        images = np.zeros((2, 3, 64, 64), np.float32)
        with pytest.raises(ValueError, match=r"images of shape .* lie on another GPU than cuda:0; copy them there"):
            net.forward(LikeCupy(fake, images, gpu=1))
    with convnet.Network(devices="cpu", **TINY) as net:  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="forward: images must not lie on a GPU: the device is cpu"):
            net.forward(LikeCupy(fake, images))
        net.forward(images, train=True)
        with pytest.raises(
            ValueError, match=r"labels must not lie on a GPU: it is checked on the host first; give labels.cpu"
        ):
            net.backward(LikeCupy(fake, np.arange(2)))
    assert not fake.stack


@pytest.mark.parametrize(
    ("interface", "text"),
    [
        ({"mask": object()}, "x is a Odd that cannot be read: it has a mask"),
        ({"stream": 0}, "its stream is 0"),
        ({"strides": (6,)}, r"its strides \(6,\) are no multiples of 4 bytes"),
        ({"typestr": "what"}, "x is a Odd that cannot be read"),
        ({"data": (8, False)}, r"an array of 4 values does not lie on cuda:0"),
    ],
)
def test_interfaces_that_make_no_sense(fake: Machine, interface: dict[str, Any], text: str) -> None:
    class Odd:
        __cuda_array_interface__ = {  # noqa: RUF012
            "version": 3, "shape": (4,), "typestr": "<f4", "data": (4096, False), **interface,
        }  # fmt: skip

    with pytest.raises(ValueError, match=text):
        F.relu(Odd(), device="cuda:0")


def test_empty_arrays_have_no_memory(fake: Machine) -> None:
    class Empty:
        __cuda_array_interface__ = {"version": 3, "shape": (0, 3), "typestr": "<f4", "data": (0, False)}  # noqa: RUF012

    assert F.relu(Empty(), device="cuda:0").shape == (0, 3)


# ---- in, on a CPU


class Only:
    """An array that has one way in alone."""

    def __init__(self, values: np.ndarray[Any, Any], way: str):
        self.values = values
        setattr(type(self), way, lambda self, *args, **options: getattr(self.values, way)(*args, **options))
        if way == "__dlpack__":
            type(self).__dlpack_device__ = lambda self: (1, 0)  # type: ignore[attr-defined]


def only(values: np.ndarray[Any, Any], way: str) -> Any:
    return type("Only", (Only,), {})(values, way)


def torch_tensor(values: np.ndarray[Any, Any]) -> Any:
    return pytest.importorskip("torch").from_numpy(values)


WAYS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "numpy": lambda values: values,
    "__array__": lambda values: only(values, "__array__"),
    "__dlpack__": lambda values: only(values, "__dlpack__"),
    "torch": torch_tensor,
}


def peak(call: Callable[[], Any]) -> int:
    """Bytes of arrays that NumPy held at most at once, beside those from before."""
    gc.collect()
    tracemalloc.start()
    call()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.parametrize("way", WAYS)
def test_packing_is_the_only_pass(way: str) -> None:
    """Of images on the CPU: there is one copy of them, in the layout of the device. One that needs none is not copied,
    nor is a result."""
    many, one = np.ones((8, 64, 32, 32), np.float32), np.ones((1, 64, 64, 64), np.float32)
    x, single = WAYS[way](many), WAYS[way](one)
    F.max_pool2d(x, 2, 16), F.max_pool2d(single, 2, 16), F.relu(x)
    assert many.nbytes < peak(lambda: F.max_pool2d(x, 2, 16)) < 1.3 * many.nbytes
    assert peak(lambda: F.max_pool2d(single, 2, 16)) < 0.2 * one.nbytes
    assert many.nbytes < peak(lambda: F.relu(x)) < 1.3 * many.nbytes


@pytest.mark.parametrize("way", WAYS)
def test_stored_images_are_read_where_they_lie(way: str) -> None:
    """And floats are packed once: into the memory that the network has."""
    stored, windows = np.full((8, 256, 256, 3), 9, np.uint8), np.zeros((8, 3), np.int32)
    images = np.ones((8, 3, 64, 64), np.float32)
    with convnet.Network(devices="cpu", **TINY) as net:  # type: ignore[arg-type]
        theirs, floats = WAYS[way](stored), WAYS[way](images)
        noise, labels = WAYS[way](np.zeros((8, 3), np.float32)), WAYS[way](np.arange(8))
        expected = net.train_batch(stored, np.arange(8), windows, np.zeros((8, 3), np.float32))
        for actual, wanted in zip(net.train_batch(theirs, labels, WAYS[way](windows), noise), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
        assert peak(lambda: net.train_batch(theirs, labels, windows, noise)) < 0.2 * stored.nbytes
        assert peak(lambda: net.forward(floats)) < 0.5 * images.nbytes
        np.testing.assert_array_equal(net.forward(floats), net.forward(images))


@pytest.mark.parametrize("device_name", ["cpu", "emu"])
def test_arrays_of_any_kind(device_name: str) -> None:
    """What NumPy can read is read, whatever its order of bytes, strides and rights, and nothing is changed."""
    expected = F.conv2d(X, W, B, groups=2, device=device_name)
    read_only, swapped, odd = X.copy(), X.astype(">f4"), np.empty(X.nbytes + 1, np.uint8)
    read_only.flags.writeable = False
    unaligned = odd[1:].view(np.float32).reshape(X.shape)
    unaligned[...] = X
    for x in (read_only, swapped, unaligned, np.asfortranarray(X), only(read_only, "__array__"), X.view(np.recarray)):
        np.testing.assert_array_equal(F.conv2d(x, W, B, groups=2, device=device_name), expected)
    np.testing.assert_array_equal(F.relu(swapped, device=device_name), F.relu(X, device=device_name))
    np.testing.assert_array_equal(F.relu(unaligned, device=device_name), F.relu(X, device=device_name))
    w, _ = F.sgd(read_only, read_only, read_only, device=device_name, **SGD)
    assert not np.array_equal(w, X)
    np.testing.assert_array_equal(read_only, X)
    with convnet.Network(devices=device_name, precision="fp32", **TINY) as net:  # type: ignore[arg-type]
        images = RANDOM.standard_normal((3, 3, 64, 64), dtype=np.float32)
        np.testing.assert_array_equal(net.forward(images.astype(">f4")), net.forward(images))


def test_swapped_bytes_in_bfloat16() -> None:
    images = RANDOM.standard_normal((3, 3, 64, 64), dtype=np.float32)
    with convnet.Network(devices="emu", precision="bf16", **TINY) as net:  # type: ignore[arg-type]
        np.testing.assert_array_equal(net.forward(images.astype(">f4")), net.forward(images))


def test_tensors_that_are_refused() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X)
    for dtype, found in ((torch.float64, "float64"), (torch.float16, "float16")):
        with pytest.raises(ValueError, match=f"relu: x must be a float32 array, got {found}; convert it to float32"):
            F.relu(x.to(dtype))
    with pytest.raises(ValueError, match=r"relu: x is a Tensor that cannot be read: .*BFloat16"):
        F.relu(x.bfloat16())
    with pytest.raises(
        ValueError, match=r"relu: x is a Tensor that cannot be read: it requires a gradient, .*; give its \.detach\(\)"
    ):
        F.relu(x.clone().requires_grad_())
    with pytest.raises(ValueError, match="linear: weight is a Tensor that cannot be read"):
        F.linear(X.reshape(5, -1), torch.empty(3, 288, device="meta"))
    np.testing.assert_array_equal(F.relu(x[:, ::2].transpose(2, 3)), np.maximum(X[:, ::2].swapaxes(2, 3), 0))


def test_an_array_of_an_unknown_device_is_refused() -> None:
    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (8, 0)

        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError("it was said where it lies")

    with pytest.raises(ValueError, match=r"relu: x is a Elsewhere .* DLPack's device \(8, 0\)"):
        F.relu(Elsewhere())


# ---- out, on a CPU


@pytest.mark.parametrize("kind", ["cpu", "emu"])
def test_host_arrays_are_shown_by_dlpack(kind: str) -> None:
    here = opening.open_device(kind)
    assert isinstance(here, HostDevice)
    array = here.empty((2, 3))
    here.stream().upload(array, np.arange(6, dtype=np.float32).reshape(2, 3))
    view = np.from_dlpack(array)
    assert array.__dlpack_device__() == (1, 0)
    assert view.ctypes.data == array.handle
    np.testing.assert_array_equal(view, np.arange(6).reshape(2, 3))
    copied = np.from_dlpack(Copying(array))
    assert copied.ctypes.data != array.handle
    np.testing.assert_array_equal(F.relu(array), view)
    for wrong in ({"stream": 1}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError, match=f"{kind}.*: host memory has no streams"):
            array.__dlpack__(**wrong)  # type: ignore[arg-type]
    here.close()
    with pytest.raises(RuntimeError, match="is closed: its arrays cannot be shared"):
        array.__dlpack__()
    held = here.allocated
    del array, copied
    gc.collect()
    assert here.allocated == held == 24
    np.testing.assert_array_equal(view, np.arange(6).reshape(2, 3))
    del view
    gc.collect()
    assert here.allocated == 0


class Copying(HostBound):
    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(copy=True)


def test_torch_takes_host_arrays() -> None:
    torch = pytest.importorskip("torch")
    here = opening.open_device("cpu")
    array = here.empty((4,))
    here.stream().upload(array, np.arange(4, dtype=np.float32))
    tensor = torch.from_dlpack(array)
    assert tensor.data_ptr() == array.handle
    assert tensor.tolist() == [0, 1, 2, 3]
