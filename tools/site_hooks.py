"""What mkdocs does for our site besides making pages of docs/*.md: see ``hooks`` in mkdocs.yml.

Chapters of the tour are executed, and become pages with their outputs; one that fails ends the build. What is written
elsewhere is taken from there: a line

    <!-- from README.md: Weights of others -->

stands for the text between that heading and the next, and ``<!-- from CONTRIBUTING.md -->`` for a whole file without
its first heading.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tour
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FROM = re.compile(r"^<!-- from (?P<file>\S+?)(?:: (?P<heading>.+))? -->$", re.MULTILINE)
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)#:]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the tour, and their pictures."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, notebook in zip(tour.chapters(), pool.map(_executed, tour.chapters()), strict=True):
            text, pictures = tour.page(path.stem, notebook)
            files.append(File.generated(config, f"tour/{path.stem}.md", content=text))
            for name, png in pictures.items():
                files.append(File.generated(config, f"tour/{name}", content=png))
    return files


def _executed(path: Path) -> Any:
    try:
        return tour.executed(path)
    except tour.ChapterError as error:
        raise PluginError(str(error)) from error


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Puts in what the page takes from elsewhere."""
    here = posixpath.dirname(page.file.src_uri)
    return FROM.sub(lambda mark: _taken(mark["file"], mark["heading"], here, files), markdown)


def _taken(file: str, heading: str | None, here: str, files: Files) -> str:
    """The text of a file, or below one of its headings, for a page in the folder ``here`` of docs/."""
    lines = (ROOT / file).read_text().splitlines()
    headings = list(_headings(lines))
    if heading is None:
        first, *_ = headings
        end = len(lines)
    else:
        first = next((at for at in headings if lines[at].lstrip("# ") == heading), -1)
        if first < 0:
            raise PluginError(f'{file} has no heading "{heading}"')
        end = next((at for at in headings if at > first), len(lines))
    pages = {mark["file"]: page.src_uri for page in files.documentation_pages() for mark in _whole_files(page)}

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), found["target"]))
        place = target.removeprefix("docs/") if target.startswith("docs/") else pages.get(target)
        if place is None:  # not on the site
            return f"{found['text'][1:-1]} (`{target}`)"
        return f"{found['text']}({posixpath.relpath(place, here or '.')}{found['anchor'] or ''})"

    return LINK.sub(link, "\n".join(lines[first + 1 : end]))


def _headings(lines: list[str]) -> Iterator[int]:
    """Where they are, outside of code."""
    code = False
    for at, line in enumerate(lines):
        code ^= line.startswith("```")
        if not code and re.match("#+ ", line):
            yield at


def _whole_files(page: File) -> list[re.Match[str]]:
    return [mark for mark in FROM.finditer(page.content_string) if mark["heading"] is None]
