"""The folder of a training run, the checkpoint a run goes on from, and the signals that ask a run to stop."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

import numpy as np

from ..data import DataSet, LeftOut, Split, Statistics
from ..data.minibatches import Minibatches
from ..network.networks import network
from ..network.spec import NetworkSpec, parameter_shapes
from ..output.files import lock, printable, write_atomically
from . import checkpoint
from .checkpoint import Checkpoint, CheckpointError
from .config import BEFORE, Config, changed_fixed
from .metrics import MetricsFile
from .schedule import Stage, stages_of


def holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("metrics.jsonl", "config.toml", "checkpoints"))


def alike(folder: Path | None) -> str:
    """The run that was perhaps meant by the name of a folder without one, in words."""
    try:
        runs = [entry.name for entry in folder.parent.iterdir() if holds_run(entry)] if folder else []
    except OSError:
        return ""
    close = difflib.get_close_matches(folder.name, runs, 1) if folder else []
    return f" (did you mean {folder.parent / close[0]}?)" if folder and close else ""


def default_folder(config: Config) -> Path:
    """runs/NETWORK-DATA-TIME, with a counter behind it where that exists."""
    data = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(config.data).name.split(".")[0]).strip("-") or "data"
    wanted = Path("runs") / f"{config.model}-{data}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, count = wanted, 1
    while folder.exists():
        count += 1
        folder = wanted.with_name(f"{wanted.name}-{count}")
    return folder


def frozen_layers(config: Config, stage: Stage) -> list[str]:
    """Those that the options or the stage keep as they are."""
    chosen = [name.strip() for name in (config.freeze or "").split(",")]
    return [*filter(None, chosen), *stage.frozen]


def check_layers(spec: NetworkSpec, config: Config) -> None:
    """Raises ``ValueError`` where an option names a layer that the network does not have, or freezes all."""
    layers = [name.removesuffix(".weight") for name in parameter_shapes(spec) if name.endswith(".weight")]
    for stage in stages_of(config.stages or []) or [Stage(0, 1.0)]:
        frozen = set(frozen_layers(config, stage))
        if unknown := sorted(frozen - set(layers)):
            raise ValueError(f'freeze: no layer with weights is called "{unknown[0]}"; there are {", ".join(layers)}')
        if frozen == set(layers):
            raise ValueError("freeze: all layers are frozen; leave at least one to learn")
        if unknown := sorted(stage.layers.keys() - set(layers)):
            raise ValueError(f"stages: no layer is called {unknown[0]!r}; there are {', '.join(layers)}")


class RunFolder:
    """An open run folder, held against other processes until ``close``."""

    def __init__(self, path: Path):
        """Makes the folder where it is missing. Raises ``ValueError`` when it cannot be used."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = MetricsFile(path / "metrics.jsonl")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            self.log: IO[str] = open(path / "log.txt", "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        except OSError as error:
            raise ValueError(f"-o {path}: cannot be used as run folder: {error.strerror}") from error
        if not lock(self._lock):
            self.close()
            raise ValueError(f"-o {path}: another process is training there; choose another folder")
        for leftover in [*path.glob("*.tmp"), *self.checkpoints.glob("*.tmp")]:
            leftover.unlink(missing_ok=True)

    def close(self) -> None:
        self.log.close()
        os.close(self._lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def rewind(self, step: int, evaluated: bool) -> None:
        """Makes the folder that of a run which stands at ``step``: records behind it go, checkpoints are set aside."""
        self.metrics.rewind(step, evaluated)
        for path in checkpoint.files(self.checkpoints):
            if int(path.stem.partition("-")[2]) > step:
                path.rename(path.with_name(path.name + ".unused"))

    def list_left_out(self, left_out: Sequence[LeftOut], splits: Sequence[Split]) -> None:
        """Writes ``left-out.csv``: what was not used of the data, and what turned out to be unreadable."""
        rows = [(printable(entry.name), entry.reason) for entry in left_out]
        for split in splits:
            rows += [
                (printable(split.name(index)), reason) for index, reason in sorted(getattr(split, "bad", {}).items())
            ]
        if rows:
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([("source", "reason"), *rows])
            write_atomically(self.path / "left-out.csv", table.getvalue().encode())

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / checkpoint.file_name(step)

    def last_checkpoint(self) -> str:
        """Where a run that broke off goes on, in words."""
        kept = checkpoint.files(self.checkpoints)
        if not kept:
            return "there is no checkpoint yet"
        return f"the last checkpoint is {kept[-1]}; go on with: convnet-train --resume auto -o {self.path}"


class Bystander(RunFolder):
    """A run folder as the other processes of a run know it: they write nothing there."""

    def __init__(self, path: Path):
        self.path, self.checkpoints = path, path / "checkpoints"
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.log = open(os.devnull, "w")  # noqa: SIM115  (as long as the folder is open)

    def close(self) -> None:
        self.log.close()

    def rewind(self, step: int, evaluated: bool) -> None: ...

    def list_left_out(self, left_out: Sequence[LeftOut], splits: Sequence[Split]) -> None: ...


def find_checkpoint(output: Path | None, resume: str | None, warn: Any) -> tuple[Path | None, Checkpoint | None]:
    """The run folder (None: to be chosen) and the checkpoint to go on from (None: a new run).

    Raises ``ValueError`` where the options do not fit what lies there, and ``CheckpointError``.
    """
    if resume is None:
        if output is not None and holds_run(output):
            raise ValueError(f"-o {output}: there is a run in this folder; go on with --resume auto, or choose another")
        return output, None
    if resume == "auto":
        if output is None:
            raise ValueError("--resume auto needs -o DIR, the folder of the run to go on with")
        return output, checkpoint.newest(output / "checkpoints", warn)
    path = Path(resume)
    if path.is_dir():
        if not holds_run(path):
            raise ValueError(
                f"--resume {path}: no run in this folder; use --resume auto -o DIR, with DATA in front of it"
            )
        home: Path | None = path
        found = checkpoint.newest(path / "checkpoints", warn)
        if found is None:
            raise CheckpointError(f"{path}: expected a checkpoint in checkpoints/, found none; start a new run")
    else:
        found = checkpoint.load(path)
        home = next((p for p in (path.resolve().parents[0], path.resolve().parents[1]) if holds_run(p)), None)
    if output is None and home is None:
        raise ValueError(f"--resume {path}: not inside a run folder; say with -o DIR where the run is to go on")
    if output is not None and holds_run(output) and (home is None or output.resolve() != home.resolve()):
        raise ValueError(f"-o {output}: there is another run in this folder; choose another one")
    return output or home, found


def saved_run(saved: Checkpoint) -> tuple[Config, Statistics]:
    """The options of the run that a checkpoint is of, and the statistics of its images.

    Raises ``CheckpointError`` unless they are such, and all tensors those of the network that they describe: nothing is
    built from a file before this is known.
    """
    try:
        config = Config(**{**BEFORE, **saved.state["config"]})
        spec = network(config.model, num_classes=len(saved.state["classes"]), **config.network_options())
        check_layers(spec, config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{saved.path}: expected the options of a run, found others: {error}") from error
    checkpoint.check_network(saved, parameter_shapes(spec))
    return config, saved_statistics(saved, spec.crop)


def saved_options(saved: Checkpoint, asked: dict[str, Any]) -> dict[str, Any]:
    """The options a resumed run inherits. Raises ``CheckpointError`` when it is asked for what it cannot change."""
    before, _ = saved_run(saved)
    options = {name: value for name, value in {**BEFORE, **saved.state["config"]}.items() if name != "steps"}
    changed = changed_fixed({name: value for name, value in asked.items() if name in options}, before)
    if changed:
        raise CheckpointError(f"{saved.path}: a resumed run cannot take {changed}; leave it out, or start a new run")
    return options


def check_dataset(saved: Checkpoint, dataset: DataSet, config: Config, course: Minibatches) -> None:
    """Raises ``CheckpointError`` unless the run can go on with this data, its epochs cut like ``course``."""
    if saved.state["classes"] != dataset.classes:
        before, now = saved.state["classes"], dataset.classes
        differ = sorted(set(before) ^ set(now))[:3] or "another order"
        raise CheckpointError(
            f"{saved.path}: expected the {len(before)} classes it was trained on, found {len(now)} in the data "
            f"(different: {differ}); give the data of the run, or start a new run"
        )
    if saved.state["dataset"].get("fingerprint") != dataset.fingerprint:
        raise CheckpointError(
            f"{saved.path}: expected the data it was trained on ({saved.state['dataset'].get('name')}), found other "
            f"images ({dataset.name}); give the data of the run, or start a new run"
        )
    position = saved.state["position"]
    before = saved.state["config"].get("train_range"), saved.state["config"].get("test_range")
    if position and before != config.ranges:
        raise CheckpointError(
            f"{saved.path}: stands {position} images into an epoch, and --train-range and --test-range change between "
            "epochs alone; go on without them to the end of it"
        )
    if position and config.order == "parts" and saved.state["config"].get("shards", 1) != config.shards:
        raise CheckpointError(
            f"{saved.path}: stands {position} images into an epoch, and with --order parts the shards change between "
            f"epochs alone; go on with --shards {saved.state['config'].get('shards', 1)} to the end of it"
        )
    if not (course.divides(position) or position == course.images):
        raise CheckpointError(
            f"{saved.path}: expected a place between two batches of {course.batch_size} of the {course.images} images, "
            f"found {position}"
        )


def saved_statistics(saved: Checkpoint, crop: int) -> Statistics:
    colour, mean = saved.state["colour"], saved.tensors.get("mean")
    if mean is None or mean.shape != (3, crop, crop):
        found = "no tensor of that name" if mean is None else f"a tensor of shape {mean.shape}"
        raise CheckpointError(f"{saved.path}: expected the mean image, of shape {(3, crop, crop)}, found {found}")
    try:
        with np.errstate(over="raise"):
            values = {name: np.array(value, np.float32) for name, value in colour.items()}
        statistics = Statistics(mean, **values)
        if (statistics.std.shape, statistics.deviations.shape, statistics.directions.shape) != ((3,), (3,), (3, 3)):
            raise ValueError("there must be 3 numbers as std, 3 as deviations and 3 times 3 as directions")
        if not all(np.isfinite(each).all() for each in values.values()):
            raise ValueError("some are not finite")
        return statistics
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{saved.path}: expected the images' colours, found something else: {error}") from error


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGUSR1 (batch systems' warning) ask to stop after the current step, SIGHUP
    asks for a checkpoint, and a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self.save = False
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.save = True
        elif number == signal.SIGINT and self.requested:
            os.write(2, b"\nstopped at once, without a checkpoint of the last steps\n")
            os._exit(128 + number)
        else:
            self.requested = True

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
