"""The moving line, in pseudo-terminals of many widths: what matters stays, and no line is wider than its terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from itertools import pairwise

import pytest
from runs import ELSEWHERE, ENVIRONMENT, TINY, TRAIN, straight_run

from convnet.output.console import BAR, Console, fitted

HEAD = ["epoch 12/60", "1234/5678"]
PARTS = ["loss 1.234", "error 45.6 %", "eta 0:01:23", "305 images/s", "data 0 %", "lr 0.01"]
BARS = r"\|[ #█-▏]{2,12}\|"
EVAL = ELSEWHERE + "from convnet.cli.eval import main; sys.exit(main())"


def line(columns: int, head=HEAD, parts=PARTS) -> str:
    text, bar = fitted(columns, head, parts)
    return text + (f"|{'#' * bar}|" if bar else "")


def test_parts_go_in_the_order_of_their_importance():
    whole = "  ".join([*HEAD, *PARTS])
    assert line(200) == f"{whole}  |{'#' * BAR}|"
    assert line(len(whole) + 6) == f"{whole}  |##|"
    assert line(len(whole) + 5) == "  ".join([*HEAD, *PARTS[:5]]) + "  |##########|"
    assert line(79) == "epoch 12/60  1234/5678  loss 1.234  error 45.6 %  eta 0:01:23  |############|"
    assert line(66) == "epoch 12/60 1234/5678 loss 1.234 error 45.6 % eta 0:01:23 |######|"
    assert line(59) == "12/60 1234/5678 loss 1.234 error 45.6 % eta 0:01:23 |#####|"
    assert line(55) == "12/60 1234/5678 loss 1.234 error 45.6 % eta 0:01:23"
    assert line(50) == "12/60 1234/5678 loss 1.234 error 45.6 %"
    assert line(15) == "12/60 1234/5678"


def test_what_is_left_never_grows_in_a_narrower_terminal():
    """And what stays longest is what stands first, with the bar behind the third part."""
    order = [*(part.split()[0] for part in PARTS[:3]), "#", "images/s", "data", "lr"]
    seen = [[word in line(columns) for word in order] for columns in range(200, 0, -1)]
    assert seen[0] == [True] * 7
    assert seen[-1] == [False] * 7
    for wider, narrower in pairwise(seen):
        assert sum(narrower) <= sum(wider)
        assert narrower == sorted(narrower, reverse=True)


@pytest.mark.parametrize("head", [HEAD, ["/a/very/long/path/" * 9 + "run", "1/2"], ["日本語" * 30, "3/4"]])
def test_no_line_is_wider_than_its_terminal(head):
    wide = 2 if "日" in head[0] else 1
    for columns in range(200, 24, -1):
        text = line(columns, head, ["images"])
        assert len(text) + (wide - 1) * sum(c > "\u2fff" and c != "█" for c in text) <= columns
        assert head[1] in text
        assert text.startswith("...") == (head is not HEAD)


def in_terminal(columns: int, code: str, *arguments: str) -> list[str]:
    """What a program writes to a terminal of so many columns, cut where its cursor goes back or down."""
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE + code, *arguments],
        env={**ENVIRONMENT, "LC_ALL": "C.UTF-8"},
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    written = read(control)
    assert process.wait(120) == 0, written
    return re.split(r"[\r\n]+", written)


def read(control: int) -> str:
    """All that comes until the other end is closed."""
    found = b""
    while True:
        try:
            more = os.read(control, 1 << 16)
        except OSError:  # what the end of a terminal is on Linux
            more = b""
        if not more:
            os.close(control)
            return found.decode()
        found += more


@pytest.mark.parametrize("columns", [200, 80, 60, 30])
def test_a_training_in_a_terminal(columns, images, tmp_path):
    cuts = in_terminal(columns, TRAIN, images, *TINY, "--epochs", "1", "-o", str(tmp_path / "run"))
    cuts = [cut for cut in cuts if not cut.startswith("warning: nothing was learnt")]  # at the end, not moving
    assert max(map(len, cuts)) < columns
    steps = [cut for cut in cuts if re.match(r"(epoch )?1/1 +\d/5", cut)]
    assert steps, cuts
    wanted = r"(epoch )?1/1 +\d/5 +loss \d\.\d{3} +error \d+\.\d % +eta \d:\d\d:\d\d"
    more = {200: r" +\d+ images/s +data \d+ % +lr \S+ +" + BARS, 80: r".* +" + BARS, 60: " +" + BARS}
    if columns in more:
        assert all(re.fullmatch(wanted + more[columns] + " *", cut) for cut in steps), steps
    else:
        assert all(re.fullmatch(r"1/1 \d/5 loss \d\.\d{3} *", cut) for cut in steps), steps


def test_a_long_name_leaves_room_for_the_rest(tmp_path):
    run = tmp_path / ("long-" * 12)
    run.symlink_to(straight_run())
    cuts = in_terminal(60, EVAL, str(run), "--device", "cpu", "-b", "4")
    found = [cut for cut in cuts if cut.startswith("...")]
    assert found
    assert all(re.fullmatch(r"\.\.\.\S*long- +\d+/12 +images +" + BARS + " *", cut) for cut in found), found
    assert max(map(len, cuts)) < 60


def test_a_terminal_that_shrinks_and_grows(monkeypatch):
    """And one that does not know its size, which is taken for one of 80 columns."""
    sizes = (100, 50, 120, 0)
    control, terminal = pty.openpty()
    os.set_blocking(control, False)  # a line that is not written is an error here
    with open(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        console = Console()
        written = []
        for done, columns in enumerate(sizes, 1):
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24 if columns else 0, columns, 0, 0))
            time.sleep(0.15)  # a line moves at most ten times a second
            console.progress(done, 9, "epoch 1/1", *PARTS)
            written.append(os.read(control, 1 << 16).decode())
        console.clear()
    for text, columns in zip(written, sizes, strict=True):
        assert "/9" in text
        assert max(map(len, text.split("\r"))) < (columns or 80)
    assert [("lr 0.01" in text, "|" in text) for text in written] == [
        (True, True),
        (False, True),
        (True, True),
        (False, True),
    ]
    os.close(control)


WAITING = (
    "import threading; from convnet.output import console; console.UNNOTICED = float(sys.argv[2]); passed = [];\n"
    "console.duration = lambda _: passed.append(1) or f'0:00:{len(passed):02}'\n"
    "with console.Console(sys.argv[3] == 'quiet').waiting(f'looking through {sys.argv[1]}'):\n"
    "    while console.UNNOTICED < 9 and len(passed) < 4 and sys.argv[3] != 'quiet': threading.Event().wait(.01)\n"
)


@pytest.mark.parametrize("columns", [80, 30])
def test_a_wait_of_unknown_length_is_told(columns):
    path = "/data/" + "pictures/" * 6
    cuts = in_terminal(columns, WAITING, path, "0.15", "")
    told = [cut.rstrip() for cut in cuts if re.search(r" 0:00:0\d *$", cut)]
    assert len(told) >= 3, cuts
    assert all(path in cut or (cut.startswith("...") and "pictures/" in cut) for cut in told)
    assert max(map(len, cuts)) < columns
    for nothing in (("9", ""), ("0", "quiet")):
        assert "".join(in_terminal(columns, WAITING, path, *nothing)).strip() == ""


def test_a_wait_is_told_once_in_a_file(capsys, monkeypatch):
    monkeypatch.setattr("convnet.output.console.UNNOTICED", 0.01)
    with Console().waiting("looking through photos"):
        time.sleep(0.1)
    assert capsys.readouterr().out == "looking through photos\n"


def test_a_line_in_a_file_has_all_parts(capsys):
    console = Console()
    console.progress(1, 9, "epoch 1/1", *PARTS)
    assert capsys.readouterr().out == "epoch 1/1  1/9  " + "  ".join(PARTS) + "\n"
