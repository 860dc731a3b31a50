"""Timings: ``python -m benchmarks.ops`` for layers and passes, ``step`` for training steps and inference, ``timeline``
for the kernels of one step, ``train`` for the training loop, ``data`` for the way of images into the network and
``prepare`` for packing them. ``predict`` says beforehand what a step should take on an H200. ``quality`` compares
learning with PyTorch's, ``report`` writes README.md's tables."""

import os
import sys
from pathlib import Path

# Started in the checkout, Python would find its folder convnet, which holds no compiled kernels, before the installed
# package. An editable or in-place build is found first or is that folder.
_CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.sort(key=lambda entry: Path(entry or ".").resolve() == _CHECKOUT)

# These make OpenBLAS use kernels for another processor than the one it runs on. PyTorch's library has no such
# variables, so both sides choose for themselves here. OpenBLAS reads them when NumPy is loaded.
IGNORED = {}
if "numpy" not in sys.modules:
    IGNORED = {name: os.environ.pop(name) for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ}
