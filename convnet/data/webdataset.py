"""Tar shards of pictures, as WebDataset has them: a picture KEY.jpg is labelled by KEY.cls, or by KEY.json.

Shards without such files are taken as image folders in a tar archive: CLASS/name.jpg, with the folders of training and
validation above or not. Shards are files, not compressed; nothing is unpacked, pictures are read where they lie.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..output.files import open_descriptor, open_regular, printable
from .dataset import DataError, LeftOut
from .ilsvrc import TRAIN_TAR, VALID_TAR
from .images import SUFFIXES
from .published import numbered, part_of, settled, shards
from .source import Found, Part, Place
from .tarred import Member, is_tar, walk

MAX_LABEL = 2**20  # bytes of a .cls or .json file
KEYS = ("label", "cls", "class", "class_name", "label_name", "target")


@dataclass
class _Sample:
    """The members of one key: pictures, and what the label says, with the file that says it."""

    images: list[Member] = field(default_factory=list)
    label: int | str | None = None
    said: str = ""


@dataclass
class _Pictures:
    """Of one part, in their order: where they are, their names, and their labels."""

    places: list[Place] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)

    def add(self, file: Path, member: Member, name: str, label: int | str) -> None:
        self.places.append(Place(str(file), member.offset, member.length))
        self.names.append(name)
        self.labels.append(label)


def recognises(path: Path, names: Sequence[str]) -> bool:
    if TRAIN_TAR in names or VALID_TAR in names:
        return False
    try:
        if not names:
            return path.name.lower().endswith(".tar") and _is_tar(path)
        return any(_is_tar(path / file) for _, file in shards(path, ".tar")[:1])
    except (OSError, ValueError):
        return False


def read(path: Path) -> Found:
    """The shards in the folder ``path``, or that one. Raises ``DataError`` where they are damaged or nothing in them
    says what the pictures are."""
    of: dict[str, _Pictures] = {}
    in_folders: list[tuple[str, Path, Member, str]] = []
    left_out: list[LeftOut] = []
    labelled = None
    try:
        files = [(None, "")] if path.is_file() else shards(path, ".tar")
        for part, below in files:
            file, shard, part = path / below, below or path.name, part or "all"
            members = [member for member in walk(file) if not _hidden(member.name)]
            links = [member for member in members if not member.plain]
            left_out += [LeftOut(part, printable(f"{shard}/{link.name}"), "a link or a special file") for link in links]
            members = [member for member in members if member.plain]
            if labelled is None and members:
                labelled = _are_labelled(members)
            if labelled:
                left_out += _add_labelled(of.setdefault(part, _Pictures()), part, file, shard, members)
            else:
                in_folders += [(part, file, member, printable(f"{shard}/{member.name}")) for member in members]
    except OSError as error:
        raise DataError(f"cannot read {error.filename or str(path)!r}: {error.strerror or error}") from error
    if not labelled:
        left_out += _add_by_folder(of, in_folders)
    of = {part: pictures for part, pictures in of.items() if pictures.labels}
    where = repr(str(path))
    if not of:
        raise DataError(
            f"{where}: no picture in it that has a label; needed are KEY{SUFFIXES[0]} with KEY.cls or KEY.json, or "
            f"folders of classes with pictures ({', '.join(SUFFIXES[:8])})"
        )
    of = settled(of, where)
    mixed = any(isinstance(label, str) for pictures in of.values() for label in pictures.labels)
    classes, numbers, notes = numbered(
        {
            part: [str(label) for label in pictures.labels] if mixed else np.array(pictures.labels)
            for part, pictures in of.items()
        },
        {},
        where,
    )
    parts = {part: Part(labels, of[part].names, of[part].places) for part, labels in numbers.items()}
    shown = f"{len(files)} shard{'s' if len(files) > 1 else ''}"
    kind = "WebDataset" if labelled else "tar archive of class folders"
    return Found(f"{kind}, {shown}", classes, parts, notes, left_out)


def _is_tar(path: Path) -> bool:
    with open_regular(path) as file:
        return is_tar(file.read(512))


def _extension(name: str) -> tuple[str, str]:
    """Key and extension: the latter begins at the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}/{key}", extension.lower()


def _is_label(name: str) -> bool:
    return _extension(name)[1] in ("cls", "json")


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _are_labelled(members: list[Member]) -> bool:
    """Whether there is a label beside a picture."""
    pictures = {_extension(member.name)[0] for member in members if _is_picture(member.name)}
    return any(_is_label(member.name) and _extension(member.name)[0] in pictures for member in members)


def _hidden(name: str) -> bool:
    """What systems leave behind: .DS_Store, ._name, __MACOSX."""
    return any(part.startswith((".", "__")) and part not in (".", "..") for part in name.split("/"))


# ---- labels beside the pictures ----


def _add_labelled(pictures: _Pictures, part: str, file: Path, shard: str, members: list[Member]) -> Iterator[LeftOut]:
    """The labelled pictures of a shard; what is left out comes back."""
    for key, sample in _samples(file, members).items():
        name = printable(f"{shard}/{key.removeprefix('/')}")
        if len(sample.images) > 1:
            several = ", ".join(printable(image.name) for image in sample.images[:4])
            raise DataError(f"{str(file)!r}: {several} belong to one label; one picture each is needed")
        if not sample.images:
            yield LeftOut(part, name, "a label without a picture")
        elif sample.label is None:
            yield LeftOut(part, name, "a picture without a label")
        else:
            image = sample.images[0]
            pictures.add(file, image, printable(f"{shard}/{image.name}"), sample.label)


def _samples(file: Path, members: list[Member]) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    descriptor = open_descriptor(file)
    try:
        for member in members:
            key, extension = _extension(member.name)
            if _is_picture(member.name):
                samples.setdefault(key, _Sample()).images.append(member)
            elif _is_label(member.name):
                label = _label(descriptor, file, member, extension)
                if label is None:
                    continue
                sample = samples.setdefault(key, _Sample())
                if sample.label not in (None, label):
                    said = f"{sample.said!r:.60} says {sample.label!r:.40}, {member.name!r:.60} {label!r:.40}"
                    raise DataError(f"{str(file)!r}: {said}; they must agree")
                sample.label, sample.said = label, member.name
    finally:
        os.close(descriptor)
    return samples


def _label(descriptor: int, file: Path, member: Member, extension: str) -> int | str | None:
    """A number where it is one, else text; None where there is none."""
    where = f"{str(file)!r}, member {member.name!r:.80}"
    if member.length > MAX_LABEL:
        raise DataError(f"{where}: {member.length:,} bytes; no label has more than {MAX_LABEL:,}")
    text = os.pread(descriptor, member.length, member.offset).decode("utf-8", "replace").strip()
    value: Any = text
    if extension == "json":
        try:
            told = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error!s:.80})") from error
        value = next((told[key] for key in KEYS if key in told), None) if isinstance(told, dict) else told
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str, type(None))):
        raise DataError(f"{where}: the label {value!r:.40} is neither a whole number nor a text")
    if isinstance(value, int) and not -1 <= value < 2**63:
        raise DataError(f"{where}: label {value!r:.40}; numbers of classes are 0, 1, ...")
    return value if value != "" else None


# ---- folders of classes ----


def _add_by_folder(of: dict[str, _Pictures], found: list[tuple[str, Path, Member, str]]) -> Iterator[LeftOut]:
    """The pictures that lie in a folder; what is left out comes back."""
    folders = [member.name.split("/")[:-1] if _is_picture(member.name) else [] for _, _, member, _ in found]
    inside = [below for below in folders if below]
    above = _above(inside)
    split = bool(inside) and all(len(below) > above + 1 and part_of([below[above]]) for below in inside)
    for (part, file, member, name), below in zip(found, folders, strict=True):
        if not _is_picture(member.name):
            yield LeftOut(part, name, "not a picture, by its name")
        elif len(below) <= above + split:
            yield LeftOut(part, name, "in no folder that would be its class")
        else:
            purpose = part_of([below[above]]) if split else part
            of.setdefault(purpose or part, _Pictures()).add(file, member, name, printable(below[above + split]))


def _above(folders: list[list[str]]) -> int:
    """How many folders are above those of the classes or the parts: alone at the top, with folders in them."""
    above = 0
    while folders and len({tuple(below[: above + 1]) for below in folders}) == 1 and len(folders[0]) > above:
        if part_of([folders[0][above]]) or min(map(len, folders)) <= above + 1:
            break
        above += 1
    return above
