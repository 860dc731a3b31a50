"""Does ``convnet-train`` learn where the user says nothing? Its default beside other schedules, and beside PyTorch.

Example: python -m benchmarks.learning --sets three,textures --seeds 0

Every way trains the same network on the same pictures for the same number of epochs, with the same crops, flips and
colour noise, and tells the error of its last evaluation. PyTorch trains from He's weights, with the default's batch,
rate and schedule. A set is drawn where it is first needed; ``fashion`` is Fashion-MNIST, from the IDX files that
``--fashion`` names.

Rows that a results file has stay: the same command goes on where it was interrupted, and a table comes together piece
by piece, from several commands side by side, too. ``--again`` measures them anew.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import timing
from convnet.data import Batch, DataSet, Loader, Statistics, cached, open_dataset, sampled_statistics
from convnet.data.recognise import find
from convnet.network.networks import network
from convnet.network.spec import NetworkSpec, parameter_shapes
from convnet.output.console import Console
from convnet.training import train
from convnet.training.config import Config
from convnet.training.metrics import Meter, MetricsFile, losses_and_ranks
from convnet.training.trainer import schedule_of

MODEL = "alexnet-tiny"
OURS: dict[str, dict[str, Any]] = {
    "default": {},
    "constant": {"lr_schedule": "constant"},
    "step": {"lr_schedule": "step"},
    "cosine": {"lr_schedule": "cosine"},
}
WAYS = (*OURS, "PyTorch")
SIDE = 73  # of drawn pictures: what alexnet-tiny cuts its 64 pixels from
Draw = Callable[[Path], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Set:
    """Pictures to learn: ``draw`` makes an image folder of them, None are the shapes that ``convnet-train`` draws."""

    what: str
    epochs: int
    draw: Draw | None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.learning", description=__doc__.splitlines()[0])
    parser.add_argument("--sets", metavar="A,B", help=f"of {', '.join(SETS)} (default: all; fashion with --fashion)")
    parser.add_argument("--ways", metavar="A,B", help=f"of {', '.join(keys(WAYS))} (default: all)")
    parser.add_argument("--seeds", default="0,1,2", metavar="A,B", help="default: 0,1,2")
    parser.add_argument(
        "--fashion", type=Path, metavar="DIR", help="where Fashion-MNIST's IDX files are, packed or not"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keeps drawn pictures (default: a temporary folder)")
    parser.add_argument("--device", default="cpu", help="of our side (default: cpu)")
    parser.add_argument("--again", action="store_true", help="measures what the file has, too")
    parser.add_argument(
        "-o", "--output", metavar="FILE.json", help="default: learning-DEVICE.json in benchmarks/results"
    )
    options = parser.parse_args(arguments)
    names = chosen(options.sets, list(SETS), "--sets") or [n for n in SETS if n != "fashion" or options.fashion]
    ways = [WAYS[keys(WAYS).index(way)] for way in chosen(options.ways, keys(WAYS), "--ways") or keys(WAYS)]
    if "fashion" in names and not options.fashion:
        raise ValueError("fashion needs --fashion DIR, the folder of train-images-idx3-ubyte and its like")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    file = Path(options.output or timing.RESULTS / f"learning-{options.device.replace(':', '')}.json")
    with tempfile.TemporaryDirectory(prefix="convnet-benchmark-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            data = pictures(name, folder, options.fashion)
            for seed in seeds:
                for way in ways:
                    if not options.again and any(of(row) == (name, way, seed) for row in measured(file)):
                        continue
                    row = one(name, way, seed, data, options.device, Path(temporary))
                    # read anew: another process may have measured others meanwhile
                    rows = [*(known for known in measured(file) if of(known) != of(row)), row]
                    timing.write("learning", options.device, {"model": MODEL, "rows": rows}, str(file))
                    print(f"{name}, {way}, seed {seed}: {100 * row['error']:.1f} %, {row['seconds']:.0f} s", flush=True)
    print(f"written to {file}")
    return 0


def keys(ways: Any) -> list[str]:
    """The ways as the command line names them."""
    return [way.lower() for way in ways]


def chosen(text: str | None, known: list[str], option: str) -> list[str]:
    """What of ``known`` a list names. Raises ``ValueError``."""
    found = text.split(",") if text else []
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"{option}: there is no {unknown[0]}; there are {', '.join(known)}")
    return found


def measured(file: Path) -> list[Row]:
    """The rows of a results file, none where it does not exist."""
    return json.loads(file.read_text())["rows"] if file.exists() else []


def of(row: Row) -> tuple[str, str, int]:
    """What a row is about."""
    return row["set"], row["way"], row["seed"]


def one(name: str, way: str, seed: int, data: str, device: str, temporary: Path) -> Row:
    """A row: one training, and the error and loss of its last evaluation."""
    began = time.monotonic()
    epochs, kept = SETS[name].epochs, "none" if data == "shapes" else "memory"
    if way in OURS:
        output = Path(tempfile.mkdtemp(dir=temporary))
        options = {"data": data, "device": device, "epochs": epochs, "seed": seed, "cache": kept, "eval_every": epochs,
                   **OURS[way]}  # fmt: skip
        if train.run(options, {}, str(output), None, Console(quiet=True)):
            raise KeyboardInterrupt  # asked to stop: what it has learnt so far is no row
        records = [r for r in MetricsFile(output / "metrics.jsonl").records() if r["event"] == "valid"]
        found = {"error": records[-1]["top1_error"], "loss": records[-1]["loss"], "epochs": records[-1]["epoch"]}
    else:
        found = pytorch(MODEL, data, epochs, seed)
    images = len(open_dataset(data, size=network(MODEL).image_size, seed=seed).valid)
    return {"set": name, "way": way, "seed": seed, **found, "images": images, "date": time.strftime("%Y-%m-%d"),
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


# ---- PyTorch


def pytorch(model: str, data: str, epochs: int, seed: int) -> dict[str, Any]:
    """What a user of PyTorch would write: the network, SGD with momentum, and the default's rates."""
    import torch

    from benchmarks.torch_network import TorchNetwork, Variant

    torch.manual_seed(seed)
    spec = network(model)
    dataset = cached(open_dataset(data, size=spec.image_size, seed=seed))
    config = Config(epochs=epochs).resolved(spec.defaults, spec.crop, len(dataset.train))
    spec, plain = (network(model, num_classes=len(dataset.classes), dropout=p) for p in (None, 0.0))
    found = sampled_statistics(dataset.train, spec.crop)
    weights = torch_weights(spec)
    first = inputs(spec, next(batches(dataset, False, config, found, seed, 0)), found.mean)
    options = config.lr, config.momentum, config.weight_decay
    peer, tester = (TorchNetwork(s, weights, [first], Variant(), "cpu", "fp32", *options) for s in (spec, plain))
    tester.parameters = peer.parameters  # PyTorch's dropout scales in training, and does nothing else
    schedule = schedule_of(config, -(-len(dataset.train) // config.batch_size))
    for epoch in range(epochs):
        for step, batch in enumerate(batches(dataset, True, config, found, seed, epoch)):
            for group in peer.optimizer.param_groups:
                group["lr"] = schedule.rate(epoch, step)
            peer.optimizer.zero_grad(set_to_none=True)
            peer.loss(*inputs(spec, batch, found.mean)).backward()
            peer.optimizer.step()
    meter = Meter()
    with torch.no_grad():
        for batch in batches(dataset, False, config, found, seed, 0):
            meter.add(*losses_and_ranks(tester.logits(inputs(spec, batch, found.mean)[0]).numpy(), batch.labels))
    means = meter.means()
    return {"error": means["top1_error"], "loss": means["loss"], "epochs": epochs}


def torch_weights(spec: NetworkSpec) -> dict[str, np.ndarray]:
    """He's normal weights, biases of 0."""
    import torch

    found = {name: torch.zeros(shape) for name, shape in parameter_shapes(spec).items()}
    for name, values in found.items():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(values)
    return {name: values.numpy() for name, values in found.items()}


def batches(dataset: DataSet, training: bool, config: Config, found: Statistics, seed: int, epoch: int) -> Any:
    """Those of an epoch of training, with crops, flips and colour noise, or of the validation images."""
    split = dataset.train if training else dataset.valid
    with Loader(split, batch_size=config.batch_size, crop=config.crop, seed=seed, augment=training, statistics=found,
                workers=0) as loader:  # fmt: skip
        yield from loader.epoch(epoch)


def inputs(spec: NetworkSpec, batch: Batch, mean: np.ndarray) -> tuple[Any, Any]:
    """Images as PyTorch's network takes them, float32 (n, 3, ...), and int64 labels."""
    import torch

    from benchmarks.torch_network import on_device

    crop = spec.crop
    cut = np.empty((len(batch.labels), crop, crop, 3), np.float32)
    for k, (top, left, flip) in enumerate(batch.windows):
        window = batch.images[k, top : top + crop, left : left + crop]
        cut[k] = window[:, ::-1] if flip else window
    x = on_device(spec, cut + batch.noise[:, None, None, :], mean, "cpu")
    return x, torch.from_numpy(batch.labels).long()


# ---- pictures


def pictures(name: str, folder: Path, fashion: Path | None) -> str:
    """Where the pictures of a set are, drawn where they are not there yet."""
    drawn, where = SETS[name].draw, folder / name
    if drawn is None:
        return "shapes"
    if not where.exists():
        made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder)) / "set"
        if name == "fashion":
            assert fashion is not None
            write_fashion(fashion, made)
        else:
            drawn(made)
        made.rename(where)
    return str(where)


def photographs(count: int) -> Draw:
    """Of ``tools/draw_photographs.py``."""
    tool = Path(__file__).parent.parent / "tools" / "draw_photographs.py"
    return lambda root: void(subprocess.run([sys.executable, str(tool), str(root), "--images", str(count)], check=True,
                                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))  # fmt: skip


def void(_: Any) -> None:
    """For what is called for what it does."""


def folder_of(classes: int, train: int, valid: int, picture: Callable[[int, np.random.Generator], Image.Image]) -> Draw:
    """An image folder of ``picture(class, random numbers)``."""

    def draw(root: Path) -> None:
        for part, (split, count) in enumerate((("train", train), ("val", valid))):
            for k in range(classes):
                place = root / split / f"class{k:02}"
                place.mkdir(parents=True)
                for number in range(count):
                    picture(k, np.random.default_rng([part, k, number])).save(place / f"{number:04}.png")

    return draw


def thing(kind: int, random: np.random.Generator) -> Image.Image:
    """A disc, a rectangle or bars, of any colour on any ground: nothing but its form tells the class."""
    ground, colour = (tuple(random.integers(0, 256, 3).tolist()) for _ in range(2))
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(image)
    (x, y), (w, h) = random.integers(5, 35, 2).tolist(), random.integers(16, 34, 2).tolist()
    if kind == 0:
        draw.ellipse((x, y, x + w, y + w), fill=colour)
    elif kind == 1:
        draw.rectangle((x, y, x + w, y + h), fill=colour)
    else:
        for left in range(int(random.integers(0, 8)), SIDE, 8):
            draw.line((left, 0, left, SIDE), fill=colour, width=2)
    return noisy(np.asarray(image, np.float32), random)


def texture(kind: int, random: np.random.Generator) -> Image.Image:
    """Waves, in one of five directions that a mirror does not exchange, of one of two lengths, soft or with edges;
    colours, contrast and phase vary.
    """
    angle = math.pi / 8 * (kind % 5 + random.uniform(-0.3, 0.3))
    length = (6, 11)[kind // 5 % 2] * random.uniform(0.85, 1.15)
    y, x = np.mgrid[:SIDE, :SIDE]
    along = (x * math.cos(angle) + y * math.sin(angle)) / length + random.uniform(0, 1)
    height = np.sin(2 * math.pi * along)
    height = np.sign(height) if kind >= 10 else height
    low, high = random.uniform(30, 225, (2, 3))
    return noisy(low + (high - low) * (0.5 + 0.5 * height[..., None]), random)


def noisy(pixels: np.ndarray, random: np.random.Generator) -> Image.Image:
    return Image.fromarray((pixels + random.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8))


FASHION_TRAIN, FASHION_VALID = 12_000, 2_000  # the first of 60,000 and of 10,000


def write_fashion(source: Path, root: Path) -> None:
    """An image folder of the first pictures of Fashion-MNIST's IDX files, which lie in ``source`` or below."""
    files = sorted(source.rglob("train-images-idx3-ubyte*"))
    if not files:
        raise ValueError(f"--fashion {source}: there is no train-images-idx3-ubyte, packed or not")
    found = find(files[0])
    for split, part, count in (("train", "train", FASHION_TRAIN), ("val", "test", FASHION_VALID)):
        images, labels = found.parts[part].images[:count], found.parts[part].labels[:count]
        for k, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            place = root / split / f"class{label:02}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert("RGB").save(place / f"{k:05}.png")


SETS = {
    "shapes": Set("the drawn shapes, 12,000", 6, None),
    "photographs-300": Set("300 drawn photographs", 60, photographs(300)),
    "photographs-1200": Set("1,200 drawn photographs", 40, photographs(1200)),
    "photographs-20000": Set("20,000 drawn photographs", 6, photographs(20_000)),
    "three": Set("three classes of 100", 60, folder_of(3, 100, 300, thing)),
    "textures": Set("20 textures of 100", 25, folder_of(20, 100, 25, texture)),
    "fashion": Set("Fashion-MNIST, 12,000", 6, void),
}


if __name__ == "__main__":
    sys.exit(timing.command(main))
