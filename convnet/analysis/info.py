"""What ``convnet-info`` reports: devices, compiled kernels, versions, and a self-test of every device."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any

import numpy as np

from ..devices import switches
from ..ops.layout import rounded, to_float32
from ..output.versions import versions


def self_test(device: str) -> str:
    """ "ok", or what went wrong: small convolutions on ``device`` against the same sums in float64 on NumPy.

    In float32 of random numbers; in other precisions of small integers, of which every product and sum is exact.
    """
    from ..devices.opening import open_device
    from ..functional import conv2d

    random = np.random.default_rng(0)
    x = random.standard_normal((3, 4, 9, 10), dtype=np.float32)
    weight = random.standard_normal((8, 2, 3, 3), dtype=np.float32)
    bias = random.standard_normal(8, dtype=np.float32)
    expected, magnitude = _convolution(x, weight, bias), _convolution(np.abs(x), np.abs(weight), np.abs(bias))
    options: dict[str, Any] = {"stride": 2, "padding": 1, "groups": 2, "device": device}
    small = [np.rint(values) for values in (np.tile(x, (22, 8, 1, 1)), np.tile(weight, (3, 8, 1, 1)), np.tile(bias, 3))]
    exact = _convolution(
        *small
    )  # of a whole block of 64 images, for which there are other kernels, and one that is not
    try:
        found = conv2d(x, weight, bias, **options)
        # 19 terms, each rounded once, in any order
        bad = int((np.abs(found - expected) > 20 * 2.0**-24 * magnitude).sum()) if found.shape == expected.shape else -1
        if bad:
            return f"failed: {bad} of {expected.size} values are wrong"
        for precision in open_device(device).precisions[1:]:
            found = conv2d(*small, **options, precision=precision)
            bad = int((found != to_float32(rounded(exact.astype(np.float32), precision))).sum())
            if bad:
                return f"failed: {bad} of {exact.size} values are wrong in {precision}"
    except Exception as error:  # a report, whatever happens
        return f"failed: {error}"
    return "ok"


def _convolution(
    x: np.ndarray[Any, Any], weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Two groups, stride 2, padding 1, filters of 3x3, summed in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[
        :, :, ::2, ::2
    ]  # (N, C, P, Q, R, S)
    half, filters = x.shape[1] // 2, weight.shape[0] // 2
    parts = [
        np.einsum("ncpqrs,kcrs->nkpq", windows[:, g * half : (g + 1) * half], weight[g * filters : (g + 1) * filters])
        for g in range(2)
    ]
    return np.asarray(np.concatenate(parts, axis=1) + bias.astype(np.float64)[:, None, None])


def _kernels(module: str) -> dict[str, str] | str:
    """How a compiled kernel module was built, or why it is not there."""
    try:
        return dict(importlib.import_module(f"convnet.kernels.{module}").build_info())
    except ImportError as error:
        missing = importlib.util.find_spec(f"convnet.kernels.{module}") is None
        return "not built" if missing else f"cannot be loaded: {error}"


def report() -> dict[str, Any]:
    """Everything there is to say, as JSON types."""
    from ..data.jpeg import decoder
    from ..devices import cuda as device
    from ..devices.opening import device_names

    names = device_names()
    return {
        "versions": versions(),
        "system": {"platform": platform.platform(), "cpus": os.cpu_count(), "executable": sys.executable},
        "cpu_kernels": _kernels("_cpu"),
        "emulator": _kernels("_emu"),
        "cuda_kernels": _kernels("_gpu"),
        "cuda": {"unavailable": device.unavailable()} if device.unavailable() else device.describe(),
        "devices": {name: self_test(name) for name in names},
        "jpeg_decoder": decoder(),
        "switches": {part: "on" if on else "off" for part, on in switches.states().items()},
    }


def passed(found: dict[str, Any]) -> bool:
    return all(result == "ok" for result in found["devices"].values())


def as_text(found: dict[str, Any]) -> str:
    lines = []

    def section(title: str, content: Any) -> None:
        if not isinstance(content, dict):
            lines.append(f"{title:<13} {content}")
            return
        for name, value in content.items():
            shown = ", ".join(str(v) for v in value) if isinstance(value, list) else value
            lines.append(f"{title:<13} {name:<14} {shown}")
            title = ""

    section("devices", {name: f"self-test {result}" for name, result in found["devices"].items()})
    section("cuda", found["cuda"])
    section("cuda kernels", found["cuda_kernels"])
    section("cpu kernels", found["cpu_kernels"])
    section("emulator", found["emulator"])
    section("jpeg decoder", found["jpeg_decoder"])
    section(switches.VARIABLE, found["switches"])
    section("versions", found["versions"])
    section("system", found["system"])
    return "\n".join(lines)
