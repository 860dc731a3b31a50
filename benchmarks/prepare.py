"""``convnet-prepare`` beside a plain Pillow loop (open, RGB, resize, crop, save), taking turns over the same files.

Example: python -m benchmarks.prepare -j 2 --images 6000

Three sides, each in processes of its own, start included: the loop in one process, the loop in as many processes as
``convnet-prepare`` has workers, and ``convnet-prepare``, which besides shuffles, reads back what it stored, sums up the
statistics and survives a kill. Wall-clock time depends on what else the machine does; processor time per image does
hardly. The source is a folder of drawn, photograph-like images of common sizes, unless one is given.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import timing
from convnet.data.jpeg import decoder
from convnet.data.recognise import open_source
from convnet.prepare.packers import usable_cores

SIZES = [(500, 375), (375, 500), (500, 333), (333, 500), (500, 375), (640, 480), (400, 300), (500, 500)]
DISTINCT = 64  # drawn images; the rest of the files are links to them

LOOP = """
import sys
from PIL import Image
target, *names = sys.stdin.read().splitlines()
for number, name in enumerate(names):
    image = Image.open(name).convert("RGB")
    shorter = min(image.size)
    size = round(image.width * 256 / shorter), round(image.height * 256 / shorter)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - 256) // 2, (image.height - 256) // 2
    image.crop((left, top, left + 256, top + 256)).save(f"{target}/{number}.jpg", quality=95)
"""
PREPARE = "import sys; from convnet.cli.prepare import main; sys.exit(main())"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", metavar="SRC", help="an image folder (default: drawn images)")
    parser.add_argument("-j", "--workers", type=int, default=usable_cores(), help="processes (default: usable cores)")
    parser.add_argument("--images", type=int, default=6000, help="how many are drawn (default: 6000)")
    parser.add_argument("--turns", type=int, default=3, help="of each side (default: 3)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where to write (default: into benchmarks/results)")
    options = parser.parse_args(arguments)

    def work() -> int:
        if min(options.workers, options.images // 100, options.turns) < 1:
            raise ValueError("at least 1 worker, 100 images and 1 turn are needed")
        with tempfile.TemporaryDirectory(prefix="convnet-benchmark-") as folder:
            source = Path(options.source) if options.source else draw(Path(folder) / "source", options.images)
            results = compare(source, Path(folder), options.workers, options.turns)
        path = timing.write("prepare", "cpu", results, options.output)
        print(report(results))
        print(f"written to {path}")
        return 0

    return timing.command(work)


def draw(root: Path, count: int) -> Path:
    """An image folder; every file has details of all sizes and noise, and about 50 to 90 KB."""
    drawn = []
    for k in range(DISTINCT):
        width, height = SIZES[k % len(SIZES)]
        random = np.random.default_rng(k)
        pixels = random.normal(0, 4, (height, width, 3))
        for cells, share in ((6, 0.5), (20, 0.25), (60, 0.15), (150, 0.1)):
            coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += share * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
        drawn.append(file.getvalue())
    for k in range(count):
        path = root / ("val" if k % 20 == 19 else "train") / f"class{k % 3}" / f"{k:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if k < DISTINCT:
            path.write_bytes(drawn[k])
        else:
            first = k % DISTINCT
            os.link(root / ("val" if first % 20 == 19 else "train") / f"class{first % 3}" / f"{first:06}.jpg", path)
    return root


def compare(source: Path, folder: Path, workers: int, turns: int) -> dict[str, Any]:
    """Seconds by the wall and of all processors together, of every turn of every side; one more turn warms up."""
    listed = open_source(source)
    files = [place.file for part in (listed.train, listed.valid) for place in part.images]

    def loop(processes: int) -> None:
        running = []
        for k in range(processes):
            target = Path(tempfile.mkdtemp(dir=folder))
            process = subprocess.Popen([sys.executable, "-c", LOOP], stdin=subprocess.PIPE, text=True)
            assert process.stdin is not None
            process.stdin.write("\n".join([str(target), *files[k::processes]]))
            process.stdin.close()
            running.append(process)
        if any(process.wait() for process in running):
            raise RuntimeError("a Pillow loop failed")

    def prepare() -> None:
        target = tempfile.mkdtemp(dir=folder)
        subprocess.run([sys.executable, "-c", PREPARE, str(source), target, "-q", "-j", str(workers)], check=True)

    sides = {"pillow": lambda: loop(1), "pillow_all": lambda: loop(workers), "prepare": prepare}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            before, start = _children(), time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(_children() - before)
    rate = {name: len(files) / statistics.median(values) for name, values in seconds.items()}
    milliseconds = {name: 1e3 * statistics.median(values) / len(files) for name, values in processor.items()}
    return {
        "images": len(files),
        "workers": workers,
        "decoder": decoder(),
        "seconds": seconds,
        "processor_seconds": processor,
        "images_per_second": rate,
        "processor_milliseconds_per_image": milliseconds,
        "ratio_to_one_pillow_process": rate["prepare"] / rate["pillow"],
        "ratio_to_as_many_pillow_processes": rate["prepare"] / rate["pillow_all"],
        "ratio_of_processor_time": milliseconds["pillow_all"] / milliseconds["prepare"],
    }


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(results: dict[str, Any]) -> str:
    names = {"pillow": "Pillow loop, 1 process", "pillow_all": f"Pillow loop, {results['workers']} processes"}
    names["prepare"] = f"convnet-prepare -j {results['workers']} ({results['decoder']})"
    rows = [
        [
            text,
            f"{results['images_per_second'][name]:.0f}",
            f"{100 * timing.noise(results['seconds'][name]):.0f} %",
            f"{results['processor_milliseconds_per_image'][name]:.2f}",
        ]
        for name, text in names.items()
    ]
    table = timing.table(["side", "images/s", "+-", "processor ms/image"], rows)
    ratios = ("to_one_pillow_process", "to_as_many_pillow_processes", "of_processor_time")
    one, all_, per_core = (results[f"ratio_{name}"] for name in ratios)
    return (
        f"{table}\nconvnet-prepare: {one:.2f} x one Pillow process, {all_:.2f} x as many; "
        f"{per_core:.2f} x per second of processor time"
    )


if __name__ == "__main__":
    sys.exit(main())
