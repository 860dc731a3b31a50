"""What the CUDA driver says when something went wrong, told apart by what is left: nothing but the message is given.

After most errors a device goes on. A kernel that broke off takes its context with it: every later call fails with the
same words, and what lies in the device's memory means nothing. A device that is lost takes only itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from .protocol import DeviceError, DeviceLost, KernelFault

# Parts of the driver's texts (cuGetErrorString), which are those of the runtime too.
FAULTS = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "hardware stack error",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
)
LOSSES = (
    "ECC error",
    "NVLink error",
    "hardware error",
    "busy or unavailable",
    "no CUDA-capable device",
    "unknown error",  # what a GPU that fell off the bus answers
)
TOO_OLD = "driver version is insufficient"


def translated(device: str, text: str, launched: Iterable[str]) -> Exception:
    """The exception for what the driver said of ``device``, on which ``launched`` were the last to be queued."""
    if any(part in text for part in FAULTS):
        return KernelFault(
            f"{device}: {text}: a kernel broke off, and nothing in this device's memory can be trusted; the last ones "
            f"queued: {', '.join(launched) or 'none'}; to find out which, run again with CUDA_LAUNCH_BLOCKING=1, or "
            "under compute-sanitizer"
        )
    if any(part in text for part in LOSSES):
        return DeviceLost(
            f"{device}: {text}: the device is lost; look at nvidia-smi and at the kernel's log (dmesg), and use "
            "another one (--device)"
        )
    if TOO_OLD in text:
        return DeviceError(f"{device}: {text}: update the NVIDIA driver")
    return DeviceError(f"{device}: {text}")


def too_old(driver: int, built: str) -> str | None:
    """Why a driver for CUDA ``driver`` (13000 for 13.0) cannot run what is ``built`` with "13.0"; None if it can: it
    knows all versions with the same first number."""
    if not built or driver // 1000 >= int(built.partition(".")[0]):
        return None
    known = f"{driver // 1000}.{driver % 1000 // 10}"
    return (
        f"cuda: the NVIDIA driver is too old: it knows CUDA up to {known}, and the kernels are built with {built}; "
        f"update the driver, or install again with a CUDA toolkit of version {known} or older"
    )
