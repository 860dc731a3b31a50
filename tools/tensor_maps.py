"""Has the driver encode every tensor map of a training step, and runs no kernel: the first thing to ask a new GPU.

    python tools/tensor_maps.py --device cuda:0 --model alexnet -b 128,256 --precision bf16 -o maps.json

A step is queued as always, forward, backward and update, but its functions stop in front of their launches
(``check_only``). What one refuses is kept and printed, and the next one goes on. In the emulator the same step meets
the limits that are known (``arch/tensor_map.hpp``). Prints a line per batch size and one per refusal: the layer, the
function, the kernel chosen, and of the tensor its element type, sizes, strides, box and swizzle. Exits with 1 when
there is a refusal, or no kernel that has tensor maps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.timeline import current_layer  # noqa: E402
from convnet import Network  # noqa: E402
from convnet.devices.protocol import DeviceError, Stream  # noqa: E402
from convnet.kernels.precision import PRECISIONS  # noqa: E402


@dataclass
class Call:
    """A function of the kernel table that a step called; ``variant`` is "" where it has but one kernel."""

    batch_size: int
    layer: str
    function: str
    variant: str
    refused: str = ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:i or emu (default: cuda:0)")
    parser.add_argument("--model", default="alexnet", help="network (default: alexnet)")
    parser.add_argument("-b", "--batch-size", default="128,256", metavar="N,...", help="images (default: 128,256)")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="default: bf16")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="every call, as JSON")
    options = parser.parse_args(arguments)
    calls: list[Call] = []
    try:
        for n in map(int, options.batch_size.split(",")):
            found = of_a_step(options.model, options.device, n, options.precision)
            print(f"{options.model}, {n} images, {options.precision}: {summary(found)}", flush=True)
            calls += found
    except (ValueError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 6 if isinstance(error, DeviceError) else 2
    if options.output:
        options.output.write_text(json.dumps([asdict(call) for call in calls], indent=1) + "\n")
    refused = [call for call in calls if call.refused]
    for call in refused:
        print(f"refused: N={call.batch_size} {call.layer} {call.function} {call.variant}: {call.refused}")
    return 1 if refused or not any(has_maps(call) for call in calls) else 0


def has_maps(call: Call) -> bool:
    return call.variant.startswith("wgmma")


def summary(calls: list[Call]) -> str:
    with_maps = [call for call in calls if has_maps(call)]
    bad = sum(bool(call.refused) for call in calls)
    return f"{len(calls)} calls, {len(with_maps)} of kernels with tensor maps, {bad} refused"


def of_a_step(model: str, device: str, n: int, precision: str) -> list[Call]:
    """What a training step calls, in order, each with what its launcher or the driver said against it."""
    calls: list[Call] = []
    with Network(model, device, n, precision) as net:
        kernels = net._sides[0].device.kernels
        if not hasattr(kernels, "check_only"):
            raise ValueError(f"{device}: its kernels have no tensor maps; choose cuda or emu")
        stream: Any = type(net._sides[0].stream)
        launch = stream.launch

        def collecting(stream: Stream, kernel: Callable[..., None], *given: Any) -> None:
            call = Call(n, current_layer(), kernel.__name__, variant(kernels, kernel.__name__, given))
            calls.append(call)

            def attempt(*handles: Any) -> None:
                try:
                    kernel(*handles)
                except Exception as error:  # whatever it is: the next call has its own
                    call.refused = f"{type(error).__name__}: {error}"

            attempt.__name__ = kernel.__name__
            launch(stream, attempt, *given)

        size, windows, noise = net.spec.image_size, np.zeros((n, 3), np.int32), np.zeros((n, 3), np.float32)
        net._graphs.capturing = False  # a capture would end at the first refusal
        stream.launch = collecting
        kernels.check_only(True)
        try:
            net.train_step(np.zeros((n, size, size, 3), np.uint8), np.zeros(n, np.int32), windows, noise).get()
        finally:
            kernels.check_only(False)
            stream.launch = launch
    return calls


def variant(kernels: Any, function: str, given: tuple[Any, ...]) -> str:
    """The name of the kernel that a product takes; "" for what is none."""
    op = function.removesuffix("_update")
    if op.startswith("conv_"):
        return str(kernels.conv_variant(op, *given[:2]))
    return str(kernels.linear_variant(op, *given[:2])) if op.startswith("linear_") else ""


if __name__ == "__main__":
    sys.exit(main())
