"""Label files: tables that say which picture is of which class, as people and competitions write them.

Read are rows of text, parted by commas, tabs, semicolons or blanks, with or without a line of headings. The column of
the pictures is the one whose entries are pictures that are there; that of the labels is told by its heading, or is the
one behind.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..output.files import open_regular
from .dataset import DataError

SUFFIXES = (".csv", ".tsv", ".txt")
MAX_BYTES = 256 * 2**20
LOOKED_AT = 200  # rows, to find out what the columns are
LABEL = ("label", "class", "classname", "category", "target", "species", "breed", "labels", "classid", "classlabel",
         "labelname", "y", "diagnosis", "type", "wnid", "synset", "predictionstring", "name", "labelid")  # fmt: skip
SPLIT = ("split", "set", "subset", "partition", "usage", "dataset", "fold")
ROLES = {
    "train": ("train", "training", "trainset", "trainingset", "trn", "segtrain", "trainimages", "imagestrain"),
    "val": (
        "val",
        "valid",
        "validation",
        "valset",
        "validset",
        "validationset",
        "dev",
        "devset",
        "segval",
        "valimages",
    ),
    "test": ("test", "testing", "testset", "testingset", "tst", "segtest", "testimages", "eval", "evaluation"),
}


def role(name: str) -> str | None:
    """ "train", "val" or "test" where a folder's or a split's name means that, in any case and spelling."""
    plain = re.sub(r"[^a-z]", "", name.lower().replace("t10k", "test"))  # MNIST's 10,000
    return next((role for role, names in ROLES.items() if plain in names), None)


@dataclass
class Labels:
    """``of``: for each picture, by its key in the names that were asked about, its class and its part ("" if not said).
    ``missing``: rows that name no picture that is there."""

    path: Path
    of: dict[str, tuple[str, str]] = field(default_factory=dict)
    missing: int = 0


def keys(names: Iterable[str]) -> dict[str, str]:
    """What a row may call a picture -> its name: the whole name, the file's name, and that without its suffix, as far
    as they are unique."""
    whole = list(names)
    files = [name.rpartition("/")[2] for name in whole]
    table = dict(zip(whole, whole, strict=True))
    for called in (files, [file.rpartition(".")[0] or file for file in files]):
        counts = Counter(called)
        for key, name in zip(called, whole, strict=True):
            if counts[key] == 1:
                table.setdefault(key, name)
    return table


def read_labels(path: Path, known: Mapping[str, str], above: str = "") -> Labels | None:
    """The labels in ``path`` of the pictures that ``keys`` found; None where it is no table of such pictures.

    ``above`` is the folder of the pictures as seen from that of the file, which may be part of what the rows say.
    Raises ``DataError`` for a table that names pictures and leaves open what their labels are, or says two of one.
    """
    rows = _rows(path)
    if not rows:
        return None

    def picture(text: str) -> str | None:
        text = text.strip().replace("\\", "/").removeprefix("./")
        return known.get(text) or known.get(text.removeprefix(above + "/")) or known.get(text.rpartition("/")[2])

    sample = rows[:LOOKED_AT]
    width = max(map(len, sample))
    hits = [sum(picture(row[k]) is not None for row in sample if k < len(row)) for k in range(width)]
    at = hits.index(max(hits))
    if hits[at] < max(1, 0.3 * (len(sample) - 1)):
        return None
    heading = rows[0] if len(rows[0]) > at and picture(rows[0][at]) is None and len(rows) > 1 else None
    label, split = _columns(path, heading, width, at)
    found = Labels(path)
    for number, row in enumerate(rows[1:] if heading else rows, 2 if heading else 1):
        if len(row) <= max(at, label):
            raise DataError(f"{str(path)!r}, line {number}: {len(row)} columns, where a name and a label are needed")
        if (name := picture(row[at])) is None:
            found.missing += 1
            continue
        text = row[label].strip()
        if heading and _plain(heading[label]) == "predictionstring":  # a class and boxes behind it
            text = text.split()[0] if text else ""
        part = row[split].strip() if split is not None and split < len(row) else ""
        if not text:
            continue  # no label: the picture counts as one that the file does not name
        if found.of.setdefault(name, (text, part)) != (text, part):
            raise DataError(f"{str(path)!r}, line {number}: {name!r} is {found.of[name][0]!r} above and {text!r} here")
    return found


def _columns(path: Path, heading: list[str] | None, width: int, at: int) -> tuple[int, int | None]:
    """Those of the label and of the part."""
    if heading is None:
        if width <= at + 1:
            raise DataError(f"{str(path)!r} names pictures, but has no column of labels behind them")
        return at + 1, None
    plain = [_plain(text) for text in heading]
    split = next((k for k, text in enumerate(plain) if text in SPLIT and k != at), None)
    others = [k for k in range(len(plain)) if k not in (at, split)]
    named = [k for wanted in LABEL for k in others if plain[k] == wanted]
    if named or len(others) == 1:
        return (named or others)[0], split
    if not others:
        raise DataError(f"{str(path)!r} names pictures, but has no column of labels")
    raise DataError(
        f"{str(path)!r} has the columns {', '.join(heading)[:200]}, and none says that it is the label; call one of "
        "them 'label'"
    )


def _plain(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _rows(path: Path) -> list[list[str]]:
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise DataError(f"{str(path)!r}: larger than {MAX_BYTES:,} bytes, which no list of labels is")
    if b"\0" in raw[:4096] and not raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return []
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"  # as spreadsheets save
    text = raw.decode(encoding, "replace")
    first = next((line for line in text.splitlines() if line.strip()), "")
    mark = next((mark for mark in "\t,;" if mark in first), None)
    if mark is None:
        rows = [line.split() for line in text.splitlines()]
    else:
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark))
        except csv.Error as error:
            raise DataError(f"{str(path)!r} is not a readable table: {error}") from error
    return [row for row in rows if any(cell.strip() for cell in row)]
