"""The page on a socket, until somebody ends it."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from ..training.trained import Trained
from .server import Page


def serve(path: Path, listener: socket.socket, load: Callable[[Path], Trained]) -> None:
    """Answers on ``listener``, which is bound, until a signal comes. ``load`` loads a run."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # of requests that are none, and of readers that went away
    page = Page(path, load, lambda: server.should_exit)
    config = uvicorn.Config(
        page.application(listener.getsockname()[1]),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    try:
        with _hung_up(server):
            server.run(sockets=[listener])
    finally:
        page.study.close()


@contextmanager
def _hung_up(server: uvicorn.Server) -> Iterator[None]:
    """SIGHUP ends the server as the signals do that it knows itself: readers are let go, then the signal counts."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        yield
        return
    seen: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        server.should_exit = True

    signal.signal(signal.SIGHUP, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
    for number in seen[:1]:
        signal.raise_signal(number)
