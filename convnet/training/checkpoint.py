"""Checkpoints: everything a run needs to go on bit for bit, in one safetensors file that is whole or not there.

Tensors are ``weights/NAME``, ``velocity/NAME`` (float32, user-visible shapes) and ``mean``; all else is one JSON
object in the metadata. A SHA-256 covers names, shapes, bytes and that object, so that no damage goes unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..data.dataset import HeldOut
from ..data.recognise import SAFETENSORS, kind
from ..output.files import open_regular, write_atomically

FORMAT = "convnet checkpoint"
VERSION = 1
KEY = "convnet"  # of the metadata
Tensors = dict[str, np.ndarray[Any, Any]]

Rule = Callable[[Any], bool]


def _count(value: Any, below: float = 2**31) -> bool:
    """A whole number; ``True`` is none, though Python counts with it."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _share(value: Any) -> bool:
    """An error, as a fraction."""
    return _number(value) and 0 <= value <= 1


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _drops(value: Any) -> bool:
    return _count(value, 4)


def _held_out(value: Any) -> bool:
    try:
        HeldOut.read(value)
    except ValueError:
        return False
    return True


def _table(**rules: Rule) -> Rule:
    """A rule for objects with these keys and no others."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == rules.keys()
        and all(fits(value[key]) for key, fits in rules.items())
    )


def _or_none(fits: Rule) -> Rule:
    return lambda value: value is None or fits(value)


_SCHEDULE = _table(lowest=_or_none(_share), since=_count, judged=_count, drops=_drops)
_EARLIER_SCHEDULE = _table(lowest=_or_none(_share), waited=_count, drops=_drops)  # of version 0.1

# What the state must be, so that whoever takes it up can rely on it: a file with a right hash may come from anybody.
# What its options, classes and colours mean is for ``run.py`` to check.
_STATE: dict[str, tuple[Rule, str]] = {
    "step": (_count, "a whole number below 2^31"),
    "epoch": (_count, "a whole number below 2^31"),
    "position": (_count, "a whole number below 2^31"),
    "seed": (lambda value: _count(value, 2**64), "a whole number below 2^64"),
    "schedule": (
        lambda value: _SCHEDULE(value) or _EARLIER_SCHEDULE(value),
        "lowest, since, judged and drops of a schedule",
    ),
    "running": (
        _table(images=_count, loss=_number, top1=_count, top5=_count),
        "images, loss, top1 and top5 of the last steps",
    ),
    "best": (_table(error=_or_none(_share), step=_or_none(_count)), "error, 0 to 1, and step of the best evaluation"),
    # None in files of version 0.1
    "last": (_or_none(_table(error=_share, loss=_number)), "error, 0 to 1, and loss at the last evaluation"),
    "config": (lambda value: isinstance(value, dict), "the options of a run"),
    "classes": (_texts, "names of classes"),
    "dataset": (
        lambda value: (
            isinstance(value, dict)
            and _texts([value.get("name"), value.get("fingerprint")])
            and value.get("depth", 16) in range(8, 17)
            and _held_out(value.get("held_out"))
        ),
        "name, fingerprint and depth of the data, and what is held out of it",
    ),
    "colour": (lambda value: isinstance(value, dict), "the colours of the images"),
    "versions": (lambda value: isinstance(value, dict), "versions of programs"),
    "new_layers": (lambda value: value is None or _texts(value), "names of layers"),  # None in files before 0.1
}


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the text names the file, what was expected and what was found. Exit code 4."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's contents; ``state`` is what ``_STATE`` says. ``position``: images of the epoch trained on so far."""

    path: Path
    tensors: Tensors
    state: dict[str, Any]

    def part(self, prefix: str) -> Tensors:
        """The tensors below "weights" or "velocity", by their names in the network."""
        start = prefix + "/"
        return {name[len(start) :]: values for name, values in self.tensors.items() if name.startswith(start)}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False, sort_keys=True)


def _digest(tensors: Mapping[str, np.ndarray[Any, Any]], state: str) -> str:
    sha = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        values = tensors[name]
        sha.update(json.dumps([name, values.dtype.str, values.shape]).encode())
        sha.update(values.tobytes())
    return sha.hexdigest()


def save(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], state: Mapping[str, Any]) -> None:
    """Writes a file that is complete on disk when it gets its name; else ``OSError`` and nothing left behind.

    safetensors' own writer neither fsyncs, nor respects the umask, nor (0.8.0) the order of strided arrays.
    """
    # asarray rather than ascontiguousarray, which turns 0-d into 1-d
    native = {n: np.asarray(v, dtype=v.dtype.newbyteorder("="), order="C") for n, v in tensors.items()}
    contents = {"format": FORMAT, "version": VERSION, **state}
    contents["sha256"] = _digest(native, _json(contents))
    # one key: safetensors writes several in random order, and equal runs shall have equal files
    content = safetensors.numpy.save(native, {KEY: _json(contents)})
    write_atomically(path, content)


def load(path: Path) -> Checkpoint:
    """Reads and checks a whole file. Raises ``CheckpointError``."""
    try:
        open_regular(path).close()
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such checkpoint") from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: {_instead(path) or f'expected a complete safetensors file, found damage: {error}'}"
        ) from error
    text = metadata.get(KEY, "{}")
    try:
        state = json.loads(text)
        written = _json(state)  # differs from the text where a damaged byte did not change its meaning
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON in the metadata, found damage: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f'{path}: expected a checkpoint of convnet, found no metadata of the format "{FORMAT}"')
    if state.get("version") != VERSION:
        version = state.get("version")
        remedy = "update convnet" if isinstance(version, int) and version > VERSION else "the file is damaged"
        raise CheckpointError(f"{path}: expected format version {VERSION}, found {version}; {remedy}")
    expected = state.pop("sha256", None)
    found = _digest(tensors, _json(state))
    if expected != found or written != text:
        raise CheckpointError(f"{path}: expected contents with SHA-256 {expected}, found {found}: the file is damaged")
    for name, (fits, what) in _STATE.items():
        if not fits(state.get(name)):
            found_text = repr(state[name])[:60] if name in state else "nothing"
            raise CheckpointError(f'{path}: expected {what} as "{name}" in the metadata, found {found_text}')
    for name, values in tensors.items():
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise CheckpointError(
                f"{path}: {name}: expected finite float32 numbers, found {values.dtype}, some not finite"
            )
    return Checkpoint(path, tensors, state)


def _instead(path: Path) -> str:
    """What a file is that somebody took for a checkpoint, where its first bytes tell."""
    try:
        found = None if path.is_dir() else kind(path)
    except OSError:
        return ""
    if found is None or found[0] == SAFETENSORS:
        return ""
    return f"expected a checkpoint of convnet, found {found[0]}; name a run folder, or a file in its checkpoints/"


def check_network(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ``CheckpointError`` unless weights and velocity in the file have the names and shapes of ``shapes``."""
    for prefix in ("weights", "velocity"):
        found = checkpoint.part(prefix)
        for name in sorted({*shapes, *found}):
            here = shapes.get(name, "no such tensor")
            there = found[name].shape if name in found else "none"
            if here != there:
                raise CheckpointError(
                    f"{checkpoint.path}: {prefix}/{name}: the network has {here}, the file has {there}; "
                    "it belongs to another network"
                )


_NAME = re.compile(r"step-(\d{8,})\.safetensors")


def file_name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest step first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of a folder, or None. Raises ``CheckpointError`` when there are damaged ones only."""
    paths = files(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except CheckpointError as error:
            warn(f"{error}; trying the checkpoint before it")
    if paths:
        raise CheckpointError(
            f"{folder}: expected a usable checkpoint, found {len(paths)} damaged; start a new run elsewhere"
        )
    return None


def point(link: Path, target: Path) -> None:
    """Makes ``link`` stand for ``target`` in one step: a relative symbolic link, or a copy where there can be none."""
    temporary = link.with_name(link.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(target, link.parent))
    except OSError:
        shutil.copyfile(target, temporary)
    os.replace(temporary, link)


def prune(folder: Path, keep: int, best: Path | None) -> None:
    """Removes all but the newest ``keep`` checkpoints and the best one."""
    for path in files(folder)[:-keep]:
        if path != best:
            path.unlink(missing_ok=True)
