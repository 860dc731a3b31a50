"""The grammar of ``.cfg`` files: INI as Python 2's SafeConfigParser read it, by a reader of our own.

Its rules, which later parsers do not all share: ``[name]`` opens a section, whatever follows the bracket;
``key=value`` or ``key: value``; keys in any case; a section that occurs twice is one, and the later value wins; a line
that begins with ``#``, ``;`` or the word ``rem`` is a comment, and so is what follows a ``;`` behind white space; a
line that begins with white space goes on with the value above it; ``[DEFAULT]`` holds what sections do not say;
``%(key)s`` stands for another value of the section, ``%%`` for a percent sign.

What is in a file is text and stays text: nothing it names is imported or run. Files come from anybody, so sizes are
limited, and whatever the bytes are, the one exception is ``DefinitionError``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MOST_BYTES = 2**20  # of a file; the longest published one has 16,000
MOST_SECTIONS = 1000  # of a file; the longest published one has 100
MOST_REFERENCES = 50  # that make one value
MOST_TEXT = 4096  # characters of a value with references, before and after
DEFAULT = "DEFAULT"  # the section whose values all others have
SPACE = " \t\r\f\v\n"  # what str.isspace knows beside is no white space in a file of bytes

_HEADER = re.compile(r"\[([^\]]+)\]")
_OPTION = re.compile(rf"([^:={SPACE}][^:=]*)[:=](.*)", re.DOTALL)
_COMMENT = re.compile(rf"[{SPACE}];.*", re.DOTALL)
_REFERENCE = re.compile(r"%(?:(%)|\(([^)]*)\)s|)")


class DefinitionError(ValueError):
    """What is wrong with a definition or parameter file: one sentence with file and line."""


@dataclass(frozen=True)
class Value:
    """A text and where it lies."""

    text: str
    file: str
    line: int


@dataclass(frozen=True)
class Section:
    """``values`` by keys in lower case; those that come from ``[DEFAULT]`` are in ``defaults``."""

    name: str
    file: str
    line: int
    values: Mapping[str, Value]
    defaults: Mapping[str, Value]

    def get(self, key: str) -> Value | None:
        """The value of a key in lower case, its references replaced; None where neither has it.

        Raises ``DefinitionError`` for a reference to nothing or in a circle, and for a value that becomes too long.
        """
        value = self.values.get(key) or self.defaults.get(key)
        if value is None or "%" not in value.text:
            return value
        return Value(self._replaced(value, [0]), value.file, value.line)

    def _replaced(self, value: Value, count: list[int]) -> str:
        """``count`` is of the references that have been replaced for the value that was asked for."""

        def one(found: re.Match[str]) -> str:
            percent, key = found.groups()
            if percent is not None:
                return "%"
            if key is None:
                wrong = shown(value.text[found.start() :])
                raise error(value.file, value.line, f"{wrong} is no reference %(key)s; a percent sign is %%")
            count[0] += 1
            if count[0] > MOST_REFERENCES:
                raise error(value.file, value.line, f"more than {MOST_REFERENCES} references make this value")
            other = self.values.get(key.lower()) or self.defaults.get(key.lower())
            if other is None:
                raise error(value.file, value.line, f"{shown(found[0])} names no key of section {shown(self.name)}")
            return self._replaced(other, count)

        if len(value.text) <= MOST_TEXT:
            text = _REFERENCE.sub(one, value.text)
            if len(text) <= MOST_TEXT:
                return text
        raise error(value.file, value.line, f"a value with references has more than {MOST_TEXT} characters")


@dataclass(frozen=True)
class Ini:
    """``sections`` in the order in which the file opens them, ``comments`` with their lines, without the marks."""

    file: str
    sections: Mapping[str, Section]
    defaults: Mapping[str, Value]
    comments: tuple[tuple[int, str], ...]


def error(file: str, line: int, found: str) -> DefinitionError:
    return DefinitionError(f"{file}, line {line}: {found}")


def shown(text: str) -> str:
    """A piece of a file for a message: quoted, short, without control characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def parse(text: str, file: str) -> Ini:
    """What the text of a file says; ``file`` is its name in messages. Raises ``DefinitionError`` for a line that is
    nothing."""
    lines: dict[str, int] = {}  # of the headers
    found: dict[str, dict[str, tuple[int, list[str]]]] = {
        DEFAULT: {}
    }  # each value as its lines, and the first's number
    comments: list[tuple[int, str]] = []
    section = key = ""
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(SPACE)
        if not stripped:
            continue
        if line[0] in "#;" or (line[0] in "rR" and re.split(rf"[{SPACE}]", line, maxsplit=1)[0].lower() == "rem"):
            comments.append((number, line.lstrip("#;").strip(SPACE)))
        elif line[0] in SPACE and key:
            found[section][key][1].append(stripped)
        elif header := _HEADER.match(line):
            section, key = header[1], ""
            lines.setdefault(section, number)
            found.setdefault(section, {})
            if len(lines) > MOST_SECTIONS:
                raise error(file, number, f"more than {MOST_SECTIONS:,} sections, which no network needs")
        elif not section:
            raise error(file, number, f"{shown(stripped)} stands in front of the first [section]")
        elif option := _OPTION.fullmatch(line):
            key, value = option[1].strip(SPACE).lower(), _COMMENT.sub("", option[2]).strip(SPACE)
            found[section][key] = (number, ["" if value == '""' else value])
        else:
            what = "begins with white space and has no value to go on with" if line[0] in SPACE else "is no key=value"
            raise error(file, number, f"{shown(stripped)} {what}")
    values = {
        name: {key: Value("\n".join(pieces), file, number) for key, (number, pieces) in keys.items()}
        for name, keys in found.items()
    }
    lines.pop(DEFAULT, None)
    defaults = values[DEFAULT]
    sections = {name: Section(name, file, line, values[name], defaults) for name, line in lines.items()}
    return Ini(file, sections, defaults, tuple(comments))
