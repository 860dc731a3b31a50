"""The kernels of the device "cpu": loops on all cores, and products by BLAS. Also what tests choose about them."""

from ._kernels import *

def use_blas(sgemm: int, get_threads: int, set_threads: int, wide: bool) -> None:
    """Where products are computed from now on: addresses of cblas_sgemm and of the functions that get and set its
    number of threads; ``wide``: its integers have 64 bits. All 0: by a loop of our own."""

def threads() -> int:
    """How many threads a kernel takes: as many as BLAS may."""

def scratch_bytes() -> int:
    """Scratch memory that the threads hold, for all networks together."""

def set_level(number: int) -> None:
    """The instructions that are used: 0 for those that every processor has, 1 for AVX2, 2 for AVX-512, -1 for the best
    again. Loops give the same bits at all of them, products need not. Raises ``ValueError`` for what this processor
    does not have."""

def set_tile_bytes(bytes: int) -> None:
    """How much unfolded input a product takes at a time, 0 for the default. Changes the order of sums."""

def poison_scratch(on: bool) -> None:
    """While on, scratch memory is NaN whenever a kernel asks for it."""

def signatures() -> dict[str, list[tuple[str, str, bool, bool]]]:
    """What the functions take: name, kind (of an array its dtype, "activations" where the precision decides that),
    whether it is an array that is written, whether None may be passed."""
