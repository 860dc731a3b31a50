"""Timings: ``python -m benchmarks.ops`` for layers and passes, ``step`` for training steps and inference, ``timeline``
for the kernels of one step, ``train`` for the training loop, ``data`` for the way of images into the network,
``prepare`` for packing them and ``machine`` for the parts of a GPU that designs rest on. ``predict`` says beforehand
what a step should take on an H200. ``scale`` is for several processes. ``quality``
compares learning with PyTorch's, ``learning`` and ``small_nets`` say what is learnt, ``report`` writes README.md's
tables."""

import os
import sys
from pathlib import Path

# Started in the checkout, Python would find its folder convnet, which holds no compiled kernels, before the installed
# package. An editable or in-place build is found first or is that folder.
_CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.sort(key=lambda entry: Path(entry or ".").resolve() == _CHECKOUT)

# These make OpenBLAS and NumPy, or PyTorch and its libraries, use kernels for another processor than the one they run
# on, or compute in another precision. Here both sides choose for themselves. They are read when NumPy and PyTorch are
# loaded.
CHOOSING = (
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "NPY_DISABLE_CPU_FEATURES", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS",
)  # fmt: skip
IGNORED = {}
if "numpy" not in sys.modules:
    IGNORED = {name: os.environ.pop(name) for name in CHOOSING if name in os.environ}
