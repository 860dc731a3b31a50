"""The commands. Each is a function that takes the arguments and returns the exit code; errors are one line."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

DONE, UNEXPECTED, USAGE, DATA, CHECKPOINT, DIVERGED, DEVICE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the option that was perhaps meant."""

    def __init__(self, prog: str, description: str, example: str):
        from . import __version__

        super().__init__(
            prog,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        self.add_argument("-v", "--verbose", action="store_true", help="say more; show tracebacks of errors")

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        if message.startswith("unrecognized arguments: -"):
            wrong = message.split(": ")[1].split()[0].partition("=")[0]
            close = difflib.get_close_matches(wrong, known, 1)
            message = f"there is no option {wrong}" + (f"; did you mean {close[0]}?" if close else "")
        self.exit(USAGE, f"{self.prog}: error: {message} (all options: {self.prog} --help)\n")


def _exit_code(error: Exception) -> int:
    from .backend import DeviceError
    from .checkpoint import CheckpointError
    from .data import DataError
    from .train import Diverged

    codes: dict[type[Exception], int] = {
        ValueError: USAGE,
        DataError: DATA,
        CheckpointError: CHECKPOINT,
        Diverged: DIVERGED,
        DeviceError: DEVICE,
        MemoryError: DEVICE,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), UNEXPECTED)


def _guarded(name: str, verbose: bool, work: Callable[[], int]) -> int:
    """Runs a command's work; an error becomes one line on standard error and an exit code."""
    try:
        return work()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return UNEXPECTED
    except KeyboardInterrupt:
        print(f"\n{name}: stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if verbose:
            traceback.print_exc()
        code = _exit_code(error)
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError):
            text = f"out of memory ({text}); use a smaller --batch-size"
        elif code == UNEXPECTED:
            text = f"{type(error).__name__}: {text}" + ("" if verbose else " (-v shows where)")
        print(f"{name}: error: {text}", file=sys.stderr)
        return code


def _train_parser() -> _Parser:
    from .config import OPTIONS, Config
    from .spec import network

    parser = _Parser(
        "convnet-train",
        "Trains a network on labelled images; without arguments a small one on drawn shapes, in minutes on two cores.\n"
        "DATA: shapes (generated), a folder train/CLASS/*.jpg + val/CLASS/*.jpg, or a CIFAR-10 archive or folder.",
        "convnet-train shapes --model alexnet-tiny --epochs 6 --device cpu -o runs/first",
    )
    defaults = Config().resolved(network(Config.model).defaults, network(Config.model).crop)
    groups: dict[str, Any] = {"data": parser.add_argument_group("data")}
    for name, option in OPTIONS.items():
        group = groups.setdefault(option.group, None) or parser.add_argument_group(option.group)
        groups[option.group] = group
        if option.kind is bool:
            group.add_argument(*option.flags, dest=name, action="store_false", default=None, help=option.help)
            continue
        value, own = getattr(defaults, name), getattr(Config(), name) is not None
        default = "no limit" if value is None else value if own else f"the network's; {Config.model}: {value}"
        text = f"{option.help} (default: {default})"
        if not option.flags:
            group.add_argument(name, nargs="?", default=None, metavar=name.upper(), help=text)
            continue
        metavar = (
            "{" + ",".join(option.choices) + "}" if option.choices else {int: "N", float: "X", str: "NAME"}[option.kind]
        )
        group.add_argument(*option.flags, dest=name, type=option.kind, default=None, metavar=metavar, help=text)
    group = groups["run folder"]
    group.add_argument("-o", "--output", metavar="DIR", help="the run folder (default: runs/NETWORK-DATA-TIME)")
    group.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto|FILE",
        help="go on from the newest whole checkpoint in DIR (start anew where there is none), or from FILE, or from "
        "a run folder; options not given are those of the run",
    )
    group.add_argument(
        "--config", metavar="FILE", help="options from a TOML file, such as a run's config.toml; flags beat it"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    return parser


def train(arguments: Sequence[str] | None = None) -> int:
    """``convnet-train``"""
    parser = _train_parser()
    chosen = vars(parser.parse_args(arguments))
    output, resume, config = chosen.pop("output"), chosen.pop("resume"), chosen.pop("config")
    quiet, verbose = chosen.pop("quiet"), chosen.pop("verbose")
    flags = {name: value for name, value in chosen.items() if value is not None}
    _tolerate_encoding()

    def work() -> int:
        from .config import read_toml
        from .metrics import Console
        from .train import run

        return run(flags, read_toml(config) if config else {}, output, resume, Console(quiet, verbose))

    return _guarded(parser.prog, verbose, work)


def info(arguments: Sequence[str] | None = None) -> int:
    """``convnet-info``"""
    from .precision import PRECISIONS

    parser = _Parser(
        "convnet-info",
        "Shows devices, driver, compiled kernels and versions, and tests every device with a small convolution.\n"
        "With --kernels it shows which kernel every layer and pass takes instead.",
        "convnet-info --kernels --model alexnet -b 128 --precision bf16",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    group = parser.add_argument_group("kernels")
    group.add_argument("--kernels", action="store_true", help="the kernels that convolutions and linear layers take")
    group.add_argument("--model", default="alexnet", metavar="NAME", help="of this network (default: alexnet)")
    group.add_argument(
        "-b", "--batch-size", type=int, default=128, metavar="N", help="for so many images (default: 128)"
    )
    group.add_argument(
        "--precision", choices=PRECISIONS, metavar="{" + ",".join(PRECISIONS) + "}", help="in this one (default: all)"
    )
    group.add_argument(
        "--shape",
        metavar="SIZES",
        help='for one problem instead of a network: "N=128 C=96 H=27 W=27 K=256 R=5 padding=2 groups=2" '
        '(also stride, S), or without R a linear layer, "N=128 C=9216 K=4096"',
    )
    chosen = parser.parse_args(arguments)
    _tolerate_encoding()

    def kernels() -> int:
        from . import selection

        precisions = (chosen.precision,) if chosen.precision else PRECISIONS
        found = selection.report(chosen.model, chosen.batch_size, precisions, chosen.shape)
        print(json.dumps(found, indent=2) if chosen.json else selection.as_text(found), flush=True)
        return DONE

    def work() -> int:
        if chosen.kernels or chosen.shape:
            return kernels()
        from .info import as_text, passed, report

        found = report()
        print(json.dumps(found, indent=2) if chosen.json else as_text(found), flush=True)
        return DONE if passed(found) else DEVICE

    return _guarded(parser.prog, chosen.verbose, work)


def _tolerate_encoding() -> None:
    """Names that the terminal cannot show must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
