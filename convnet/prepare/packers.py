"""The worker processes of ``convnet-prepare``, and the signals that ask it to stop."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any

from ..data.packing import Packed, Task, pack
from ..output.console import ignore_warnings

AHEAD = 3  # tasks per worker that wait for it or for their turn to be written


class Stopped(Exception):
    """SIGINT or SIGTERM came."""


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(tasks: Iterator[Task], workers: int, stop: list[int]) -> Generator[Packed, None, None]:
    """What ``pack`` makes of every task, in their order; in this process where there is one worker.

    Raises ``Stopped`` where ``stop`` says so. Processes rather than threads: Pillow's files and NumPy's sums
    hold the interpreter lock for a part of every image.
    """
    if workers == 1:
        for task in tasks:
            if stop[0]:
                raise Stopped
            yield pack(task)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    waiting: deque[Future[Packed]] = deque()
    try:
        while True:
            for task in islice(tasks, AHEAD * workers - len(waiting)):
                waiting.append(_submit(pool, task))
            if not waiting:
                return
            while not stop[0] and not wait([waiting[0]], 0.2).done:
                pass
            if stop[0]:
                raise Stopped
            yield waiting.popleft().result()
    except (BrokenProcessPool, MemoryError) as error:
        if stop[0]:
            raise Stopped from error
        raise RuntimeError(
            "a worker process was lost or ran out of memory; finished shards are kept: run the same command again, "
            "with a smaller -j if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Packed]:
    """Ctrl-C is the parent's business: a worker, which a submission may start, inherits that SIGINT is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(pack, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """A worker ends with its parent, however that ended, and says as little."""
    ignore_warnings(verbose=False)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def stop_request() -> Iterator[list[int]]:
    """While entered, the first SIGINT or SIGTERM is only noted, as its number in the list; a second ends at once."""
    stop = [0]
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        stop[0] = number
        for one in before:
            signal.signal(one, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
