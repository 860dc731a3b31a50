"""The lines that a person reads while something runs."""

from __future__ import annotations

import os
import sys
import time
from typing import IO, Any

from tqdm import tqdm


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

    def progress(self, done: int, total: int, prefix: str, text: str) -> None:
        """Shows where an epoch stands: on a terminal at once, else a line every five seconds; always if ``verbose``."""
        line = f"{prefix}  {done}/{total}  {text}".rstrip()
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if self.verbose or now - self.last_line >= 5:
            self.last_line = now
            if self.verbose or not terminal:
                self.say(line)
            else:
                self.note(line)
        if terminal and not self.quiet:
            if self.bar is None:
                style = "{desc}  |{bar:12}|"
                self.bar = tqdm(total=total, leave=False, dynamic_ncols=True, bar_format=style, desc=line)
            self.bar.total = total
            self.bar.set_description_str(line, refresh=False)
            self.bar.update(done - self.bar.n)

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


def duration(seconds: float) -> str:
    """1:02:03"""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
