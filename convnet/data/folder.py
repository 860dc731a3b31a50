"""Folders of pictures as people have them: classes as folders, with or without folders for training and validation
above them; or pictures side by side and a table that says what they are (``labels``)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..output.files import open_regular
from .dataset import DataError, LeftOut
from .formats import HEAD, SUFFIXES, looks_like_picture, other_kind
from .labels import SUFFIXES as TABLES
from .labels import Labels, keys, read_labels, role
from .source import Files, Found, Part

PLAIN = ("images", "image", "img", "imgs", "jpg", "jpeg", "png", "pictures", "photos")  # no class is called so
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")  # of file managers and archivers; passed over as hidden files are
DEPTH = 16  # of folders in folders: links can make any number
KAGGLE = ("ILSVRC", "Data", "CLS-LOC")  # where Kaggle's ImageNet has its train and val
WAYS = (
    "put each class into a folder of its own, or write a CSV file beside them with a line 'path,label' for each picture"
)

NO_PICTURE = "not a picture of a known kind"

Picture = tuple[str, int]  # its name below some folder, and its length


@dataclass
class Tree:
    """A folder and all below it. Names in ``left_out`` and of ``pictures`` are those of its own files."""

    name: str
    pictures: list[Picture] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    tables: list[str] = field(default_factory=list)
    folders: dict[str, Tree] = field(default_factory=dict)
    count: int = 0  # pictures in it and below it

    def all(self, before: str = "") -> Iterator[Picture]:
        yield from ((before + name, length) for name, length in self.pictures)
        for name, tree in self.folders.items():
            yield from tree.all(f"{before}{name}/")

    def all_left_out(self, before: str = "") -> Iterator[tuple[str, str]]:
        yield from ((before + name, reason) for name, reason in self.left_out)
        yield from ((before + name, NO_PICTURE) for name in self.tables)
        for name, tree in self.folders.items():
            yield from tree.all_left_out(f"{before}{name}/")

    @property
    def filled(self) -> dict[str, Tree]:
        """The folders with pictures."""
        return {name: tree for name, tree in self.folders.items() if tree.count}

    @property
    def classes(self) -> dict[str, Tree]:
        """The folders that are classes: none where all pictures lie in one that is only called "images" or alike."""
        filled = self.filled
        return {} if len(filled) == 1 and not self.pictures and min(filled).lower() in PLAIN else filled


def scan(path: str, name: str = "", above: tuple[tuple[int, int], ...] = ()) -> Tree:
    """What lies in the folder ``path``: pictures by the ends of their names, and by their first bytes where those say
    nothing. Raises ``DataError`` for a folder that cannot be read."""
    tree = Tree(name)
    try:
        with os.scandir(path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        own = os.stat(path)
        above = (*above, (own.st_dev, own.st_ino))
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
                continue
            if os.path.isdir(entry):
                _enter(tree, entry, above)
            elif (reason := _unusable(entry)) is None:
                tree.pictures.append((entry.name, entry.stat().st_size))
            elif entry.name.lower().endswith(TABLES):
                tree.tables.append(entry.name)
            else:
                tree.left_out.append((entry.name, reason))
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path!r}: {error.strerror}") from error
    tree.count = len(tree.pictures) + sum(below.count for below in tree.folders.values())
    return tree


def _enter(tree: Tree, entry: os.DirEntry[str], above: tuple[tuple[int, int], ...]) -> None:
    below = entry.stat()
    if (below.st_dev, below.st_ino) in above or len(above) == DEPTH:
        tree.left_out.append((entry.name, "a folder within itself" if len(above) < DEPTH else "a folder too deep"))
        return
    tree.folders[entry.name] = scan(entry.path, entry.name, above)


def _unusable(entry: os.DirEntry[str]) -> str | None:
    """Why a file is no picture; None where it may be one."""
    if not os.path.isfile(entry):
        if entry.is_symlink() and not os.path.exists(entry):
            return "a link to a file that is not there"
        return "not a file"
    if entry.stat().st_size == 0:
        return "an empty file"
    if entry.name.lower().endswith(SUFFIXES):
        return None
    try:
        with open_regular(entry.path) as file:
            head = file.read(HEAD)
    except OSError as error:
        return str(error.strerror)
    if looks_like_picture(head):
        return None
    told = other_kind(head)
    return NO_PICTURE if told is None or "text" in told else told


def reasons(tree: Tree, most: int = 3) -> str:
    """Why files of a folder are left out, in words: " (40: an empty file; ...)"."""
    counts = Counter(reason for _, reason in tree.all_left_out()).most_common(most)
    return f" ({'; '.join(f'{count:,}: {reason}' for reason, count in counts)})" if counts else ""


def read(root: Path) -> Found | None:
    """The pictures below ``root``; None where there are none at all.

    Raises ``DataError`` for pictures of which nothing says what they are, for splits that contradict each other, and
    for what cannot be read.
    """
    tree = scan(str(root))
    if not tree.count:
        return None
    return _Folder(root, tree).read()


class _Folder:
    """How ``root`` is understood. ``at`` is where its splits or classes are: below folders that hold but one."""

    def __init__(self, root: Path, tree: Tree) -> None:
        self.root, self.tree, self.at = root, tree, ""
        self.tables = [(str(root), "", tree.tables)]  # where labels may be found: folder, the same from root, names
        self.notes: list[str] = []
        self.left_out: list[LeftOut] = []
        if self._has(KAGGLE):
            for name in KAGGLE:
                self._descend(name)
        while not self.tree.pictures and len(filled := self.tree.filled) == 1:
            (name, below), *_ = filled.items()
            if role(name) or not below.classes or self._table(self.tree, ""):
                break
            self._descend(name)

    def _has(self, names: Sequence[str]) -> bool:
        tree: Tree | None = self.tree
        for name in names:
            tree = tree.folders.get(name) if tree else None
        return tree is not None and tree.count > 0

    def _descend(self, name: str) -> None:
        self.tree = self.tree.folders[name]
        self.at += name + "/"
        self.tables.append((os.path.join(self.root, self.at), self.at, self.tree.tables))

    def read(self) -> Found:
        found = self._splits()
        if not found:
            parts, kind = self._whole()
        else:
            parts, kind = {}, "image folder"
            for part, name in found.items():
                try:
                    labelled = self._part(self.tree.folders[name], self.at + name + "/")
                except DataError:
                    if part != "test":
                        raise
                    labelled = None
                if labelled is None and part == "test":
                    self._without_labels(name)
                elif labelled is None:
                    raise DataError(f"{self._path(name)!r} has pictures, and nothing says of which class; {WAYS}")
                else:
                    parts[part] = labelled
                    if labelled and name != part and (part != "test"):
                        self.notes.append(f"{name!r} is taken for {'training' if part == 'train' else 'validation'}")
            if others := sorted(set(self.tree.filled) - set(found.values())):
                self.notes.append(f"left alone: {', '.join(map(repr, others))}")
        return self._found(kind, parts)

    def _without_labels(self, name: str) -> None:
        count = self.tree.folders[name].count
        self.notes.append(f"{name!r} has {count:,} pictures without labels; convnet-predict can label them")

    def _path(self, name: str = "") -> str:
        return os.path.join(self.root, self.at, name).rstrip("/")

    def _splits(self) -> dict[str, str]:
        """The folders that are splits, by what they are for; none where folders of such names are classes."""
        named: dict[str, list[str]] = {}
        for name in self.tree.filled:
            if meant := role(name):
                named.setdefault(meant, []).append(name)
        others = [name for name in self.tree.filled if not role(name)]
        split = [name for names in named.values() for name in names if self._looks_split(name)]
        if others and not split:
            return {}
        if others and len(named) == 1 and len(others) > 1:
            raise DataError(
                f"{self._path()!r}: {split[0]!r} may be a class beside {', '.join(map(repr, others[:3]))}, or a part "
                "with classes in it; name the folder with the classes, or call its parts 'train' and 'val'"
            )
        if twice := next((names for names in named.values() if len(names) > 1), None):
            raise DataError(
                f"{self._path()!r} has {' and '.join(map(repr, twice))}, which mean the same; leave one of them there"
            )
        return {part: named[part][0] for part in ("train", "val", "test") if part in named}

    def _looks_split(self, name: str) -> bool:
        tree = self.tree.folders[name]
        return bool(tree.classes) or self._table(tree, self.at + name + "/") is not None

    def _part(self, tree: Tree, at: str) -> dict[str, list[Picture]] | None:
        """Class -> pictures of a split, named from the root; None where nothing says what they are."""
        while not tree.pictures and len(filled := tree.filled) == 1 and next(iter(filled.values())).classes:
            (name, below), *_ = filled.items()
            if role(name) != role(tree.name) and name.lower() not in PLAIN:
                break  # else as some archives unpack: training_set/training_set/
            tree, at = below, f"{at}{name}/"
        if table := self._table(tree, at):
            return self._by_table(table, tree, at, {})
        if not tree.classes:
            return None
        return self._by_folders(tree, at)

    def _by_folders(self, tree: Tree, at: str) -> dict[str, list[Picture]]:
        for name, below in tree.folders.items():
            self.left_out += [LeftOut(name, f"{at}{name}/{file}", reason) for file, reason in below.all_left_out()]
            if not below.count:
                raise DataError(
                    f"class folder {os.path.join(self.root, at, name)!r} has no picture that can be used"
                    f"{reasons(below)}; add some or remove it"
                )
        if tree.pictures:
            self.left_out += [LeftOut(at, at + file, "beside the class folders") for file, _ in tree.pictures]
        return {name: sorted(below.all(f"{at}{name}/")) for name, below in tree.folders.items()}

    def _by_table(
        self, labels: Labels, tree: Tree, at: str, parts: dict[str, dict[str, list[Picture]]]
    ) -> dict[str, list[Picture]]:
        """Class -> pictures; those of a part that the table names go into ``parts`` instead."""
        found: dict[str, list[Picture]] = {}
        without = 0
        for name, length in sorted(tree.all()):
            if name not in labels.of:
                self.left_out.append(LeftOut(at or ".", at + name, f"no label in {labels.path.name}"))
                without += 1
                continue
            label, part = labels.of[name]
            meant = role(part) if part else None
            if part and meant is None:
                raise DataError(f"{str(labels.path)!r}: {part!r:.60} is none of train, val and test")
            (parts.setdefault(meant, {}) if meant else found).setdefault(label, []).append((at + name, length))
        others = (entry for entry in tree.all_left_out() if not entry[0].lower().endswith(TABLES))
        self.left_out += [LeftOut(at or ".", at + name, reason) for name, reason in others]
        told = f"labels of {at or 'all pictures'} from {labels.path.name}"
        told += f"; {labels.missing:,} of its lines name no picture that is there" if labels.missing else ""
        self.notes.append(told + (f"; {without:,} pictures have no label" if without else ""))
        return found

    def _whole(self) -> tuple[dict[str, dict[str, list[Picture]]], str]:
        """The parts of a folder without splits."""
        for name in [name for name in self.tree.filled if role(name) in ("val", "test")]:
            if len(self.tree.classes) > 2:  # "train" may be a class, and beside classes these are none
                self._without_labels(name)
                del self.tree.folders[name]
        classes = self.tree.classes
        if len(classes) > 1:
            for _, at, tables in self.tables:
                for name in tables if at == self.at else ():
                    self.notes.append(f"classes are the folders; for what {name} says of them: DATA/{at}{name}")
            return {"all": self._by_folders(self.tree, self.at)}, "image folder"
        if table := self._table(self.tree, self.at):
            parts: dict[str, dict[str, list[Picture]]] = {}
            rest = self._by_table(table, self.tree, self.at, parts)
            if rest and parts:
                raise DataError(f"{str(table.path)!r} says of some pictures what they are for, and of some not")
            return parts or {"all": rest}, "pictures with a table of labels"
        if classes and not self.tree.pictures:
            return {"all": self._by_folders(self.tree, self.at)}, "image folder"
        raise DataError(
            f"{self._path()!r} has {self.tree.count:,} pictures, and nothing says of which class; {WAYS} (where these "
            "are all of one class, name the folder above)"
        )

    def _table(self, tree: Tree, at: str) -> Labels | None:
        """The table that labels most pictures of ``tree``, in it or above it, where they lie side by side."""
        if len(tree.classes) > 1 and not tree.pictures:
            return None  # classes are folders
        names = [name for name, _ in tree.all()]
        known = keys(names)
        places = [*self.tables, (os.path.join(self.root, at), at, tree.tables)]
        found: list[Labels] = []
        failure: DataError | None = None
        for folder, seen_from, tables in {place[0].rstrip("/"): place for place in places}.values():
            for name in tables:
                if "submission" in name.lower():  # what a competition wants to get back
                    continue
                try:
                    labels = read_labels(Path(folder, name), known, at.removeprefix(seen_from).rstrip("/"))
                except DataError as error:
                    failure = failure or error
                    continue
                if labels and labels.of:
                    found.append(labels)
        if not found and failure:
            raise failure
        return max(found, key=lambda labels: len(labels.of), default=None)

    def _found(self, kind: str, parts: dict[str, dict[str, list[Picture]]]) -> Found:
        first = next(part for part in ("train", "all", "val", "test") if part in parts)
        classes = sorted(parts[first])
        if "table" in kind and all(name.isdecimal() for name in classes):
            classes.sort(key=int)
        for part in ("val", "test"):
            if part in parts and (unknown := sorted(set(parts[part]) - set(classes))):
                raise DataError(
                    f"class {unknown[0]!r} is in the {part} part of {str(self.root)!r}, but not among the "
                    f"{len(classes)} classes to train on ({', '.join(classes[:5])}, ...); the names must agree"
                )
        return Found(
            kind, classes, {name: self._made(part, classes) for name, part in parts.items()}, self.notes, self.left_out
        )

    def _made(self, part: dict[str, list[Picture]], classes: Sequence[str]) -> Part:
        listed = [(label, *picture) for label, name in enumerate(classes) for picture in part.get(name, [])]
        files = Files(str(self.root), [name for _, name, _ in listed], [length for *_, length in listed])
        return Part(np.array([label for label, *_ in listed], np.int32), files.names, files)


def read_table(path: Path) -> Found:
    """The pictures that the table ``path`` names, from its own folder on. Raises ``DataError``."""
    tree = scan(str(path.parent))
    folder = _Folder(path.parent, tree)
    labels = read_labels(path, keys([name for name, _ in tree.all()])) if tree.count else None
    if labels is None:
        raise DataError(
            f"{str(path)!r} names no picture that lies in its folder or below; its lines must be 'path,label', with "
            "paths from that folder on"
        )
    parts: dict[str, dict[str, list[Picture]]] = {}
    rest = folder._by_table(labels, tree, "", parts)
    folder.left_out = []  # pictures that a table does not name are none of its business
    return folder._found("pictures with a table of labels", parts or {"all": rest})
