"""Programs on several processes, by the mpirun that belongs to mpi4py's library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from runs import ENVIRONMENT

BESIDE = Path(sys.executable).with_name("mpirun")
MPIRUN = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun")

needs_mpi = pytest.mark.skipif(
    find_spec("mpi4py") is None or MPIRUN is None, reason="there is no mpi4py with an mpirun: pip install '.[mpi]'"
)


def mpirun(n: int, *command: object, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """``command`` of this Python on n processes."""
    threads = {"OPENBLAS_NUM_THREADS": "1"}  # tests run beside each other
    return subprocess.run(
        [str(MPIRUN), "-n", str(n), sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, **threads, **variables},
        timeout=timeout,
        check=False,
    )
