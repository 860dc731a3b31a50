"""The notebooks of the tour, docs/tour/*.ipynb: as git holds them, executed, and as pages of the site.

    python tools/tour.py     takes out what Jupyter has put in: outputs, counters, settings of its own

Needs nbformat and nbclient, and ipykernel to execute (``pip install ".[docs]"``).
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "tour"
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
SECONDS = 300  # a cell that takes longer hangs: undisturbed the longest takes some seconds


def chapters() -> list[Path]:
    """In the order in which they are read."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def text_of(path: Path) -> str:
    """A chapter as it is to be in git: what somebody wrote, and nothing that came out of it."""
    notebook = read(path)
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", NotebookNode()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nbformat.writes(notebook) + "\n"


class ChapterError(Exception):
    """A chapter does not run to its end."""


def executed(path: Path) -> NotebookNode:
    """A chapter with what comes out of it. It starts in its folder, in a process of its own, whose machinery leaves
    nothing behind in ours. Raises ``ChapterError`` where a cell fails, with the cell and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / path.name
        program = [sys.executable, "-c", "from nbclient.cli import main; main()"]
        command = [*program, f"--output={target}", "--kernel_name=python3", f"--timeout={SECONDS}", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
            raise ChapterError(f"{path.name} fails:\n{said.partition('CellExecutionError: ')[2] or said}")
        return read(target)


def page(name: str, notebook: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """An executed chapter as Markdown, and its pictures by the names that the text knows them by. A picture's
    description is the comment that its cell begins with. Links to other chapters lead to their pages."""
    parts = ["---\nhide: [toc]\n---"]  # lines of code have the room
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace(".ipynb)", ".md)"))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            png = output.get("data", {}).get("image/png")
            if png is not None:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(png)
                parts.append(f"![{cell.source.splitlines()[0].lstrip('# ')}]({file})")
            else:
                text = output.text if output.output_type == "stream" else output.data["text/plain"]
                parts.append(f'```{{ .text .output title="out" }}\n{text.rstrip()}\n```')
    parts.append(f"This chapter is a notebook: [{name}.ipynb]({name}.ipynb).")
    return "\n\n".join(parts) + "\n", pictures


def main() -> int:
    for path in chapters():
        text = text_of(path)
        if path.read_text() != text:
            path.write_text(text)
            print(f"cleared: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
