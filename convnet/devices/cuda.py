"""CUDA devices through pycuda, the only module that imports it.

pycuda owns contexts, memory, streams and events; the kernels come from ``_gpu``. Both work in the device's primary
context, so that they share memory with each other (and with other libraries in the process). Importing this module
needs neither pycuda nor a driver.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np

from . import dlpack, switches
from .failures import too_old, translated
from .foreign import ALIGNMENT, HOST, LEGACY_STREAM, UNKNOWN_STREAM, CudaMemory
from .protocol import (
    Array,
    Device,
    DeviceError,
    DeviceLost,
    Event,
    Fetch,
    Graph,
    KernelFault,
    OutOfMemory,
    Stream,
    handle,
)

log = logging.getLogger(__name__)

# pycuda's pool rounds sizes up by as much as a quarter: good for small arrays that come and go, wasteful for large ones
POOLED_BYTES = 1 << 20
# Uploads pass through page-locked memory in pieces of at most so many bytes; a stream that has so much of it waits for
# earlier uploads before it takes more
PIECE_BYTES, STAGED_BYTES = 1 << 25, 1 << 28
# the driver's numbers for what can be asked of an address
POINTER_CONTEXT, POINTER_DEVICE = 1, 9
DISABLE_TIMING = 2  # of an event


def _load_driver_library() -> int:
    """The newest CUDA that the driver knows, 13000 for 13.0. Makes the driver's functions known to the process: a
    pycuda built on a machine without a driver does not ask for the library itself. Raises ``OSError``."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL).cuDriverGetVersion(ctypes.byref(version))
    return version.value


@cache
def _library() -> Any:
    """The driver itself, for what pycuda has no call for: streams and memory that it did not make."""
    return ctypes.CDLL("libcuda.so.1")


def _ask(function: str, *arguments: Any) -> None:
    if status := getattr(_library(), function)(*arguments):
        raise RuntimeError(f"{function} (CUDA error {status})")


def _order(earlier: int, later: int) -> None:
    """Later work on the stream ``later`` starts when what is queued on ``earlier`` is done; both by their addresses, in
    the current context."""
    event = ctypes.c_void_p()
    _ask("cuEventCreate", ctypes.byref(event), DISABLE_TIMING)
    try:
        _ask("cuEventRecord", event, ctypes.c_void_p(earlier))
        _ask("cuStreamWaitEvent", ctypes.c_void_p(later), event, 0)
    finally:
        _ask("cuEventDestroy_v2", event)


@cache
def _driver() -> tuple[Any, Any]:
    """pycuda's driver module and our kernels. Raises ``DeviceError`` with the reason and the remedy where one is
    missing.
    """
    try:
        from ..kernels import _gpu
    except ImportError as error:
        raise DeviceError(
            f"cuda: the CUDA kernels are not built ({error}); install with: "
            "pip install . -C cmake.define.CONVNET_CUDA=ON"
        ) from error
    try:
        version = _load_driver_library()
    except OSError as error:
        raise DeviceError(f"cuda: there is no NVIDIA driver on this machine ({error}); install one") from error
    if reason := too_old(version, _gpu.build_info()["cuda"]):
        raise DeviceError(reason)
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


def unusable() -> str | None:
    """Why no GPU can be used; None where there is no driver either, and nobody will expect one to be."""
    try:
        _load_driver_library()
    except OSError:
        return None
    return unavailable() or "cuda: the kernels were built for none of the GPUs (see convnet-info)"


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
    """``spare`` is where pycuda's event goes when nobody needs this mark any more: the next one is set with it."""

    def __init__(self, event: Any, spare: list[Any]):
        self.event, self._spare = event, spare

    def __del__(self) -> None:
        self._spare.append(self.event)

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

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; bfloat16 as uint16. All that is queued on the device so far is in front of the stream it names."""
        self.check_shared()
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.handle, False),
            "strides": None,
            "stream": self.device.settled().stream.handle,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (dlpack.CUDA, self.device.index)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """This memory, or a copy of it; bfloat16 as uint16. Work on ``stream``, CUDA's default one where it is None,
        waits for what is queued on the device so far; -1 waits for nothing. For the host it is a copy always."""
        self.check_shared()
        if dl_device == (HOST, 0) and copy is not False:
            return self.download().__dlpack__()
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"{self.device.name}: the array does not go to DLPack's device {dl_device} as it is")
        if stream == 0:
            raise BufferError(f"{self.device.name}: stream must be None, -1, 1, 2 or the address of one, got 0")
        shared, settled = self, self.device.settled()
        if copy:
            shared = self.device.empty(self.shape, self.dtype)
            settled.copy(shared, self)
        if stream != -1:
            with self.device.current():
                _order(settled.stream.handle, LEGACY_STREAM if stream is None else stream)
        versioned = max_version is not None and max_version >= (1, 0)
        where = self.__dlpack_device__()
        return dlpack.capsule(shared, shared.handle, self.shape, self.dtype, where, versioned, bool(copy))

    def download(self) -> np.ndarray[Any, Any]:
        values = np.empty(self.shape, self.dtype)
        if values.nbytes:
            self.device.synchronize()
            with self.device.current():
                self.device.driver.memcpy_dtoh(values, self.handle)
        return values


class CudaFetch(Fetch):
    def __init__(self, stream: CudaStream, source: Array, staged: Staged):
        self._stream, self._source, self._staged = stream, source, staged
        self._values: np.ndarray[Any, Any] | None = None

    def get(self) -> np.ndarray[Any, Any]:
        if self._values is None:
            with self._stream.device.current():
                self._staged.event.synchronize()
            source = self._source
            self._values = self._staged.memory[: source.nbytes].view(source.dtype).reshape(source.shape).copy()
            self._stream.give_back(self._staged)
        return self._values


class CudaGraph(Graph):
    """``kept``: what captured work was given, so that its memory lives as long as the graph."""

    def __init__(self, origin: CudaStream, streams: list[Stream]):
        super().__init__(streams)
        self.origin = origin
        self.kept: list[Any] = []
        self._executable: Any = None
        with self.origin.device.current():
            self.origin.device.kernels.begin_capture(self.origin.stream.handle)

    def _end(self, failed: bool) -> None:
        end = self.origin.device.kernels.end_capture
        with self.origin.device.current():
            if failed:
                self.kept.clear()
                with suppress(RuntimeError):  # CUDA's own complaint about a capture that we break off
                    end(self.origin.stream.handle)
            else:
                self._executable = end(self.origin.stream.handle)

    def _replay(self) -> None:
        self.origin.device.launched.append("a captured step")
        with self.origin.device.current():
            self._executable.launch(self.origin.stream.handle)

    def __del__(self) -> None:
        if self._executable is not None:
            with self.origin.device.current():
                self._executable = None


class Staged:
    """A piece of page-locked memory and the event that ends its use."""

    def __init__(self, memory: Any, event: Any):
        self.memory, self.event = memory, event


class CudaStream(Stream):
    def __init__(self, device: CudaDevice):
        self.device: CudaDevice = device
        with device.current():
            self.stream = device.driver.Stream()
        self._spare_events: list[Any] = []
        # by size; in the order of their use, the longest ago first
        self._staged: defaultdict[int, deque[Staged]] = defaultdict(deque)
        self._staged_bytes = 0

    def _begin_capture(self, streams: list[Stream]) -> CudaGraph:
        devices = {stream.device for stream in streams}
        for one in devices:
            for other in devices - {one}:
                assert isinstance(one, CudaDevice) and isinstance(other, CudaDevice)
                if not one.reaches(other):
                    raise DeviceError(
                        f"{one.name} cannot reach the memory of {other.name}: their exchanges go through the host, "
                        "which no graph can hold; queue every step in the ordinary way"
                    )
        return CudaGraph(self, streams)

    def _keep(self, *arrays: Any) -> None:
        """Captured work needs its memory at every launch."""
        if isinstance(self.graph, CudaGraph):
            self.graph.kept.append(arrays)
        else:
            self.device.check_not_capturing("a stream that is not part of the capture cannot be used")

    def launch(self, kernel: Callable[..., None], *arguments: Any) -> None:
        if self.device.graph is not None:
            self._keep(*arguments)
        self.device.launched.append(kernel.__name__)
        with self.device.current():
            kernel(*map(handle, arguments), self.stream.handle)

    def copy(self, target: Array, source: Array) -> None:
        assert isinstance(target, CudaArray) and isinstance(source, CudaArray) and target.nbytes == source.nbytes
        if self.device.graph is not None:
            self._keep(target, source)
        if source.device is self.device or self.device.reaches(source.device):
            # One address space for all devices: the driver finds out whose memory it is. (memcpy_peer_async would
            # be the obvious call, but mishandles its contexts, and cannot be captured.)
            with self.device.current():
                self.device.driver.memcpy_dtod_async(target.handle, source.handle, target.nbytes, self.stream)
        else:
            self.synchronize()  # the events that order this copy are queued on this stream
            self.upload(target, source.download())

    def upload(self, target: Array, values: np.ndarray[Any, Any]) -> None:
        assert target.shape == values.shape and target.dtype == values.dtype
        self.device.check_not_capturing("nothing can be uploaded")
        with self.device.current():
            whole = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            for first in range(0, values.nbytes, PIECE_BYTES):
                piece = whole[first : first + PIECE_BYTES]
                staged = self._take(piece.size)
                part = staged.memory[: piece.size]
                np.copyto(part, piece)
                self.device.driver.memcpy_htod_async(target.handle + first, part, self.stream)
                staged.event.record(self.stream)
                self.give_back(staged)

    def fetch(self, source: Array) -> CudaFetch:
        self.device.check_not_capturing("nothing can be fetched")
        with self.device.current():
            staged = self._take(source.nbytes)
            self.device.driver.memcpy_dtoh_async(staged.memory[: source.nbytes], source.handle, self.stream)
            staged.event.record(self.stream)
        return CudaFetch(self, source, staged)

    def _take(self, nbytes: int) -> Staged:
        """Page-locked memory that nothing uses any more."""
        size = 1 << max(nbytes - 1, 255).bit_length()  # few sizes, so that the next use finds some
        free = self._staged[size]
        if free and (free[0].event.query() or self._staged_bytes + size > STAGED_BYTES):
            free[0].event.synchronize()
            return free.popleft()
        self._staged_bytes += size
        self.device.allocations += 1
        driver = self.device.driver
        return Staged(driver.pagelocked_empty(size, np.uint8), driver.Event(driver.event_flags.DISABLE_TIMING))

    def give_back(self, staged: Staged) -> None:
        """Its last use may still be under way: see its event."""
        self._staged[staged.memory.size].append(staged)

    def adopt(self, memory: CudaMemory) -> CudaArray:
        device = self.device
        device.check_not_capturing("memory of others cannot be taken in")
        if not device.holds(memory):
            raise ValueError(f"an array of {memory.size} values does not lie on {device.name}; copy it there")
        if any(step < 0 for step in memory.steps) or memory.address % memory.dtype.itemsize:
            raise ValueError(
                f"an array of shape {memory.shape} at {memory.address:#x} in steps of {memory.steps} values cannot be "
                "read as it is; make it contiguous"
            )
        if memory.stream == UNKNOWN_STREAM:
            device.synchronize()
        elif memory.stream is not None:
            with device.current():
                _order(memory.stream, self.stream.handle)
        first = memory.address // ALIGNMENT * ALIGNMENT
        last = sum((size - 1) * step for size, step in zip(memory.shape, memory.steps, strict=True))
        span = (memory.address - first) // memory.dtype.itemsize + last + 1
        return CudaArray(device, memory, first, (span,), memory.dtype)

    def record(self) -> CudaEvent:
        if self.graph is None:
            self.device.check_not_capturing("a stream that is not part of the capture cannot be used")
        with self.device.current():
            event = self._spare_events.pop() if self._spare_events else self.device.driver.Event()
            event.record(self.stream)
        marked = CudaEvent(event, self._spare_events)
        marked.graph = self.graph
        return marked

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.check_event(event)
        with self.device.current():
            self.stream.wait_for_event(event.event)

    def synchronize(self) -> None:
        self.device.check_not_capturing("nobody can wait for work")
        with self.device.current():
            self.stream.synchronize()


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
        self.kernels.set_programmatic_launches(switches.on("programmatic"))
        import pycuda.tools

        try:
            self.context = gpu.retain_primary_context()
        except self.driver.Error as error:  # in use by a process that wants it for itself, for example
            raise DeviceError(f"{self.name}: cannot be opened: {error}; see nvidia-smi") from error
        self.launched: deque[str] = deque(maxlen=8)  # kernels, the last ones
        self.dead = False  # nothing can be asked of it any more, not even to free memory
        self._peers: dict[int, bool] = {}
        self._allocated = 0
        self._streams: weakref.WeakSet[CudaStream] = weakref.WeakSet()
        self._settled: CudaStream | None = None
        with self.current():
            self._pool = pycuda.tools.DeviceMemoryPool()

    def current(self) -> AbstractContextManager[None]:
        """Makes this device's context current, for pycuda and the kernels alike; driver errors come out as
        ``DeviceError``. Inside another such statement it does nothing: a switch takes as long as queueing a kernel.
        """
        return _unchanged if _thread.device is self else _Switched(self)

    def lanes(self, N: int) -> int:
        return 64 if N >= 64 else -(-N // 8) * 8

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> CudaArray:
        self.check_not_capturing("nothing can be allocated")
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self.current():
            memory = self.driver.mem_alloc if nbytes > POOLED_BYTES else self._pool.allocate
            try:
                try:
                    owner = _Allocation(self, memory(max(nbytes, 1)), nbytes)
                except self.driver.MemoryError:
                    gc.collect()  # a network hangs together in circles: it may be closed, and its memory still there
                    self._pool.free_held()
                    owner = _Allocation(self, memory(max(nbytes, 1)), nbytes)
            except self.driver.MemoryError as error:
                free, total = self.driver.mem_get_info()
                raise OutOfMemory(
                    f"{self.name}: no memory for {nbytes / 1e6:.0f} MB: {free / 1e6:.0f} of {total / 1e6:.0f} MB are "
                    f"free, this process holds {self._allocated / 1e6:.0f} MB",
                    free + self._allocated,
                ) from error
        return CudaArray(self, owner, int(owner.memory), shape, dtype)

    def free(self) -> int:
        with self.current():
            return int(self.driver.mem_get_info()[0])

    def stream(self) -> CudaStream:
        stream = CudaStream(self)
        self._streams.add(stream)
        return stream

    def settled(self) -> CudaStream:
        """A stream of which later work starts when all that is queued on this device so far is done: the one that
        other libraries are told."""
        self.check_not_capturing("arrays cannot be shared")
        if self._settled is None:
            self._settled = CudaStream(self)
        for stream in list(self._streams):
            self._settled.wait(stream.record())
        return self._settled

    def holds(self, memory: CudaMemory) -> bool:
        """Raises ``ValueError`` where it lies on this GPU, but our kernels cannot read it."""
        index, theirs, ours = ctypes.c_int(-1), ctypes.c_void_p(), ctypes.c_void_p()
        address = ctypes.c_uint64(memory.address)
        with self.current():
            try:
                _ask("cuPointerGetAttribute", ctypes.byref(index), POINTER_DEVICE, address)
                _ask("cuPointerGetAttribute", ctypes.byref(theirs), POINTER_CONTEXT, address)
            except RuntimeError:  # memory that CUDA knows nothing of
                return False
            _ask("cuCtxGetCurrent", ctypes.byref(ours))
        if index.value == self.index and theirs.value not in (None, ours.value):
            raise ValueError(
                f"an array of {memory.size} values lies in another CUDA context of {self.name}; make it in the primary "
                "one, as PyTorch and CuPy do (pycuda: import pycuda.autoprimaryctx, not autoinit)"
            )
        return index.value == self.index

    def synchronize(self) -> None:
        self.check_not_capturing("nobody can wait for work")
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
        self.closed = True
        if self.dead:
            return
        with self.current():
            self.context.synchronize()
            self._pool.free_held()

    def failed(self, error: BaseException) -> Exception | None:
        """What to raise instead of ``error``, where the driver or CUDA's runtime raised it."""
        runtime = isinstance(error, RuntimeError) and "(CUDA error " in str(error)
        known = isinstance(error, (DeviceError, KernelFault))  # of another device, in whose context this happened
        if known or not (runtime or isinstance(error, self.driver.Error)):
            return None
        found = translated(self.name, str(error), self.launched)
        self.dead = self.dead or isinstance(found, (DeviceLost, KernelFault))
        return found


class _Thread(threading.local):
    device: CudaDevice | None = None  # whose context is current by our doing


_thread = _Thread()


class _Switched:
    """The context of ``device`` is current within; then again what was before."""

    def __init__(self, device: CudaDevice):
        self._device, self._outer = device, _thread.device

    def __enter__(self) -> None:
        self._device.context.push()
        _thread.device = self._device

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _thread.device = self._outer
        self._device.driver.Context.pop()
        if error is not None and (found := self._device.failed(error)):
            raise found from error


_unchanged = nullcontext()


class _Allocation:
    """A piece of device memory, freed in its own context when the last array in it is gone."""

    def __init__(self, device: CudaDevice, memory: Any, nbytes: int):
        self.device, self.memory, self.nbytes = device, memory, nbytes
        device._allocated += nbytes
        device.allocations += 1

    def __del__(self) -> None:
        self.device._allocated -= self.nbytes
        with self.device.current(), suppress(self.device.driver.Error):  # it is told at the next call that can raise
            self.memory.free()


def open_cuda(index: int) -> CudaDevice:
    """Opens "cuda:index". Raises ``DeviceError`` with the reason when that is not possible."""
    reason = unavailable()
    if reason:
        raise DeviceError(reason)
    return CudaDevice(index)
