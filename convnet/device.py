"""CUDA devices through pycuda, the only module that imports it.

pycuda owns contexts, memory, streams and events; the kernels come from ``_gpu``. Both work in the device's primary
context, so that they share memory with each other (and with other libraries in the process). Importing this module
needs neither pycuda nor a driver.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from .backend import Array, Device, DeviceError, Event, Stream, handle

log = logging.getLogger(__name__)

# pycuda's pool rounds sizes up by as much as a quarter: good for small arrays that come and go, wasteful for large ones
POOLED_BYTES = 1 << 20


def _load_driver_library() -> None:
    """Makes the driver's functions known to the process: a pycuda built on a machine without a driver does not ask for
    the library itself."""
    ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)


@cache
def _driver() -> tuple[Any, Any]:
    """pycuda's driver module and our kernels. Raises ``DeviceError`` with the reason and the remedy where one is
    missing.
    """
    try:
        from . import _gpu
    except ImportError as error:
        raise DeviceError(
            f"cuda: the CUDA kernels are not built ({error}); install with: "
            "pip install . -C cmake.define.CONVNET_CUDA=ON"
        ) from error
    try:
        _load_driver_library()
    except OSError as error:
        raise DeviceError(f"cuda: there is no NVIDIA driver on this machine ({error}); install one") from error
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise DeviceError(f"cuda: pycuda is missing ({error}); run: pip install pycuda") from error
    try:
        driver.init()
    except driver.Error as error:
        raise DeviceError(f"cuda: the NVIDIA driver does not start ({error}); check nvidia-smi") from error
    return driver, _gpu


def unavailable() -> str | None:
    """Why there is no CUDA device, or None when there is one."""
    try:
        driver, _ = _driver()
    except DeviceError as error:
        return str(error)
    return None if driver.Device.count() else "cuda: the driver sees no GPU"


def names() -> list[str]:
    """ "cuda:0", "cuda:1", ... for every GPU that the driver shows and the kernels were compiled for."""
    if unavailable():
        return []
    return [f"cuda:{i}" for i in range(_driver()[0].Device.count()) if _built_for(i)]


def describe() -> dict[str, Any]:
    """Driver version and, for every GPU, its name, compute capability, memory and whether kernels were built for it."""
    driver, _ = _driver()
    gpus = []
    for i in range(driver.Device.count()):
        gpu = driver.Device(i)
        gpus.append(
            {
                "device": f"cuda:{i}",
                "name": gpu.name(),
                "compute_capability": "{}.{}".format(*gpu.compute_capability()),
                "memory_bytes": gpu.total_memory(),
                "usable": _built_for(i),
            }
        )
    return {"driver": driver.get_driver_version(), "gpus": gpus}


def _built_for(index: int) -> bool:
    """Whether ``_gpu`` holds machine code for this GPU: the same generation and no newer; "90a" runs on 9.0 alone."""
    driver, kernels = _driver()
    major, minor = driver.Device(index).compute_capability()
    for architecture in kernels.build_info()["architectures"].split(","):
        digits = architecture.rstrip("a")
        built_major, built_minor = int(digits[:-1]), int(digits[-1])
        exact = architecture != digits
        if built_major == major and (built_minor == minor if exact else built_minor <= minor):
            return True
    return False


class CudaEvent(Event):
    def __init__(self, event: Any):
        self.event = event

    def elapsed_since(self, earlier: CudaEvent) -> float:
        """Milliseconds of device time between two events, when both have happened."""
        return float(self.event.time_since(earlier.event))


class CudaArray(Array):
    """``owner`` keeps the allocation alive; ``handle`` is an address in it."""

    def __init__(self, device: CudaDevice, owner: Any, handle: int, shape: tuple[int, ...], dtype: Any):
        self.device: CudaDevice = device
        self._owner, self.handle = owner, handle
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    def view(self, shape: tuple[int, ...], offset: int = 0, dtype: Any = None) -> CudaArray:
        return CudaArray(
            self.device, self._owner, self.handle + offset * self.dtype.itemsize, shape, dtype or self.dtype
        )

    def download(self) -> np.ndarray[Any, Any]:
        values = np.empty(self.shape, self.dtype)
        if values.nbytes:
            with self.device.current():
                self.device.context.synchronize()
                self.device.driver.memcpy_dtoh(values, self.handle)
        return values


class CudaStream(Stream):
    def __init__(self, device: CudaDevice):
        self.device: CudaDevice = device
        with device.current():
            self.stream = device.driver.Stream()
        # page-locked memory of uploads under way, with the event that ends each
        self._uploads: deque[tuple[Any, Any]] = deque()

    def launch(self, kernel: Callable[..., None], *arguments: Any) -> None:
        with self.device.current():
            kernel(*map(handle, arguments), self.stream.handle)

    def copy(self, target: Array, source: Array) -> None:
        assert isinstance(target, CudaArray) and isinstance(source, CudaArray) and target.nbytes == source.nbytes
        if source.device is self.device or self.device.reaches(source.device):
            # One address space for all devices: the driver finds out whose memory it is. (memcpy_peer_async would
            # be the obvious call, but mishandles its contexts.)
            with self.device.current():
                self.device.driver.memcpy_dtod_async(target.handle, source.handle, target.nbytes, self.stream)
        else:
            self.synchronize()  # the events that order this copy are queued on this stream
            self.upload(target, source.download())

    def upload(self, target: Array, values: np.ndarray[Any, Any]) -> None:
        assert target.shape == values.shape and target.dtype == values.dtype
        if not values.nbytes:
            return
        driver = self.device.driver
        with self.device.current():
            while self._uploads and self._uploads[0][1].query():
                self._uploads.popleft()
            staged = self.device.pinned.allocate(values.shape, values.dtype)
            np.copyto(staged, values)
            driver.memcpy_htod_async(target.handle, staged, self.stream)
            self._uploads.append((staged, self._event()))

    def _event(self) -> Any:
        event = self.device.driver.Event()
        event.record(self.stream)
        return event

    def record(self) -> CudaEvent:
        with self.device.current():
            return CudaEvent(self._event())

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        with self.device.current():
            self.stream.wait_for_event(event.event)

    def synchronize(self) -> None:
        with self.device.current():
            self.stream.synchronize()
        self._uploads.clear()


class CudaDevice(Device):
    """One GPU. Raises ``DeviceError`` when the kernels were not compiled for it."""

    def __init__(self, index: int):
        self.driver, self.kernels = _driver()
        self.name, self.index = f"cuda:{index}", index
        count = self.driver.Device.count()
        if index >= count:
            raise DeviceError(f"{self.name}: there are {count} CUDA devices; see convnet-info")
        gpu = self.driver.Device(index)
        if not _built_for(index):
            capability = "{}{}".format(*gpu.compute_capability())
            raise DeviceError(
                f"{self.name}: {gpu.name()} needs kernels for sm_{capability}, built are "
                f"{self.kernels.build_info()['architectures']}; install again with: pip install . "
                f"-C cmake.define.CONVNET_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES={capability}"
            )
        import pycuda.tools

        self.context = gpu.retain_primary_context()
        self._peers: dict[int, bool] = {}
        self._allocated = 0
        with self.current():
            self._pool = pycuda.tools.DeviceMemoryPool()
            self.pinned = pycuda.tools.PageLockedMemoryPool()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes this device's context current, for pycuda and the kernels alike; driver errors come out as
        ``DeviceError``.
        """
        self.context.push()
        try:
            yield
        except self.driver.Error as error:
            raise DeviceError(f"{self.name}: {error}") from error
        finally:
            self.driver.Context.pop()

    def lanes(self, N: int) -> int:
        return 64 if N >= 64 else -(-N // 8) * 8

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> CudaArray:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self.current():
            try:
                memory = self.driver.mem_alloc if nbytes > POOLED_BYTES else self._pool.allocate
                owner = _Allocation(self, memory(max(nbytes, 1)), nbytes)
            except self.driver.MemoryError as error:
                free, total = self.driver.mem_get_info()
                raise DeviceError(
                    f"{self.name}: no memory for {nbytes / 1e6:.0f} MB: {free / 1e6:.0f} of {total / 1e6:.0f} MB are "
                    f"free, this process holds {self._allocated / 1e6:.0f} MB; use a smaller batch"
                ) from error
        return CudaArray(self, owner, int(owner.memory), shape, dtype)

    def free(self) -> int:
        with self.current():
            return int(self.driver.mem_get_info()[0])

    def stream(self) -> CudaStream:
        return CudaStream(self)

    def synchronize(self) -> None:
        with self.current():
            self.context.synchronize()

    def reaches(self, other: CudaDevice) -> bool:
        """Whether this device can read the other's memory directly; asked and switched on once."""
        if other.index not in self._peers:
            mine, theirs = self.driver.Device(self.index), self.driver.Device(other.index)
            self._peers[other.index] = bool(mine.can_access_peer(theirs))
            if self._peers[other.index]:
                with self.current():
                    self.driver.Context.enable_peer_access(other.context)
            else:
                log.warning("%s cannot reach the memory of %s: exchanges go through the host", self.name, other.name)
        return self._peers[other.index]

    @property
    def allocated(self) -> int:
        return self._allocated

    def close(self) -> None:
        with self.current():
            self.context.synchronize()
            self._pool.free_held()
            self.pinned.free_held()


class _Allocation:
    """A piece of device memory, freed in its own context when the last array in it is gone."""

    def __init__(self, device: CudaDevice, memory: Any, nbytes: int):
        self.device, self.memory, self.nbytes = device, memory, nbytes
        device._allocated += nbytes

    def __del__(self) -> None:
        self.device._allocated -= self.nbytes
        with self.device.current():
            self.memory.free()


def open_cuda(index: int) -> CudaDevice:
    """Opens "cuda:index". Raises ``DeviceError`` with the reason when that is not possible."""
    reason = unavailable()
    if reason:
        raise DeviceError(reason)
    return CudaDevice(index)
