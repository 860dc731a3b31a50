"""A figure never ends a training, whatever it raises."""

from __future__ import annotations

import errno
import sys

import pytest
from runs import TINY, here, records

from convnet.output import figures

FAILURES = {
    "of the disk": (OSError(errno.ENOSPC, "No space left on device", "f.png"), "f.png: figure not written: No space"),
    "of the system": (OSError("no folder\nto write to"), "figure not written: no folder to write to"),
    "of a value": (ValueError("backend 'x' is\n  none"), "figure not drawn: ValueError: backend 'x' is none"),
    "without a word": (RuntimeError(), "figure not drawn: RuntimeError:"),
    "of memory": (MemoryError("Unable to allocate"), "figure not drawn: MemoryError: Unable to allocate"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_figure_that_fails_is_one_line(failure, images, tmp_path, monkeypatch, capsys):
    error, told = FAILURES[failure]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("convnet.training.trainer.FIGURE_SECONDS", 0)  # after every evaluation
    monkeypatch.setattr(figures, "save_curves", fail)
    assert here(images, *TINY, "-o", str(tmp_path)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "nothing was learnt" not in line]
    assert len(lines) == 3  # two epochs and the end
    assert all(line.startswith("warning: ") and told in line for line in lines), lines
    assert records(tmp_path)[-1]["status"] == "done"
    assert "figure not" in (tmp_path / "log.txt").read_text()


def test_a_matplotlib_that_cannot_be_imported_is_one_line(images, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "convnet.output.figures")
    monkeypatch.delattr("convnet.output.figures")
    monkeypatch.delitem(sys.modules, "convnet.output.plotting")
    monkeypatch.delattr("convnet.output.plotting")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert here(images, *TINY, "-o", str(tmp_path)) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "nothing was learnt" not in line)
    assert line.startswith(f"warning: {tmp_path}: figure not drawn: ModuleNotFoundError: ")
    assert not (tmp_path / "curves.png").exists()
