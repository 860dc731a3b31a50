"""Gives every command options and words that nobody would, and looks at how it ends.

    python tests/fuzz_commands.py FOLDER 1000          # so many command lines, in a new folder that may be thrown away
    python tests/fuzz_commands.py FOLDER 1000 --seed 7

Allowed are success and the exit codes that say what was wrong. A traceback, exit code 1 and a hang are findings: they
are printed, and the exit code is then 1. Commands run in this process one after the other. Some write where they are
told to, so that no word leads out of the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

from runs import TINY, make_images

from convnet.cli import eval as evaluate
from convnet.cli import export, info, predict, prepare, show, train

SECONDS = 120  # of one command, on a busy machine: most take less than a tenth of a second
COMMANDS = {
    "train": (
        train.main,
        "--lr -b --epochs --steps --momentum --weight-decay --crop --width --model --device --precision --seed "
        "--resume -o --save-every --keep --eval-every --lr-schedule --patience --warmup --config --cache -j "
        "--normalisation --noise --freeze --init --head-lr",
    ),
    "eval": (
        evaluate.main,
        "--data --split --views --weights --fit-weights --json --save-predictions --confusion --device --precision -b "
        "-j -q --retry",
    ),
    "predict": (
        predict.main,
        "--top --views --features -o --neighbours --among --data --split --json --csv --device --precision -b -j",
    ),
    "export": (export.main, "-o --input --check --names --data-licence -q"),
    "show": (show.main, "-o --jointly --data --device -b --views --seed --only-errors --queries --limit"),
    "info": (info.main, "--json --kernels --model -b --precision --shape"),
    "prepare": (prepare.main, "--size --keep-aspect --quality --seed -j"),
}
FLAGS = {
    "--fit-weights",
    "--json",
    "-q",
    "--retry",
    "--csv",
    "--jointly",
    "--only-errors",
    "--kernels",
    "--keep-aspect",
    "--check",
}
NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "10",
    "128",
    "99999999999",
    "1e9",
    "nan",
    "inf",
    "-0",
    "0.5",
    "1,1",
    "1,1,1",
    ",",
]
NAMES = [
    "",
    "x",
    "None",
    "é",
    "\udcff",
    "\x1b[31m",
    "a,b",
    "-",
    "--",
    "shapes",
    "auto",
    "cpu",
    "emu",
    "cuda",
    "emu:0,emu:1",
]
NAMES += [
    "cpu,cpu",
    "fp32",
    "bf16",
    "train",
    "val",
    "alexnet",
    "alexnet-tiny",
    "conv1",
    "fc7",
    "fc8",
    "norm1",
    "dropout6",
]
NAMES += ["N=8 C=3 H=9 W=9 K=4 R=3", "N=8 C=3 K=4", "N=0 C=-1 K=x", "curves", "filters", "confusion", "predictions"]
PLACES = [
    ".",
    "run",
    "images",
    "images/val",
    "text",
    "empty",
    "fifo",
    "no/where",
    "weird.npy",
    "new",
    "new.npy",
    "new.png",
    "new.onnx",
    "new.npz",
    "uint8",
    "torch",
]
WORDS = [*NUMBERS, *NAMES, *PLACES]


def make_folder(folder: Path) -> None:
    """What the words name: a run, its images, and files that are nothing."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    make_images(Path("images"))
    assert train.main(["images", *TINY, "-q", "-o", "run", "--epochs", "1"]) == 0
    Path("text").write_text("x")
    Path("weird.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{")
    Path("empty").mkdir()
    os.mkfifo("fifo")


def command_line(random: random.Random) -> tuple[str, list[str]]:
    """A command and its arguments: right ones, of which one may be another word, and some options."""
    command = random.choice(sorted(COMMANDS))
    given = {
        "train": ["images", *TINY, "-q", "--steps", "1", "-o", "out"],
        "eval": ["run"],
        "predict": ["run", "images/val"],
        "show": [
            "run",
            random.choice(["curves", "filters", "confusion", "predictions", "neighbours"]),
            "-o",
            "out.png",
        ],
        "export": ["run", "-o", random.choice(["out.onnx", "out.npz", "out.safetensors"])],
        "info": [],
        "prepare": ["images", "out"],
    }[command]
    if given and random.random() < 0.35:
        given[random.randrange(len(given))] = random.choice(WORDS)
    options = COMMANDS[command][1].split()
    for option in random.sample(options, random.choice([0, 1, 1, 2, 2, 3])):
        given += [option] if option in FLAGS else [option, random.choice(WORDS)]
    return command, given


class Hang(BaseException):
    """A command took too long."""


def too_long(*_: object) -> None:
    raise Hang


def ended(command: str, arguments: list[str]) -> tuple[object, str]:
    """The exit code, or the exception that came out, and what was written to standard error."""
    errors = io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            return COMMANDS[command][0](arguments), errors.getvalue()
    except SystemExit as error:
        return error.code, errors.getvalue()
    except BaseException as error:
        return type(error).__name__, errors.getvalue() + traceback.format_exc()
    finally:
        signal.alarm(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="must not exist")
    parser.add_argument("count", type=int, help="of command lines")
    parser.add_argument("--seed", type=int, default=0, help="of the series of command lines")
    options = parser.parse_args()
    make_folder(options.folder)
    signal.signal(signal.SIGALRM, too_long)
    rng, codes, findings = random.Random(options.seed), Counter[object](), 0
    for _ in range(options.count):
        for made in ("out", "new"):
            shutil.rmtree(made, ignore_errors=True)
        command, arguments = command_line(rng)
        code, errors = ended(command, arguments)
        codes[code] += 1
        if code not in (0, 2, 3, 4, 5, 6) or "Traceback" in errors:
            findings += 1
            print(f"FINDING {code}: convnet-{command} {arguments}\n{errors[-2000:]}", flush=True)
    print(f"{options.count} command lines, {findings} findings; exit codes: {dict(sorted(codes.items(), key=str))}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
