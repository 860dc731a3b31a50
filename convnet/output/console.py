"""The lines that a person reads while something runs."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from tqdm import tqdm
from tqdm.utils import disp_len

BAR, SHORTEST_BAR = 12, 2  # columns between its ends
BEFORE_BAR = 3  # parts of a line that are worth more than a bar
UNNOTICED = 1.0  # seconds that pass without a word


class Console:
    """Lines on standard output, one moving line on a terminal, warnings on standard error; all lines go to the log too.

    ``aside`` sends the lines to standard error as well, where standard output is for results. ``broken`` tells that
    nobody reads standard output any more.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, aside: bool = False):
        self.quiet, self.verbose, self.aside, self.broken = quiet, verbose, aside, False
        self.log: IO[str] | None = None
        self.bar: tqdm[Any] | None = None
        self.last_line = -float("inf")

    def say(self, text: str) -> None:
        self.note(text)
        if not self.quiet:
            self._write(text, sys.stderr if self.aside else sys.stdout)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")
        self._write(f"warning: {text}", sys.stderr)

    def progress(self, done: int, total: int, prefix: str, *parts: str) -> None:
        """Shows where an epoch stands: on a terminal at once, else a line every five seconds; always if ``verbose``.

        ``parts`` stand in the order of their importance: where a terminal is too narrow for all of them, the last ones
        are left out; see ``fitted``.
        """
        head = [prefix, f"{done}/{total}"]
        line = "  ".join([*head, *parts])
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if self.verbose or now - self.last_line >= 5:
            self.last_line = now
            if self.verbose or not terminal:
                self.say(line)
            else:
                self.note(line)
        if terminal and not self.quiet:
            self._move(done, total, head, parts)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around what takes a while, nobody knows how long: after a second ``what`` is shown, on a terminal with the
        time that has passed. Nothing else is to be said meanwhile."""
        over = threading.Event()

        def tell() -> None:
            began = time.monotonic()
            if over.wait(UNNOTICED) or self.quiet:
                return None
            if not sys.stderr.isatty():
                return self.say(what)
            while True:
                self._move(0, 0, [what, duration(time.monotonic() - began)], [])
                if over.wait(UNNOTICED):
                    return None

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.clear()

    def _move(self, done: int, total: int, head: Sequence[str], parts: Sequence[str]) -> None:
        """The moving line at ``done`` of ``total``, without a bar where that is 0."""
        columns = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1  # the last one may begin a new line
        text, bar = fitted(columns, [_shown(part) for part in head], [_shown(part) for part in parts])
        style = "{desc}" + (f"|{{bar:{bar}}}|" if bar and total else "")
        if self.bar is None:
            # With miniters and nrows, or tqdm may skip what is due, and all where the terminal does not know its size.
            options = {"leave": False, "miniters": 1, "nrows": 24}
            self.bar = tqdm(total=total, desc=text, ncols=columns, bar_format=style, **options)
        elif columns < self.bar.ncols:
            self.bar.sp = tqdm.status_printer(self.bar.fp)  # which else blanks out what was there in the wider terminal
        self.bar.total, self.bar.ncols, self.bar.bar_format = total, columns, style
        self.bar.set_description_str(text, refresh=False)
        if total:
            self.bar.update(done - self.bar.n)
        else:
            self.bar.refresh()

    def clear(self) -> None:
        """Takes the moving line away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def note(self, text: str) -> None:
        """A line for the log alone."""
        if self.log is not None:
            try:
                self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
                self.log.flush()
            except OSError:
                self.log = None  # a full disk must not end the run; checkpoints report it

    def _write(self, text: str, stream: IO[str]) -> None:
        try:
            if self.bar is not None:
                tqdm.write(text, file=stream)
            else:
                print(text, file=stream, flush=True)
        except BrokenPipeError:
            self.broken = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or the interpreter complains at its end


class Silent(Console):
    """Says nothing: of several processes one speaks for all."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def _write(self, text: str, stream: IO[str]) -> None: ...


def fitted(columns: int, head: Sequence[str], parts: Sequence[str]) -> tuple[str, int]:
    """The moving line for so many columns: its text, and the length of the bar behind it, 0 for none.

    ``head``, which says what it is and how far, stays longest. Of ``parts`` the last are left out first, down to
    ``BEFORE_BAR``; then the spaces between all shrink to one; then the first word goes; then the bar; then the others
    of ``parts``, the last first. A name that would take more than half of the line lacks its beginning.
    """
    name, *where = head
    short = name.partition(" ")[2] or name
    room = max(columns // 2, 4)
    if disp_len(name) > room:
        name = short
    if disp_len(name) > room:
        while disp_len(name) > room - 3:
            name = name[1:]
        name = short = f"...{name}"
    least = min(len(parts), BEFORE_BAR)
    for begin, gap in ((name, "  "), (name, " "), (short, " ")):
        for count in range(len(parts), least - 1, -1):
            text = gap.join([begin, *where, *parts[:count], ""])
            if (bar := columns - disp_len(text) - 2) >= SHORTEST_BAR:
                return text, min(bar, BAR)
    for count in range(least, -1, -1):
        text = " ".join([begin, *where, *parts[:count]])
        if disp_len(text) <= columns:
            break
    return text, 0


def _shown(text: str) -> str:
    """As standard error will show it: in one line, in letters that it has."""
    encoding = sys.stderr.encoding or "ascii"
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def ignore_warnings(verbose: bool) -> Callable[..., None]:
    """What libraries warn of is for those who write programs: the lines of ``warnings`` go nowhere, unless ``verbose``
    or Python's own -W or PYTHONWARNINGS asks for them. A filter that makes one an error still does. Returns what
    ``warnings.showwarning`` was."""
    before = warnings.showwarning
    if not verbose and not sys.warnoptions:
        warnings.showwarning = lambda *_, **__: None
    return before


def duration(seconds: float) -> str:
    """1:02:03"""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
