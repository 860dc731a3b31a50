"""Parts of the machinery that can be turned off, to measure what each is worth or to find out which one is at fault.

``CONVNET_OFF=graph,fused convnet-train`` turns off these two. None of them changes what is computed, but for roundings
in bfloat16 where layers are not fused.
"""

from __future__ import annotations

import os

VARIABLE = "CONVNET_OFF"
PARTS = {
    "programmatic": "a kernel may start while the one before it ends (GPUs from sm_90 on)",
    "graph": "a training step, or a forward pass, is captured once and launched as a whole",
    "fused": "what belongs together runs as one kernel",
    "intake": "the next batch comes in on a stream of its own while a step runs",
}


def on(part: str) -> bool:
    """Whether ``part`` is to be used. Raises ``ValueError`` where the variable names what does not exist."""
    return states()[part]


def states() -> dict[str, bool]:
    """All parts, and whether they are on, by what the environment says now."""
    off = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    if unknown := [name for name in off if name not in PARTS]:
        raise ValueError(f'{VARIABLE} turns off {", ".join(PARTS)}, got "{unknown[0]}"; separate several by commas')
    return {part: part not in off for part in PARTS}
