"""The CUDA kernels on the CPU, and the emulator's own switches."""

from ._kernels import *

def seed_order(seed: int) -> None:
    """Chooses the order of blocks, and of threads within a block. A correct kernel gives the same bits in all."""

def set_threads(count: int) -> None:
    """How many OS threads share the blocks of a launch; 0 means one per core."""

def set_architecture(number: int) -> None:
    """The machine that is played, 80 or 90: kernels are chosen by it. Raises ``ValueError`` for others."""

def check_only(on: bool) -> None:
    """While on, functions check their arguments and prepare the launch, tensor maps included, and start no kernel."""

def note_launches(multiprocessors: int) -> None:
    """From now on launches are noted, as on a machine of so many multiprocessors, and not run: arguments may be
    addresses of nothing. Raises ``ValueError`` where there is none."""

def noted_launches() -> list[tuple[str, tuple[int, int, int], tuple[int, int, int], int, list[tuple[int, bytes]]]]:
    """What was noted; launches run again. Signature of the kernel, grid, block, bytes of shared memory, and the
    alignment and bytes of every parameter."""

def signatures() -> dict[str, list[tuple[str, str, bool, bool]]]:
    """What the functions take: name, kind (of an array its dtype, "activations" where the precision decides that),
    whether it is an array that is written, whether None may be passed."""
