"""The page on a socket, until somebody ends it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path

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
        server.run(sockets=[listener])
    finally:
        page.study.close()
