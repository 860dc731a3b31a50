"""Images per second of ``convnet-train`` itself, from three places, and the share of its time that it waits for them.

Example: python -m benchmarks.train --device cuda:0 --model alexnet --precision bf16 -b 128

"device" are images that stay on the device: what the network can do. "memory" are pixels in host memory, which is what
the way from there costs. "files" are JPEG images in a store made by ``convnet-prepare`` from drawn, photograph-like
pictures, decoded again in every epoch. Each is a training run of two epochs with crops, flips and colour noise as
always; what counts are the records of the second (the first decodes and warms up) but for its first one. The places
take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import prepare, timing
from convnet.kernels.precision import PRECISIONS
from convnet.network.networks import network
from convnet.output.console import Console
from convnet.prepare.packers import usable_cores
from convnet.prepare.prepare import Options
from convnet.prepare.prepare import run as pack
from convnet.training import train
from convnet.training.metrics import MetricsFile
from convnet.training.trainer import RECORD_STEPS

PLACES = {"device": "device", "memory": "memory", "files": "none"}  # and what --cache calls them


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.train", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="auto, cpu, emu[:i], cuda:i[,cuda:j] (default: cpu)")
    parser.add_argument("--model", default="alexnet-tiny", help="network (default: alexnet-tiny)")
    parser.add_argument("-b", "--batch-size", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the network (default: fp32)")
    parser.add_argument(
        "-j", "--workers", type=int, default=usable_cores(), help="threads that decode (default: cores)"
    )
    parser.add_argument("--steps", type=int, help="of an epoch (default: 200 on a GPU, else 50)")
    parser.add_argument("--turns", type=int, default=3, help="runs from each place (default: 3)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)
    steps = options.steps or (200 if options.device.startswith("cuda") else 50)
    if steps < 3 * RECORD_STEPS or min(options.batch_size, options.turns, options.workers) < 1:
        raise ValueError(f"at least {3 * RECORD_STEPS} steps, 1 image, 1 turn and 1 thread are needed")
    size = network(options.model).image_size
    with tempfile.TemporaryDirectory(prefix="convnet-benchmark-") as name:
        folder = Path(name)
        # one in twenty is for validation
        source = prepare.draw(folder / "source", -(-(20 * steps * options.batch_size) // 19) + 20)
        pack(source, folder / "store", Options(size), options.workers, Console(quiet=True))
        common = {
            "data": str(folder / "store"), "model": options.model, "device": options.device, "epochs": 2,
            "batch_size": options.batch_size, "precision": options.precision, "workers": options.workers,
            "lr": 1e-3, "lr_schedule": "constant", "steps": 2 * steps - 1,
        }  # fmt: skip
        rows = compare(common, steps, options.turns, folder)
    chosen = {key: common[key] for key in ("model", "precision", "batch_size", "workers")}
    path = timing.write("train", options.device, {**chosen, "image_size": size, "rows": rows}, options.output)
    print(report(rows))
    print(f"written to {path}")
    return 0


def compare(common: dict[str, Any], steps: int, turns: int, folder: Path) -> list[dict[str, Any]]:
    """A row for every place."""
    found: dict[str, list[dict[str, Any]]] = {place: [] for place in PLACES}
    for turn in range(turns):
        for place, cache in PLACES.items():
            output = folder / f"{place}-{turn}"
            train.run({**common, "cache": cache}, {}, str(output), None, Console(quiet=True))
            records = MetricsFile(output / "metrics.jsonl").records()
            measured = [r for r in records if r["event"] == "train" and r["step"] > steps + RECORD_STEPS]
            found[place].append(
                {
                    "images_per_second": statistics.median(r["images_per_second"] for r in measured),
                    "waiting": statistics.mean(r["data_share"] for r in measured),
                }
            )
    rows = []
    for place, runs in found.items():
        rates = [run["images_per_second"] for run in runs]
        rows.append(
            {
                "place": place,
                "images_per_second": statistics.median(rates),
                "noise": timing.noise(rates),
                "waiting": statistics.median(run["waiting"] for run in runs),
                "runs": runs,
            }
        )
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            f"images from {row['place']}", f"{row['images_per_second']:.0f}", f"{100 * row['noise']:.0f} %",
            f"{100 * row['waiting']:.0f} %", f"{row['images_per_second'] / rows[0]['images_per_second']:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return timing.table(("", "images/s", "noise", "waiting", "x device"), lines)


if __name__ == "__main__":
    sys.exit(timing.command(main))
