"""Devices by name: the one place that knows all kinds."""

from __future__ import annotations

import logging

from . import cuda, host
from .protocol import Device, DeviceError

log = logging.getLogger(__name__)

KINDS = ("cpu", "emu", "cuda")


def device_names() -> list[str]:
    """Devices usable here, best last: always "cpu", "emu" where it is built, "cuda:i" for every usable GPU."""
    return [*host.names(), *cuda.names()]


def open_device(name: str) -> Device:
    """Opens "cpu", "emu", "emu:i" or "cuda:i". Raises ``DeviceError`` when it is not there, with the reason."""
    kind, index = _kind_and_index(name)
    return cuda.open_cuda(index) if kind == "cuda" else host.open_host(kind, index)


def open_watched() -> Device:
    """An emulator of its own whose kernels tell of every load and store: ``kernels.watch`` counts them. Raises
    ``DeviceError`` when it is not built."""
    return host.open_host("glass", 0)


def _kind_and_index(name: str) -> tuple[str, int]:
    kind, _, index = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in KINDS or (index and not (index.isdecimal() and len(index) < 5)) or (kind == "cpu" and index):
        raise ValueError(f'device must be "cpu", "emu[:i]" or "cuda[:i]", got "{name}"')
    return kind, int(index or 0)


def open_devices(names: str, most: int = 2) -> list[Device]:
    """Opens a comma-separated list of devices, or "auto": the first ``most`` GPUs if there are any, else "cpu", with a
    warning where there is a driver for GPUs."""
    if names == "auto":
        return _open_any(most)
    return [open_device(name) for name in device_list(names)]


def device_of(place: int) -> str:
    """What "auto" is for the process that has this place, from 0, among several of its machine: a GPU for each, where
    there is any, else "cpu". Raises ``DeviceError`` where there are more processes than GPUs."""
    gpus = cuda.names()
    if gpus and place >= len(gpus):
        raise DeviceError(
            f"this machine has {len(gpus)} GPUs and more processes; start one for each GPU, or say --device cpu"
        )
    return gpus[place] if gpus else "cpu"


def device_list(names: str) -> list[str]:
    """The devices of a comma-separated list, in full. Raises ``ValueError`` where they cannot be."""
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        _kind_and_index(name)
    canonical = [f"{name}:0" if name in ("emu", "cuda") else name for name in chosen]
    if len(set(canonical)) != len(canonical):
        raise ValueError(f'devices must differ from each other, got "{names}"')
    if len({name.partition(":")[0] for name in canonical}) > 1:
        raise ValueError(f'devices must be of one kind, got "{names}"')
    return canonical


def _open_any(most: int) -> list[Device]:
    try:
        chosen = cuda.names()[:most]
        if chosen:
            return [open_device(name) for name in chosen]
        reason = cuda.unusable()
    except DeviceError as error:
        reason = str(error)
    if reason:
        log.warning("%s; computing on the CPU", reason)
    return [open_device("cpu")]
