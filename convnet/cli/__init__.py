"""The commands, one module each with a function ``main`` that returns the exit code, and what they have in common:
errors are one line on standard error, and decide the exit code."""

from __future__ import annotations

import argparse
import atexit
import difflib
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from ..group.launch import joined, launched

if TYPE_CHECKING:
    from ..group.group import Group

DONE, UNEXPECTED, USAGE, DATA, CHECKPOINT, DIVERGED, DEVICE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the option that was perhaps meant."""

    def __init__(self, prog: str, description: str, example: str):
        from ..version import __version__

        super().__init__(
            prog,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        self.add_argument("-v", "--verbose", action="store_true", help="say more; show tracebacks of errors")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """Of several processes, all told the same, one speaks."""
        if (started := launched()) is None or started.rank == 0:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        if message.startswith("unrecognized arguments: -"):
            wrong = message.split(": ")[1].split()[0].partition("=")[0]
            close = difflib.get_close_matches(wrong, known, 1)
            message = f"there is no option {wrong}" + (f"; did you mean {close[0]}?" if close else "")
        self.exit(USAGE, f"{self.prog}: error: {message} (all options: {self.prog} --help)\n")


def weights_options(parser: Parser) -> None:
    """What files of weights do not say, for commands that take one as RUN."""
    group = parser.add_argument_group("files of weights, which do not say it themselves")
    group.add_argument("--classes", metavar="FILE", help="the name of a class in every line (default: numbers, from 0)")
    group.add_argument("--model", metavar="NAME", help="network, where several fit: bvlc_alexnet or caffenet")


def _exit_code(error: BaseException) -> int:
    from ..data import DataError
    from ..devices.protocol import DeviceError
    from ..interop.files import WeightsError
    from ..training.checkpoint import CheckpointError
    from ..training.trainer import Diverged

    if isinstance(error, _Ended):
        return 128 + int(error.args[0])
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    codes: dict[type[BaseException], int] = {
        KeyboardInterrupt: INTERRUPTED,
        WeightsError: CHECKPOINT,  # a ValueError too, as one of a library's
        ValueError: USAGE,
        DataError: DATA,
        CheckpointError: CHECKPOINT,
        Diverged: DIVERGED,
        DeviceError: DEVICE,
        MemoryError: DEVICE,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), UNEXPECTED)


END_SECONDS = 10  # in which a process that fails ends the others


@contextmanager
def in_group() -> Iterator[Group]:
    """The processes that do this command's work together. What ends one of them in here ends all, with one message and
    one exit code: the others raise ``Elsewhere`` where they hear of it."""
    from ..devices.blas import share_cores
    from ..group.group import Elsewhere

    try:
        group = joined()
    except Exception:
        if (started := launched()) and started.rank:
            time.sleep(1)  # where the first one fails, too, it tells, and launchers end the others
        raise
    if group.size == 1:
        yield group
        return
    share_cores(group.neighbours)
    try:
        yield group
    except Elsewhere as error:
        time.sleep(END_SECONDS)  # whoever tells of it ends this process
        atexit.register(group.end, error.code)
        raise
    except BaseException as error:
        code = _exit_code(error)
        atexit.register(group.end, code)  # when the error was told
        if not group.failed(code):
            time.sleep(END_SECONDS)
            raise Elsewhere(0, code) from error
        raise


class _Ended(BaseException):
    """A signal came that asks a process to end; not an ``Exception``, which somebody may take for a failure."""


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended(number)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: what is open is closed, and what is half-written is removed."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _warnings(verbose: bool) -> Iterator[None]:
    """Our modules' warnings are lines of their own; those of libraries, by ``logging`` or ``warnings``, are not shown
    unless ``verbose``."""
    from ..output.console import ignore_warnings

    lines = logging.StreamHandler()
    if not verbose:
        lines.addFilter(logging.Filter("convnet"))
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING, handlers=[lines])
    before = ignore_warnings(verbose)
    try:
        yield
    finally:
        warnings.showwarning = before


def guarded(name: str, verbose: bool, work: Callable[[], int]) -> int:
    """Runs a command's work; an error becomes one line on standard error and an exit code, and so does a warning of the
    modules below. What libraries warn of is shown to those alone who ask for more."""
    from ..devices.protocol import KernelFault
    from ..group.group import Elsewhere
    from ..output.files import printable

    try:
        with _ended_by_signals(), _warnings(verbose):
            code = work()
            sys.stdout.flush()  # here, where it may fail
            return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return UNEXPECTED
    except KeyboardInterrupt as error:
        print(f"\n{name}: stopped", file=sys.stderr)
        return _exit_code(error)
    except _Ended as ended:
        print(f"{name}: stopped", file=sys.stderr)
        return _exit_code(ended)
    except Elsewhere as error:
        return error.code
    except Exception as error:
        if verbose:
            traceback.print_exc()
        code = _exit_code(error)
        text = printable(" ".join(str(error).split())) or type(error).__name__
        if isinstance(error, MemoryError):
            text = f"this machine is out of memory ({text}); end other programs, or use a machine with more"
        elif code == UNEXPECTED and not isinstance(error, KernelFault):
            text = f"{type(error).__name__}: {text}" + ("" if verbose else " (-v shows where)")
        print(f"{name}: error: {text}", file=sys.stderr)
        return code


def tolerate_encoding() -> None:
    """Names that the terminal cannot show must not end a run, nor that there is nobody to show them to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
