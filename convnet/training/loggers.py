"""Where a run's records and filters go besides its folder's own files: ``--log``."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .metrics import MetricsFile

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

NONE, TENSORBOARD = "none", "tensorboard"
MAGNIFIED = 4  # times: filters have few pixels


class Logger(Protocol):
    """Made with the run's folder (``Path``), its settings (as in ``config.toml``) and the step it begins at. In a
    resumed run it may know of later steps: these are done anew, and told again.

    Whatever one raises is a warning, and the run goes on without it.
    """

    def record(self, record: dict[str, Any]) -> None:
        """One of ``metrics.jsonl``: its event (start, train, valid or end), step, epoch and numbers."""
        ...

    def picture(self, name: str, step: int, pixels: Pixels) -> None:
        """A picture as uint8 (height, width, 3): the filters that read the images, at the start and after every
        evaluation."""
        ...

    def close(self) -> None:
        """Nothing more comes; not called where the process is killed."""
        ...


Kind = Callable[[Path, dict[str, Any], int], Logger]


class TensorBoard:
    """Event files in the run's ``tensorboard`` folder, a new one whenever the run begins or goes on."""

    def __init__(self, folder: Path, settings: dict[str, Any], step: int):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._summary, self._event = summary, event_pb2.Event
        (folder / "tensorboard").mkdir(exist_ok=True)
        # the name sorts behind those of before, which begins with the whole seconds alone
        self._file = EventsWriter(str(folder / "tensorboard" / "events"), f".{time.time_ns()}")
        # TensorBoard forgets what it was told of this step and later ones: what there is of this one is told again
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step, session_log=start)
        for record in MetricsFile(folder / "metrics.jsonl").records():
            if record.get("step") == step:
                self.record(record)

    def record(self, record: dict[str, Any]) -> None:
        event = record["event"]
        if event not in ("train", "valid"):
            return
        names = ("loss", "top1_error", "top5_error", "lr", "images_per_second", "data_share")
        values = [self._summary.scalar(f"{name}/{event}", record[name]).value for name in names if name in record]
        self._write(record["step"], summary=self._summary.Summary(value=[one for value in values for one in value]))

    def picture(self, name: str, step: int, pixels: Pixels) -> None:
        self._write(step, summary=self._summary.image(name, pixels, dataformats="HWC"))

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, **what: Any) -> None:
        """In the file when this returns, as a record of ``metrics.jsonl`` is."""
        self._file.write_event(self._event(wall_time=time.time(), step=step, **what))
        self._file.flush()


class Loggers:
    """Those of a run. One that fails is warned about once and left out from there on."""

    def __init__(self, kinds: dict[str, Kind], warn: Callable[[str], None]):
        self._kinds, self._warn = kinds, warn
        self._open: dict[str, Logger] = {}

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *_: Any) -> None:
        self._tell(lambda logger: logger.close())

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, folder: Path, settings: dict[str, Any], step: int) -> None:
        for name, kind in self._kinds.items():
            with self._guarded(name):
                self._open[name] = kind(folder, settings, step)

    def record(self, record: dict[str, Any]) -> None:
        self._tell(lambda logger: logger.record(dict(record)))

    def filters(self, name: str, filters: np.ndarray[Any, Any], towers: int, step: int) -> None:
        """Those that read the images, the weights called ``name``, float32 (K, 3, R, S)."""

        def show(logger: Logger) -> None:
            from ..output.figures import filter_sheet

            sheet, _ = filter_sheet(filters, towers)
            pixels = np.rint(255 * sheet.clip(0, 1)).astype(np.uint8)
            logger.picture(name.partition(".")[0], step, pixels.repeat(MAGNIFIED, axis=0).repeat(MAGNIFIED, axis=1))

        self._tell(show)

    def _tell(self, what: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            with self._guarded(name):
                what(logger)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            told = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"--log {name}: {told}; nothing more is logged there")


def chosen(log: str | None, asked: bool, warn: Callable[[str], None]) -> dict[str, Kind]:
    """The loggers that ``log`` names, none of them made yet. Those of users are imported where the command line
    ``asked`` for them alone: a checkpoint or a file of options that came from elsewhere runs nothing.

    Raises ``ValueError`` for those that there are not, before anything starts.
    """
    kinds: dict[str, Kind] = {}
    for name in (NONE if log is None else log).split(","):
        name = name.strip()
        if name == NONE:
            continue
        if name == TENSORBOARD:
            try:
                importlib.import_module("tensorboardX")
            except ImportError as error:
                raise ValueError(
                    f'--log {name}: tensorboardX is needed ({error}): pip install "convnet[tensorboard]"'
                ) from error
            kinds[name] = TensorBoard
        elif ":" not in name:
            raise ValueError(
                f"--log must be {TENSORBOARD}, {NONE}, or MODULE:CLASS for a logger of your own, got {name!r}"
            )
        elif asked:
            kinds[name] = _imported(name)
        else:
            warn(f"--log {name!r:.80}: not imported, since a file says so; name it on the command line to have it")
    return kinds


def _imported(name: str) -> Kind:
    """MODULE:CLASS, from where Python finds modules or from the folder that the command was started in."""
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.append(here)  # an installed command does not look there
    try:
        kind: Kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"--log {name}: cannot be imported from here: {told}; give MODULE:CLASS") from error
    finally:
        sys.path.remove(here)
    if not callable(kind):
        raise ValueError(f"--log {name}: a class is expected there, found {type(kind).__name__}")
    return kind
