"""``convnet-explore``"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import DONE, Parser, guarded, tolerate_encoding, weights_options

HOST = "127.0.0.1"  # nobody else is to see the page
PORTS = range(8012, 8032)  # the first free one is taken


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        "convnet-explore",
        "Opens a page in the browser, for this machine alone: curves of runs while they train, and what a network\n"
        "makes of a picture that you drop on it: classes, the maps of both towers, the pixels that matter, the\n"
        "nearest training pictures. RUN is a run folder, a folder of some, a checkpoint, or a file of weights.",
        "convnet-explore runs/first",
    )
    parser.add_argument("run", nargs="?", default="runs", metavar="RUN", help="what to show (default: runs)")
    parser.add_argument(
        "--port", type=int, metavar="P", help=f"where the page is (default: the first free one from {PORTS[0]} on)"
    )
    weights_options(parser)
    parser.add_argument("--no-browser", action="store_true", help="open none; say where the page is")
    chosen = parser.parse_args(arguments)
    tolerate_encoding()

    def work() -> int:
        path = Path(chosen.run)
        _check(path, chosen.port)
        try:
            from ..explore.serving import serve
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in ("starlette", "uvicorn", "jinja2", "anyio", "h11"):
                raise ValueError(
                    f'the page needs Starlette, uvicorn and jinja2 ({error}): pip install "convnet[explore]"'
                ) from error
            raise
        from ..training.trained import load_trained

        with _listening(chosen.port) as listener:
            address = f"http://{HOST}:{listener.getsockname()[1]}/"
            print(f"{path} is shown at {address} (Ctrl-C ends it)", flush=True)
            if not chosen.no_browser and _has_display():
                threading.Thread(target=_open, args=(address,), daemon=True).start()
            serve(path, listener, partial(load_trained, warn=_warn, model=chosen.model, classes=chosen.classes))
        return DONE

    return guarded(parser.prog, chosen.verbose, work)


def _check(path: Path, port: int | None) -> None:
    """Raises ``ValueError`` and ``CheckpointError`` before anything is served."""
    from ..training.checkpoint import CheckpointError
    from ..training.run import alike

    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"--port must be 1 to 65535, got {port}")
    if not path.exists():
        told = "; convnet-train makes one" if str(path) == "runs" else alike(path)
        raise CheckpointError(f"{path}: there is no such run, nor a folder of runs{told}")


def _listening(port: int | None) -> socket.socket:
    """A socket of this machine alone, at ``port`` or the first free one of ``PORTS``. Raises ``ValueError``."""
    for candidate in PORTS if port is None else [port]:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror
    if port is None:
        raise ValueError(f"the ports {PORTS[0]} to {PORTS[-1]} are all taken; name a free one with --port")
    raise ValueError(f"--port {port} cannot be had ({reason}); name another, or leave it out for the first free one")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _has_display() -> bool:
    """A browser without one would take over the terminal."""
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _open(address: str) -> None:
    import webbrowser

    webbrowser.open(address)


if __name__ == "__main__":
    raise SystemExit(main())
