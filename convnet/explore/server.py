"""The page: what is asked over HTTP, by browsers of this machine alone.

Who asks must name this machine in the ``Host`` header, so that no other site's name can be made to stand for it; a page
of another site gets nothing, not even a picture to embed, and cannot send one. Runs are called by ids from a listing,
pictures of the data by their numbers: no part of an address becomes a path.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..analysis import glass, glass_text
from ..data import BadImage, DataError
from ..data.images import MAX_BYTES, decode_square
from ..devices.protocol import DeviceError
from ..interop.files import WeightsError
from ..kernels.precision import PRECISIONS
from ..network.spec import placed_layers
from ..training.checkpoint import CheckpointError
from ..training.trained import Trained
from ..version import __version__
from . import looks
from .listing import Listing, Run, Watch
from .study import Forgotten, Study, Subject, sentence

HERE = Path(__file__).parent
ASSETS = {"style.css": "text/css", "explore.js": "text/javascript", "icon.svg": "image/svg+xml"}
EXAMPLES = 12  # pictures to begin with
PERIOD = 0.5  # seconds between two looks at what runs write
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
# what a person can do something about; everything else is a mistake of ours
TOLD = (CheckpointError, DataError, WeightsError, DeviceError, ValueError, OSError, MemoryError)


class Refused(Exception):
    """With the HTTP status and a sentence."""

    def __init__(self, status: int, told: str):
        super().__init__(told)
        self.status = status


class Guard:
    """Around the whole application: lets in who may ask, and says to browsers what they may do with the answers."""

    def __init__(self, app: ASGIApp, port: int):
        self.app = app
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if port == 80:
            self.hosts |= {"127.0.0.1", "localhost"}

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        told = dict(headers)
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return 421, f"this page is for this machine alone: ask for http://{min(self.hosts)}/"
        if told.get("sec-fetch-site", "none") not in ("none", "same-origin") and (
            told.get("sec-fetch-mode") != "navigate" or scope["method"] != "GET"
        ):
            return 403, "another site asked for this, and gets nothing"
        if scope["method"] not in ("GET", "HEAD") and told.get("origin") != f"http://{hosts[0]}":
            return 403, "only this page itself may send something here"
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # there is nothing else here

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        if refused := self.refusal(scope):
            await _told(*refused)(scope, receive, with_headers)
        else:
            await self.app(scope, receive, with_headers)


def _told(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


class Page:
    """The application for the runs at ``path``, which ``load`` loads; ``closing`` tells that the server ends."""

    def __init__(self, path: Path, load: Callable[[Path], Trained], closing: Callable[[], bool] = lambda: False):
        self.listing = Listing(path)
        self.study = Study(load)
        self.closing = closing
        self.assets = {name: (HERE / "static" / name).read_bytes() for name in ASSETS}
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
        )

    def application(self, port: int) -> ASGIApp:
        routes = [
            Route("/", self.front),
            Route("/static/{name}", self.asset),
            Route("/live", self.live),
            Route("/kernels", self.kernels),
            Route("/runs/{run}", self.run),
            Route("/runs/{run}/live", self.live),
            Route("/runs/{run}/about", self.about),
            Route("/runs/{run}/examples", self.examples),
            Route("/runs/{run}/pictures/{split}/{index}.png", self.picture),
            Route("/runs/{run}/look", self.look_at_sent, methods=["POST"]),
            Route("/runs/{run}/look/{split}/{index}", self.look_at_stored),
            Route("/runs/{run}/seen/{token}/occlusion", self.occlusion),
            Route("/runs/{run}/seen/{token}/neighbours", self.neighbours),
            Route("/runs/{run}/confusion", self.confusion),
        ]
        handlers: dict[Any, Any] = {kind: _explain for kind in (Refused, Forgotten, BadImage, *TOLD)}
        handlers[404] = handlers[405] = _unknown
        handlers[Exception] = _mistake
        return Guard(Starlette(routes=routes, exception_handlers=handlers), port)

    # ---- pages

    def _html(self, template: str, **values: Any) -> Response:
        text = self.templates.get_template(template).render(version=__version__, **values)
        return Response(text, media_type="text/html")

    async def front(self, request: Request) -> Response:
        runs = self.listing.runs()
        if self.listing.alone and runs:
            return RedirectResponse(f"/runs/{next(iter(runs))}")
        return self._html("runs.html", folder=self.listing.path.name)

    async def run(self, request: Request) -> Response:
        run = self._run(request)
        return self._html("run.html", run=run, alone=self.listing.alone)

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.assets:
            raise Refused(404, "there is no such page")
        return Response(self.assets[name], media_type=ASSETS[name])

    async def kernels(self, request: Request) -> Response:
        """A form, and what came out of it. A link on another site's page fills the form in; nothing is run for that."""
        asked = {name: request.query_params.get(name, "") for name in ("op", "precision", "sizes", "without")}
        text = error = ""
        if asked["op"] and request.headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            try:
                text = await run_in_threadpool(_under_glass, **asked)
            except (ValueError, DeviceError) as refused:
                error = sentence(refused)
        names = {"names": glass.NAMES, "precisions": PRECISIONS}
        return self._html("kernels.html", **asked, **names, text=text, error=error)

    # ---- runs

    def _run(self, request: Request) -> Run:
        run = self.listing.runs().get(request.path_params["run"])
        if run is None:
            raise Refused(404, "there is no such run; it may have been moved or renamed")
        return run

    async def _subject(self, request: Request) -> Subject:
        run = self._run(request)
        return await run_in_threadpool(self.study.subject, run)

    async def live(self, request: Request) -> Response:
        """Server-sent events: ``runs`` and ``records``, as ``Watch`` tells them, until the reader goes away."""
        watch = Watch(self.listing, self._run(request).id if "run" in request.path_params else None)

        async def events() -> AsyncIterator[str]:
            silent = 0
            yield "retry: 1000\n\n"
            while not self.closing():
                news = await run_in_threadpool(lambda: list(watch.news()))
                for event, told in news:
                    yield f"event: {event}\ndata: {json.dumps(told)}\n\n"
                silent = 0 if news else silent + 1
                if silent % 20 == 19:
                    yield ": nothing new\n\n"  # which finds out whether anybody is left
                await asyncio.sleep(PERIOD)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def about(self, request: Request) -> Response:
        try:
            subject = await self._subject(request)
        except CheckpointError as error:  # of a run that has just begun: nothing is wrong
            return JSONResponse({"waiting": sentence(error)})
        return JSONResponse(await run_in_threadpool(_about, subject))

    async def examples(self, request: Request) -> Response:
        subject = await self._subject(request)
        pictures = await run_in_threadpool(subject.examples, EXAMPLES)
        return JSONResponse({"pictures": pictures, "notes": subject.dataset().notes})

    # ---- pictures

    async def _stored(self, request: Request, subject: Subject) -> tuple[Any, str]:
        split, index = request.path_params["split"], request.path_params["index"]
        if split not in ("train", "val") or not (index.isascii() and index.isdigit() and len(index) < 12):
            raise Refused(404, "there is no such picture")
        try:
            return await run_in_threadpool(subject.picture, split, int(index))
        except LookupError as error:
            raise Refused(404, f"there is no such picture: {error}") from None

    async def picture(self, request: Request) -> Response:
        pixels, _ = await self._stored(request, await self._subject(request))
        return Response(_png(pixels), media_type="image/png")

    async def look_at_stored(self, request: Request) -> Response:
        subject = await self._subject(request)
        pixels, label = await self._stored(request, subject)
        return await self._look(subject, pixels, label)

    async def look_at_sent(self, request: Request) -> Response:
        subject = await self._subject(request)
        raw = await _body(request)
        size, depth = subject.trained.image_size, subject.trained.depth
        pixels = await run_in_threadpool(decode_square, io.BytesIO(raw), size, depth)
        return await self._look(subject, pixels, None)

    async def _look(self, subject: Subject, pixels: Any, truth: str | None) -> Response:
        token, found = await run_in_threadpool(subject.look, pixels)
        return JSONResponse({"token": token, "truth": truth, **_look(found, subject.trained.classes)})

    async def occlusion(self, request: Request) -> Response:
        subject = await self._subject(request)
        falls = await run_in_threadpool(subject.occlusion, request.path_params["token"])
        side, _ = looks.places(subject.spec.crop)
        return JSONResponse(
            {
                "square": side,
                "maps": [{"largest": float(fall.max()), **_signed(fall)} for fall in falls],
            }
        )

    async def neighbours(self, request: Request) -> Response:
        subject = await self._subject(request)
        return JSONResponse(await run_in_threadpool(subject.neighbours, request.path_params["token"]))

    async def confusion(self, request: Request) -> Response:
        subject = await self._subject(request)
        return JSONResponse(await run_in_threadpool(subject.confusion))


# ---- errors


async def _explain(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refused) else 410 if isinstance(error, Forgotten) else 422
    text = sentence(error)
    return _told(status, f"this picture cannot be read: {text}" if isinstance(error, BadImage) else text)


async def _unknown(request: Request, error: Exception) -> Response:
    return _told(getattr(error, "status_code", 404), "there is no such page")


async def _mistake(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return _told(500, f"{type(error).__name__}: {sentence(error)} (a mistake of ours; the terminal says where)")


async def _body(request: Request) -> bytes:
    """What was sent, at most ``MAX_BYTES``: no more is read."""
    parts, length = [], 0
    too_long = Refused(413, f"this picture is too large; the limit is {MAX_BYTES:,} bytes")
    if int(request.headers.get("content-length") or 0) > MAX_BYTES:
        raise too_long
    try:
        async for part in request.stream():
            length += len(part)
            if length > MAX_BYTES:
                raise too_long
            parts.append(part)
    except ClientDisconnect:
        raise Refused(400, "the picture did not come whole") from None
    return b"".join(parts)


# ---- arrays for the page


def _bytes(values: Any) -> str:
    return base64.b64encode(np.asarray(values, np.uint8).tobytes()).decode()


def _signed(values: Any, scale: float | None = None) -> dict[str, Any]:
    """Numbers as bytes: 128 is 0, and 255 is ``scale``, else the largest size."""
    scale = scale or max(float(np.abs(values).max()), 1e-30)
    return {"scale": scale, "values": _bytes(np.rint(128 + 127 * np.clip(values / scale, -1, 1)))}


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _under_glass(op: str, precision: str, sizes: str, without: str) -> str:
    if without and not (without.isascii() and without.isdigit()):
        raise ValueError(f"the call to leave out is a number in the list of calls, not {without!r:.40}")
    return glass_text.as_text(glass.look(op, sizes, precision or "fp32", int(without) if without else None))


def _about(subject: Subject) -> dict[str, Any]:
    trained, spec = subject.trained, subject.spec
    name = spec.layers[0].name
    weights = trained.weights[f"{name}.weight"]
    towers = []
    for own in looks.halves(weights, spec):
        scaled = own / np.maximum(np.abs(own).max(axis=(1, 2, 3), keepdims=True), 1e-30)
        towers.append(
            {
                "filters": len(own),
                "pixels": _bytes(np.rint(127.5 + 127.5 * scaled.transpose(0, 2, 3, 1))),
                "colour": [round(float(c), 4) for c in looks.colour_of_filters(own)],
            }
        )
    layers = [*placed_layers(spec)]
    return {
        "network": spec.name,
        "parameters": sum(placed.parameters for placed in layers),
        "step": trained.step,
        "stamp": subject.stamp,
        "crop": spec.crop,
        "classes": len(trained.classes),
        "towers": towers,
        "filters": {"layer": name, "side": weights.shape[2]},
        "crossing": [
            {"layer": placed.layer.name, "bytes": nbytes}
            for placed in layers
            if (nbytes := looks.crossing(placed, spec))
        ],
        "data": trained.data is not None,
        "limit": MAX_BYTES,
    }


def _look(found: looks.Look, classes: list[str]) -> dict[str, Any]:
    return {
        "side": len(found.seen),
        "seen": _bytes(found.seen),
        "drawn": [_bytes(pixels) for pixels in found.drawn],
        "guesses": [{"label": classes[k], "probability": p} for k, p in found.guesses],
        "layers": [_layer(layer) for layer in found.layers],
    }


def _layer(layer: looks.Layer) -> dict[str, Any]:
    """Maps of all towers on one scale, so that they can be compared."""
    scale = max(*(float(np.abs(block.values).max()) for block in layer.blocks), 1e-30)
    _, height, width = layer.blocks[0].values.shape
    return {
        **{"name": layer.name, "what": layer.what, "crossing": layer.crossing},
        **{"height": height, "width": width, "largest": scale},
        "towers": [
            {
                "maps": len(block.values),
                "values": _signed(block.values, scale)["values"],
                "share": block.share,
                "colour": block.colour,
                "strongest": block.strongest,
            }
            for block in layer.blocks
        ],
    }
