"""How this process was started: by itself, or as one of several that a launcher told so in its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .group import Group

# What launchers set: rank and number of processes, and by whom. Slurm's stand for a step of tasks that srun started;
# in a batch script itself they are those of a step of one.
VARIABLES = (
    ("PMI_RANK", "PMI_SIZE", "mpirun"),  # MPICH and its like, srun with PMI-2
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "srun"),
)


@dataclass(frozen=True)
class Launched:
    """As rank ``rank`` of ``size``, by ``launcher``."""

    rank: int
    size: int
    launcher: str


def launched() -> Launched | None:
    """What the launcher says; None where there is none, or a single process."""
    for rank, size, launcher in VARIABLES:
        try:
            found = Launched(int(os.environ[rank]), int(os.environ[size]), launcher)
        except (KeyError, ValueError):
            continue
        if found.size > 1:
            return found
    return None


def joined() -> Group:
    """The group of the processes that were started with this one; MPI is looked for only where there are several.

    Raises ``DeviceError`` where a launcher started several and they cannot find each other.
    """
    from ..devices.protocol import DeviceError
    from .group import Group

    said = launched()
    if said is None:
        return Group()
    which = f"{said.launcher} started {said.size} processes"
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library
        reason = " ".join(str(error).split())
        raise DeviceError(
            f'{which}, and mpi4py cannot be used here ({reason}); install it with: pip install ".[mpi]"'
        ) from error
    from .mpi import Processes

    if MPI.COMM_WORLD.size != said.size:
        library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        raise DeviceError(
            f"{which}, and MPI sees {MPI.COMM_WORLD.size} of them: mpi4py's library ({library}) is not that of the "
            "launcher; start with the mpirun that belongs to it, or build mpi4py with the launcher's MPI"
        )
    return Processes(MPI.COMM_WORLD)
