"""Running ``convnet-prepare`` on a few small images, for its tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from runs import ELSEWHERE, ENVIRONMENT

from convnet.cli.prepare import main

# Shards and tasks of a few images, so that a small source has many of both.
SMALL = "import sys, convnet.prepare.prepare as p; p.SHARD, p.CHUNK = 8, 4; from convnet.cli.prepare import main; "
RUN = SMALL + "sys.exit(main())"
JOURNALS = "*.journal"


def here(*arguments: object) -> int:
    """The exit code of ``convnet-prepare`` in this process."""
    return main([*map(str, arguments), "-q"])


def spawn(*arguments: object, code: str = RUN, **options) -> subprocess.Popen:
    """``convnet-prepare`` with small shards in a process, and process group, of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        **options,
    )


def run(*arguments: object, code: int = 0, **options) -> str:
    """Output and errors of ``spawn`` when it ended with this exit code, and without a traceback."""
    process = spawn(*arguments, **options)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, output + errors
    assert "Traceback" not in errors
    return output + errors


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
