"""Definition and parameter files from disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..output.files import open_regular
from .definition import described
from .ini import MOST_BYTES, DefinitionError, Ini, parse
from .nodes import Definition

Given = str | os.PathLike[str]


def read(layer_def: Given, layer_params: Given | None = None) -> Definition:
    """The network that the two files describe; without the second, rates are None.

    Raises ``DefinitionError`` for files that cannot be read, have what no layer can be, or lack what one needs.
    """
    return described(read_ini(layer_def), None if layer_params is None else read_ini(layer_params))


def read_ini(path: Given) -> Ini:
    """Sections and values of a file. Raises ``DefinitionError`` for one that cannot be read, is too large, or has a
    line that is nothing."""
    return parse(read_text(path), str(path))


def definition_of(layer_def: Given, layer_params: Given | None = None, from_start: bool = False) -> dict[str, Any]:
    """A pair of files as an option of ``networks.network``, with all that they say: a run keeps it, wherever the files
    go. ``from_start``: see ``convnet.read_definition``. Raises ``DefinitionError`` where they cannot be read."""
    texts = {"layers": read_text(layer_def)}
    if layer_params is not None:
        texts["params"] = read_text(layer_params)
    return {"name": Path(layer_def).stem, **texts, **({"from_start": True} if from_start else {})}


def read_text(path: Given) -> str:
    """The text of a file of either kind. Raises ``DefinitionError`` where it cannot be read, or is too large."""
    try:
        with open_regular(Path(path)) as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as problem:
        raise DefinitionError(f"cannot read {str(path)!r}: {problem.strerror or problem}") from problem
    if len(raw) > MOST_BYTES:
        raise DefinitionError(
            f"{path}: has more than {MOST_BYTES:,} bytes, which no definition or parameter file needs"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
