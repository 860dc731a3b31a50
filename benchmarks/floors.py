"""The least time that a machine needs for so many operations and bytes.

Rates are what well-tuned programs reach on an H200, not data-sheet peaks: dense products on random data, and a copy
within device memory, read and written bytes together. They are assumptions to measure against, not measurements of this
project. Other machines have no floors here.
"""

from __future__ import annotations

# products per second as FLOP/s, by precision: wgmma in bf16, mma.sync in tf32 (wgmma would do 395), FFMA in fp32
FLOPS = {"bf16": 790e12, "tf32": 250e12, "fp32": 54e12}
BYTES = 4.3e12


def seconds(flops: float, nbytes: float, precision: str) -> float:
    """max(arithmetic, memory) on an H200."""
    return max(flops / FLOPS[precision], nbytes / BYTES)


def bound(flops: float, nbytes: float, precision: str) -> str:
    """ "math" or "memory", whichever takes longer."""
    return "math" if flops / FLOPS[precision] >= nbytes / BYTES else "memory"
