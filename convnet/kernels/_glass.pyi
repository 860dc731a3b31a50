"""The emulator whose kernels tell of every load and store; what is counted is said in ``src/kernels/emu/glass.hpp``."""

from typing import Any

from ._kernels import *

def seed_order(seed: int) -> None:
    """Chooses the order of blocks, and of threads within a block. A correct kernel gives the same bits in all."""

def watch(arrays: list[tuple[int, int]]) -> None:
    """From now on launches are watched: accesses to shared memory, and to arrays, each an address and a number of
    bytes."""

def watched() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was counted, of every launch, and the calls that order something; launches are watched no more."""

def leave_out(file: str, line: int, column: int) -> None:
    """The call at this place of the source does nothing from now on; with line 0 all do what they should."""

def signatures() -> dict[str, list[tuple[str, str, bool, bool]]]:
    """What the functions take: name, kind (of an array its dtype, "activations" where the precision decides that),
    whether it is an array that is written, whether None may be passed."""
