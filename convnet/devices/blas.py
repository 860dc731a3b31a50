"""The BLAS that products on the device "cpu" take: the one that NumPy has brought."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from threadpoolctl import ThreadpoolController, threadpool_limits

# Of OpenBLAS as NumPy's wheels, conda and distributions name it, and of MKL: the product, how many threads it may take
# from now on, how many it may take, and whether its integers have 64 bits.
NAMES = [
    (f"{prefix}cblas_sgemm{suffix}", f"{prefix}openblas_set_num_threads{suffix}",
     f"{prefix}openblas_get_num_threads{suffix}", bool(suffix))
    for prefix in ("scipy_", "") for suffix in ("64_", "")
] + [("cblas_sgemm", "MKL_Set_Num_Threads", "MKL_Get_Max_Threads", False)]  # fmt: skip


def share_cores(processes: int) -> None:
    """Of so many processes on this machine every one takes its share of the cores, unless the environment says how many
    threads it is to have. What they compute does not depend on it."""
    if processes > 1 and not {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys():
        threadpool_limits(max(len(os.sched_getaffinity(0)) // processes, 1), user_api="blas")


def use_blas(kernels: Any) -> bool:
    """Tells ``convnet.kernels._cpu`` where the functions of BLAS are. False where none of a known name is loaded: it
    then multiplies on its own, more slowly."""
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        for *names, wide in NAMES:
            try:
                product, set_threads, get_threads = (getattr(library.dynlib, name) for name in names)
            except AttributeError:
                continue
            addresses = (ctypes.cast(f, ctypes.c_void_p).value for f in (product, get_threads, set_threads))
            kernels.use_blas(*addresses, wide)
            return True
    return False
