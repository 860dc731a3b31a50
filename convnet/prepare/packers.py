"""The worker processes of ``convnet-prepare``, and the signals that ask it to stop."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
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
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()

    def packed(task: Task) -> Packed:
        try:
            worker = idle.get_nowait()
        except queue.Empty:  # of as many threads as there are to be workers, this one has none yet
            worker = Worker()
        try:
            return worker.pack(task)
        finally:
            idle.put(worker)

    # Ctrl-C is the parent's business: a worker inherits from the thread that starts it that SIGINT is blocked. (The
    # first start of all would start the tracker, too, which unblocks it.)
    resource_tracker.ensure_running()
    pool = ThreadPoolExecutor(workers, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT}))
    waiting: deque[Future[Packed]] = deque()
    try:
        while True:
            for task in islice(tasks, AHEAD * workers - len(waiting)):
                waiting.append(pool.submit(packed, task))
            if not waiting:
                return
            while not stop[0] and not wait([waiting[0]], 0.2).done:
                pass
            if stop[0]:
                raise Stopped
            yield waiting.popleft().result()
    except (Lost, MemoryError) as error:
        if stop[0]:
            raise Stopped from error
        raise RuntimeError(
            "a worker process was lost or ran out of memory; finished shards are kept: run the same command again, "
            "with a smaller -j if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        while not idle.empty():
            idle.get().close()


class Lost(Exception):
    """A worker ended before it had handed over what it was asked for."""


class Worker:
    """A process that packs. Its pipe is its own, and whoever of the two ends leaves the other at the end of a file:
    where several write to one pipe and one of them is killed half-way through, its reader waits for the rest for ever
    (``concurrent.futures`` has such a pipe, and did)."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def pack(self, task: Task) -> Packed:
        """Raises ``Lost``, and what ``pack`` raised there."""
        try:
            self._connection.send(task)
            found = self._connection.recv()
        except (EOFError, OSError) as error:  # before a message, or half-way through
            raise Lost from error
        if isinstance(found, Packed):
            return found
        raise found

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection: Connection) -> None:
    """What a worker does until its parent has ended or closed the pipe, however that came to be."""
    ignore_warnings(verbose=False)
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        found: Packed | Exception
        try:
            found = pack(task)
        except Exception as error:
            found = error
        try:
            connection.send(found)
        except OSError:
            return


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
