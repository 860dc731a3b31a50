"""Do the nets of 2012 for CIFAR-10, and LeNet-5, learn? On drawn shapes and on Fashion-MNIST, LeNet-5 beside PyTorch's.

python -m benchmarks.small_nets --fashion DIR
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import learning, timing
from convnet.network.networks import NETWORKS
from convnet.output.console import Console
from convnet.training import train
from convnet.training.metrics import MetricsFile

MODELS = [name for name in NETWORKS if name.startswith("cifar-") or name == "lenet5"]
SETS = ("shapes", "fashion")
EPOCHS = 10


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.small_nets", description=__doc__.splitlines()[0])
    parser.add_argument("--models", metavar="A,B", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--fashion", type=Path, metavar="DIR", help="where Fashion-MNIST's IDX files are; else shapes")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keeps its pictures (default: a temporary folder)")
    parser.add_argument("--device", default="cpu", help="of our side (default: cpu)")
    parser.add_argument(
        "-o", "--output", metavar="FILE.json", help="default: small-nets-DEVICE.json in benchmarks/results"
    )
    options = parser.parse_args(arguments)
    file = Path(options.output or timing.RESULTS / f"small-nets-{options.device.replace(':', '')}.json")
    models = learning.chosen(options.models, MODELS, "--models") or MODELS
    with tempfile.TemporaryDirectory(prefix="convnet-benchmark-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in SETS if options.fashion else SETS[:1]:
            data = learning.pictures(name, folder, options.fashion)
            for model in models:
                for way in ("ours", "PyTorch") if model == "lenet5" else ("ours",):
                    began = time.monotonic()
                    if way == "ours":
                        error = ours(model, data, options.device, Path(temporary))
                    else:
                        error = learning.pytorch(model, data, EPOCHS, 0)["error"]
                    seconds, today = round(time.monotonic() - began, 1), time.strftime("%Y-%m-%d")
                    row = {"set": name, "model": model, "way": way, "epochs": EPOCHS, "error": error,
                           "seconds": seconds, "date": today}  # fmt: skip
                    others = [r for r in learning.measured(file) if about(r) != about(row)]
                    timing.write("small-nets", options.device, {"rows": [*others, row]}, str(file))
                    print(f"{name}, {model}, {way}: {100 * error:.1f} %, {row['seconds']:.0f} s", flush=True)
    print(f"written to {file}")
    return 0


def about(row: learning.Row) -> tuple[str, str, str]:
    """What a row is about."""
    return row["set"], row["model"], row["way"]


def ours(model: str, data: str, device: str, temporary: Path) -> float:
    """The error behind the last epoch of ``convnet-train``, with what it does where nothing is said."""
    output = Path(tempfile.mkdtemp(dir=temporary))
    options = {"data": data, "model": model, "device": device, "epochs": EPOCHS, "eval_every": EPOCHS}
    if train.run(options, {}, str(output), None, Console(quiet=True)):
        raise KeyboardInterrupt  # asked to stop: what it has learnt so far is no row
    records = [r for r in MetricsFile(output / "metrics.jsonl").records() if r["event"] == "valid"]
    return float(records[-1]["top1_error"])


if __name__ == "__main__":
    sys.exit(timing.command(main))
