"""matplotlib, whatever its user's settings are: imported where they are broken too, and drawing with its own.

Settings come from ``MPLBACKEND`` (every notebook sets it, also for programs whose environment lacks that backend) and
from the first matplotlibrc in the working directory, where ``MATPLOTLIBRC`` says, and in the home. Some of them end the
import with an error. Programs that draw themselves keep theirs: they are set aside while a figure of ours is drawn.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def _import() -> None:
    """Imports matplotlib. Raises what its import raises, unless that comes from the settings."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        try:
            import matplotlib.figure
        except Exception:
            for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
                del sys.modules[name]  # half of what was imported
            with _own_matplotlibrc():
                import matplotlib.figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):  # as matplotlib would have, had it been able to
            matplotlib.rcParams["backend"] = backend


@contextmanager
def _own_matplotlibrc() -> Iterator[None]:
    """The file that comes with matplotlib is in the working directory, where matplotlib looks first."""
    spec = find_spec("matplotlib")
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        if spec is not None and spec.origin:
            os.chdir(Path(spec.origin).parent / "mpl-data")
        yield
    finally:
        os.fchdir(before)
        os.close(before)


if "matplotlib" not in sys.modules:
    _import()

from matplotlib import MatplotlibDeprecationWarning, rc_context, rcParams, rcParamsDefault  # noqa: E402

# Without "backend", which looks for a window system; files need none. From the dict itself: a look-up warns of old
# names.
DEFAULTS: dict[Any, Any] = {key: value for key, value in dict.items(rcParamsDefault) if key != "backend"}


@contextmanager
def own_settings(style: dict[Any, Any]) -> Iterator[None]:
    """While entered, matplotlib draws with its defaults and ``style``; then again as before."""
    with rc_context():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MatplotlibDeprecationWarning)
            rcParams.update(DEFAULTS)
        rcParams.update(style)
        yield
