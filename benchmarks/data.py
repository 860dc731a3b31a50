"""The way of images into the network: decoding alone, decoding and augmenting in the Loader, ingest, and all of it.

Example: python -m benchmarks.data --images 1024 --size 256 -j 1,2

Decoding alone is a loop over the same JPEG bytes in as many plain threads, each with one image's memory of its own and
nothing else to do: what the Loader, which also shuffles, draws windows and noise and hands batches over, is held
against. Ingest is what the device makes of a batch (crop, flip, mean, noise, scale, layout); the pipeline is the Loader
with ingest behind it. The sides take turns, and ratios are of neighbours, so that a machine that others use, too, slows
both alike. "per core" are images per second of processor time, of all threads together.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import timing
from convnet import Network
from convnet.data import Loader, Statistics, decode_rgb, jpeg

BATCH = 128
GOAL = 0.9  # of the bare decoder's rate: what the Loader is to reach


class Jpegs:
    """``count`` JPEG images in memory, as a split: smooth random pictures with texture, of quality 95."""

    def __init__(self, count: int, size: int) -> None:
        self.size, self.labels = size, np.arange(count, dtype=np.int32)
        self.raw = [_picture(size, seed) for seed in range(count)]

    def __len__(self) -> int:
        return len(self.raw)

    def image(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        return decode_rgb(self.raw[index], out)

    def name(self, index: int) -> str:
        return f"picture {index}"


def _picture(size: int, seed: int) -> bytes:
    random = np.random.default_rng(seed)

    def layer(points: int, channels: int) -> np.ndarray:
        coarse = random.integers(0, 256, (points, points, channels), dtype=np.uint8)
        enlarged = Image.fromarray(coarse.squeeze()).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(enlarged, np.float32).reshape(size, size, channels)

    pixels = layer(9, 3) + (layer(max(2, size * 3 // 8), 1) - 128) / 4
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024, help="JPEG images, made in memory (default: 1024)")
    parser.add_argument("--size", type=int, default=256, help="their side; crops are 7/8 of it (default: 256)")
    parser.add_argument("-j", "--workers", default="1,2", help="numbers of decoding threads (default: 1,2)")
    parser.add_argument("--turns", type=int, default=9, help="measured turns of each side (default: 9)")
    parser.add_argument("--device", default="cpu", help="what ingests: auto, cpu, emu[:i], cuda:i (default: cpu)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)
    try:
        workers = [int(number) for number in options.workers.split(",")]
    except ValueError:
        workers = [0]
    if min(workers) < 1 or min(options.images, options.turns) < 1 or options.size < 32:
        raise ValueError("-j must be numbers of at least 1, --images and --turns at least 1, and --size at least 32")

    split, crop = Jpegs(options.images, options.size), options.size * 7 // 8
    batch = min(BATCH, len(split))
    with Network("alexnet-tiny", options.device, batch, crop=crop) as net:
        rows = [row for number in workers for row in compare(split, net, number, options.turns)]
        device = ",".join(net.devices)
    bytes_each = round(statistics.mean(map(len, split.raw)))
    settings = {"images": len(split), "size": split.size, "jpeg_bytes": bytes_each, "batch_size": batch}
    path = timing.write("data", device, {**settings, "decoder": jpeg.decoder(), "rows": rows}, options.output)
    print(f"{len(split)} JPEG images of {split.size} x {split.size}, {bytes_each:,} bytes each, by {jpeg.decoder()}")
    print(report(rows))
    print(f"written to {path}")
    return 0


def compare(split: Jpegs, net: Network, workers: int, turns: int) -> list[dict[str, Any]]:
    """What each side does with ``workers`` threads, as rows of the report; a turn is an epoch. Raises ``RuntimeError``
    when the Loader's images are not those of the decoder."""
    size, crop = split.size, net.spec.crop
    colours = Statistics(
        mean=np.full((3, crop, crop), 127.5, np.float32),
        std=np.full(3, 60, np.float32),
        deviations=np.array([100, 15, 5], np.float32),
        directions=np.eye(3, dtype=np.float32),
    )
    net.set_input(colours.mean)
    rooms = [np.zeros((size, size, 3), np.uint8) for _ in range(workers)]
    options = {"batch_size": net.batch_size, "crop": crop, "seed": 0, "statistics": colours}
    with Loader(split, augment=True, workers=workers, **options) as loader:
        epoch = 0
        last = _checked(split, loader)
        ingested = last.images.copy()

        def load(consume: Callable[..., None]) -> None:
            nonlocal epoch
            epoch += 1
            for batch in loader.epoch(epoch):
                consume(batch.images, batch.windows, batch.noise)

        def ingest(images: np.ndarray, windows: np.ndarray, noise: np.ndarray) -> None:
            net._ingest("ingest", images, windows, noise)
            net._sides[0].device.synchronize()

        sides: dict[str, Callable[[], object]] = {
            "decoder": lambda: _decode(split.raw, rooms),
            "loader": lambda: load(lambda *_: None),
            "ingest": lambda: [ingest(ingested, last.windows, last.noise) for _ in range(0, len(split), len(ingested))],
            "pipeline": lambda: load(ingest),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(turns + 1):
            for name, work in sides.items():
                wall, processor = time.perf_counter(), time.process_time()
                work()
                wall, processor = time.perf_counter() - wall, time.process_time() - processor
                images = -(-len(split) // len(ingested)) * len(ingested) if name == "ingest" else len(split)
                if turn:  # the first one warms up: memory is touched for the first time
                    found[name].append((images / wall, images / processor))
    return [_row(name, workers, found) for name in sides]


def _row(name: str, workers: int, found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"side": name, "workers": workers}
    for column, key in enumerate(("images_per_second", "per_core")):
        values = [turn[column] for turn in found[name]]
        ratios = [value / turn[column] for value, turn in zip(values, found["decoder"], strict=True)]
        row |= {key: statistics.median(values), f"{key}_all": values}
        row |= {f"{key}_ratio": statistics.median(ratios), f"{key}_noise": timing.noise(ratios)}
    return row


def _checked(split: Jpegs, loader: Loader) -> Any:
    """The first batch of an epoch, whose images must be those that were asked for."""
    running = loader.epoch(0)
    batch = next(running)
    for pixels, label in zip(batch.images, batch.labels.tolist(), strict=True):
        if not np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(split.raw[label])))):
            raise RuntimeError(f"the Loader's image {label} is not what Pillow decodes: not timed")
    return batch


def _decode(raw: list[bytes], rooms: list[np.ndarray]) -> None:
    """Every image once, in one thread for each of ``rooms``."""

    def work(first: int, room: np.ndarray) -> None:
        for data in raw[first :: len(rooms)]:
            if jpeg.simplejpeg is not None:
                jpeg.simplejpeg.decode_jpeg(data, "RGB", buffer=room)
            else:
                Image.open(io.BytesIO(data)).load()

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(rooms)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def report(rows: list[dict[str, Any]]) -> str:
    header = ("", "threads", "images/s", "x decoder", "noise", "per core", "x decoder", "noise")
    cells = []
    for row in rows:
        cells.append([row["side"], str(row["workers"])])
        for key in ("images_per_second", "per_core"):
            cells[-1] += [f"{row[key]:.0f}", f"{row[key + '_ratio']:.2f}", f"{100 * row[key + '_noise']:.0f} %"]
    text = timing.table(header, cells)
    for row in rows:
        if row["side"] == "loader":
            ratio, core = row["images_per_second_ratio"], row["per_core_ratio"]
            text += (
                f"\nthe Loader on {row['workers']} threads: {ratio:.2f} x the bare decoder's rate, {core:.2f} x per "
                f"core (goal: {GOAL})"
            )
    return text


if __name__ == "__main__":
    sys.exit(timing.command(main))
