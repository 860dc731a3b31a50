"""Runs NumPy work of the "cpu" device on all cores: a loop over independent tasks, and scratch memory per thread.

NumPy's copies, ufuncs and matrix products release the interpreter lock, so plain threads suffice. While a loop runs,
BLAS is limited to one thread per call: every result then depends on the tasks alone, not on how many cores took part.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

_blas = ThreadpoolController().select(user_api="blas")
_one_loop_at_a_time = threading.Lock()
_executor: ThreadPoolExecutor | None = None
_executor_threads = 0
_local = threading.local()


def _forget_threads() -> None:
    """Threads do not survive a fork: the child starts its own."""
    global _executor, _executor_threads, _one_loop_at_a_time
    _executor, _executor_threads, _one_loop_at_a_time = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def threads() -> int:
    """How many threads a loop uses: as many as BLAS may (OPENBLAS_NUM_THREADS, threadpoolctl), else all cores."""
    allowed = [library["num_threads"] for library in _blas.info()]
    return max(allowed) if allowed else (os.cpu_count() or 1)


def run(count: int, task: Callable[[int], None]) -> None:
    """Calls ``task(0)`` ... ``task(count - 1)`` on several threads, each index once, in any order.

    Tasks must write to different memory and must not call ``run``. The first exception is raised here, after the rest
    has been called off.
    """
    global _executor, _executor_threads
    if count == 0:
        return
    with _one_loop_at_a_time:
        helpers = min(threads(), count) - 1
        indices = itertools.count()
        stopped = threading.Event()

        def work() -> None:
            try:
                with np.errstate(all="ignore"):  # NaN and infinity are values like any other, as on a GPU
                    while not stopped.is_set() and (index := next(indices)) < count:
                        task(index)
            except BaseException:
                stopped.set()
                raise

        with _blas.limit(limits=1):
            if helpers < 1:
                work()
                return
            if _executor is None or _executor_threads < helpers:
                _executor, _executor_threads = ThreadPoolExecutor(helpers, "convnet-cpu"), helpers
            pending = [_executor.submit(work) for _ in range(helpers)]
            try:
                work()
            finally:
                errors = [future.exception() for future in pending]
        for error in errors:
            if error is not None:
                raise error


def scratch(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Uninitialised memory of this thread, the same for the same ``name`` in every call: for use inside one task."""
    buffers: dict[str, np.ndarray[Any, Any]] = _local.__dict__
    wanted = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * wanted.itemsize
    if name not in buffers or buffers[name].nbytes < nbytes:
        buffers[name] = np.empty(nbytes, np.uint8)
    memory: np.ndarray[Any, Any] = buffers[name][:nbytes].view(wanted).reshape(shape)
    return memory
