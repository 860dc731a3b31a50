"""A folder of runs and the page that shows it, for the tests of both."""

from __future__ import annotations

import asyncio
import io
import logging
import shutil
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import httpx
import numpy as np
from PIL import Image
from runs import straight_run

from convnet.explore.server import Page
from convnet.training.trained import load_trained

LOAD = partial(load_trained, warn=logging.getLogger("convnet").warning)


def copy_run(folder: Path, name: str = "first") -> Path:
    """A run with checkpoints, in ``folder``."""
    return Path(shutil.copytree(straight_run(), folder / name, symlinks=True))


def png(seed: int = 0, size: tuple[int, int] = (50, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


HOME = "http://127.0.0.1:8012"
OWN = {"origin": HOME}  # what a browser says of the page itself


class Client:
    """Asks a page without a socket, each time to the end of the answer."""

    def __init__(self, page: Page):
        self.page = page
        self._application = page.application(8012)
        self._transport = httpx.ASGITransport(self._application, raise_app_exceptions=False)

    def request(self, method: str, address: str, **options) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url=HOME, timeout=300) as client:
                return await client.request(method, address, **options)

        return asyncio.run(ask())

    def get(self, address: str, **options) -> httpx.Response:
        return self.request("GET", address, **options)

    def post(self, address: str, **options) -> httpx.Response:
        return self.request("POST", address, headers=OWN, **options)

    def raw(self, address: str) -> httpx.Response:
        """A GET of this very address, as uvicorn would hand it on: httpx tidies addresses up first."""
        messages: list[dict] = []

        async def receive() -> dict:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict) -> None:
            messages.append(message)

        path, _, query = address.partition("?")
        scope = {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http"},
            **{"path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": ""},
            **{"headers": [(b"host", HOME[7:].encode())], "client": ("127.0.0.1", 9), "server": ("127.0.0.1", 8012)},
        }
        asyncio.run(self._application(scope, receive, send))
        content = b"".join(message.get("body", b"") for message in messages[1:])
        return httpx.Response(messages[0]["status"], content=content)
