"""Draws a set of photograph-like JPEG files of varied sizes: OUT/train/CLASS/*.jpg and OUT/val/CLASS/*.jpg.

    python tools/draw_photographs.py photos --images 20000 --classes 20 -j 2
    python tools/draw_photographs.py more --set second --images 3000

A class is either a scene (brick wall, leaves, ...) or an object of a pattern (checked star, marbled ball, ...), so that
classes share patterns, shapes and grounds, and a network can mistake one for another. Perspective, light, colours,
clutter, things in front, blur, noise and the quality of the file vary. An image depends on (set, seed, its number, the
number of classes) alone, not on -j. Needs NumPy and Pillow; drawn at no more than 208 pixels a side and enlarged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from surfaces import (
    PATTERNS,
    SCENES,
    SHAPES,
    Plane,
    Rng,
    Surface,
    any_colour,
    ball,
    box,
    colour,
    mix,
    noise,
    pole,
    step,
)
from tqdm import tqdm

DRAWN = 208  # longest side in pixels before enlarging

# ---- a scene: what stands where, under which light ----

LEVEL = {"waves", "grass", "sand ripples"}  # seen from a person's height, never turned on their side
SETS = {
    "first": [
        *("brick wall", "checked ball", "leaves", "marbled star", "woven cloth", "pebbles", "spotted ball", "waves"),
        *("checked star", "wooden planks", "marbled ball", "striped star", "sand ripples", "stone wall", "tree bark"),
        *("striped ball", "grass", "spotted star", "cloudy sky", "furrowed field"),
    ],
    "second": [
        *("striped heart", "checked cross", "spotted ring", "marbled heart", "striped cross", "wooden ring"),
        *("spotted cross", "checked ring", "wooden heart", "marbled cross"),
    ],
}


def turned(rng: Rng, x: Plane, y: Plane, degrees: float, tilt: float) -> tuple[Plane, Plane]:
    """Coordinates turned by up to ``degrees`` and seen from an angle."""
    angle = np.radians(rng.uniform(-degrees, degrees))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    a, b = rng.uniform(-tilt, tilt, 2).astype(np.float32)
    depth = 1 / np.maximum(1 + a * x + b * y, np.float32(0.25))  # never behind the camera
    return (cos * x + sin * y) * depth, (cos * y - sin * x) * depth


def lit(rng: Rng, face: Plane, height: Plane, strength: float) -> Plane:
    """Light from one side on what stands out."""
    angle = rng.uniform(0, 6.2832)
    slope = np.float32(np.cos(angle)) * (height - np.roll(height, 1, 1))
    slope += np.float32(np.sin(angle)) * (height - np.roll(height, 1, 0))
    slope[0], slope[:, 0] = 0, 0
    return face * (1 + strength * np.clip(slope, -0.5, 0.5))[..., None]


def field(rng: Rng, x: Plane, y: Plane) -> Plane:
    """Furrows that run to a point on the horizon."""
    horizon = np.float32(rng.uniform(-0.4, -0.05))
    near = np.maximum(y - horizon, 0.004)
    across = (x - np.float32(rng.uniform(-0.8, 0.8))) / near
    furrow = 0.5 + 0.5 * np.sin(across * np.float32(rng.uniform(4, 9)) + 2 * noise(rng, x, 1 / near))
    green = noise(rng, 2 * across, 2 / near, 2)
    soil = colour(rng, (0.42, 0.3, 0.2), (0.3, 0.22, 0.16))
    crop = colour(rng, (0.35, 0.5, 0.15), (0.6, 0.55, 0.25), (0.3, 0.36, 0.2))
    ground = mix(soil * 0.7, crop, np.clip(furrow * (0.5 + green) - 0.1, 0, 1))
    ground = mix(ground, np.float32([0.6, 0.65, 0.7]), np.exp(-near * 14))
    return mix(ground, sky(rng, x, y), step(horizon - y, 0.02))


def sky(rng: Rng, x: Plane, y: Plane) -> Plane:
    cover = np.clip((noise(rng, 1.7 * x, 3 * y, 5) - rng.uniform(0.35, 0.55)) * rng.uniform(2.5, 6), 0, 1)
    top, low = colour(rng, (0.2, 0.4, 0.75), (0.35, 0.5, 0.7)), colour(rng, (0.65, 0.78, 0.9), (0.9, 0.7, 0.5))
    blue = mix(top, low, np.clip(0.5 + y, 0, 1))
    grey = 0.95 - 0.35 * noise(rng, 1.7 * x, 3 * y + 0.15, 4)
    return mix(blue, grey[..., None] * colour(rng, (1, 1, 1), spread=0.03), cover)


def surface(rng: Rng, name: str, x: Plane, y: Plane) -> Plane:
    """A scene that fills the picture."""
    if name == "cloudy sky":
        return sky(rng, *turned(rng, x, y, 15, 0.2))
    if name == "furrowed field":
        return field(rng, *turned(rng, x, y, 12, 0.1))
    level = name in LEVEL
    u, v = turned(rng, x, y, 12 if level else 25, 0.45)
    if level:
        v = v / np.maximum(1 - np.float32(rng.uniform(0, 0.9)) * y, np.float32(0.25))
    if name == "tree bark" or (name == "wooden planks" and rng.random() < 0.5):
        u, v = v, u
    scale = np.float32(np.exp(rng.uniform(np.log(2.5), np.log(6.5))))
    face, height = SCENES[name](rng, scale * u + rng.uniform(0, 99), scale * v + rng.uniform(0, 99))
    return lit(rng, face, height, rng.uniform(0.4, 1.2))


def ground(rng: Rng, x: Plane, y: Plane) -> Plane:
    """What an object lies on or stands before: dull, and often out of focus."""
    kind = rng.random()
    if kind < 0.65:
        face = mix(any_colour(rng), any_colour(rng), noise(rng, 1.5 * x, 1.5 * y, 4))
        if kind < 0.3:  # a table before a wall
            face = mix(face, np.float32(0.3) + 0.5 * any_colour(rng), step(y - rng.uniform(-0.3, 0.3), 0.03))
    else:
        name = [*SCENES, "cloudy sky", "furrowed field"][rng.integers(len(SCENES) + 2)]
        face = surface(rng, name, x, y)
        face = face + (face.mean(axis=(0, 1)) - face) * np.float32(rng.uniform(0.2, 0.7))
    return blurred(face, max(0.0, rng.uniform(-1, 3)))


def blurred(face: Plane, radius: float) -> Plane:
    if radius <= 0.3:
        return face
    image = Image.fromarray((np.clip(face, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def place(
    rng: Rng, picture: Plane, x: Plane, y: Plane, shape: Callable[[Plane, Plane], Plane], pattern: Surface | None,
    radius: float, centre: np.ndarray,
) -> Plane:  # fmt: skip
    """Lays an object over a picture, with its shadow. Without a pattern it has one colour."""
    turn = 180 if shape in (ball, box, pole) else 35
    p, q = turned(rng, (x - centre[0]) / radius, (y - centre[1]) / radius, turn, 0.2)
    depth = shape(p, q)
    away = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    shadow = shape(p - away[0], q - away[1])
    picture = picture * (1 - np.float32(rng.uniform(0.2, 0.6)) * step(shadow, 0.3))[..., None]
    round_ = shape is ball
    if pattern is None:
        face = mix(any_colour(rng), any_colour(rng), noise(rng, p, q, 2) * 0.5)
    else:
        bulge = 1 + 0.7 * np.clip(p * p + q * q, 0, 1) if round_ else np.float32(1)
        scale = np.float32(rng.uniform(1.6, 2.8))
        u, v = turned(rng, scale * p * bulge, scale * q * bulge, 50, 0)
        face, height = pattern(rng, u + rng.uniform(0, 99), v + rng.uniform(0, 99))
        face = lit(rng, face, height, 0.5)
    height = np.sqrt(np.clip(depth, 0, 0.9)) if round_ else np.clip(depth * 4, 0, 1) * 0.25
    angle = rng.uniform(0, 6.2832)
    toward = np.float32(np.cos(angle)) * p + np.float32(np.sin(angle)) * q
    shade = 0.45 + 0.75 * height + 0.35 * toward if round_ else 0.8 + 0.8 * height + 0.15 * toward
    face = face * np.clip(shade, 0.1, 1.5)[..., None]
    if rng.random() < 0.25:  # it shines
        a, b = rng.uniform(-0.4, 0.4, 2)
        glint = np.exp(-((p - a) ** 2 + (q - b) ** 2) * rng.uniform(10, 30))
        face = face + np.float32(rng.uniform(0.3, 0.9)) * glint[..., None]
    return mix(picture, np.clip(face, 0, 1), step(depth, 0.05))


def draw(rng: Rng, name: str, width: int, height: int) -> Image.Image:
    """One photograph of class ``name``, RGB of width x height."""
    small = min(1.0, DRAWN / max(width, height))
    w, h = max(1, round(width * small)), max(1, round(height * small))
    unit = np.float32(1 / min(w, h))  # the shorter side is one unit
    x = (np.arange(w, dtype=np.float32) - w / 2)[None, :] * unit + np.zeros((h, 1), np.float32)
    y = (np.arange(h, dtype=np.float32) - h / 2)[:, None] * unit + np.zeros((1, w), np.float32)
    extent = np.array([w, h]) * unit / 2  # the corner

    def somewhere(reach: float) -> np.ndarray:
        return (rng.uniform(-reach, reach, 2) * extent).astype(np.float32)

    def clutter(picture: Plane, most: int, largest: float) -> Plane:
        for _ in range(rng.integers(0, most + 1)):
            shape = (ball, box, box, pole)[rng.integers(4)]
            picture = place(rng, picture, x, y, shape, None, rng.uniform(0.06, largest), somewhere(1.0))
        return picture

    pattern, _, shape = name.partition(" ")
    if pattern in PATTERNS and shape in SHAPES:
        picture = clutter(ground(rng, x, y), 2, 0.2)
        picture = place(rng, picture, x, y, SHAPES[shape], PATTERNS[pattern], rng.uniform(0.4, 0.68), somewhere(0.3))
        if rng.random() < 0.4:
            picture = clutter(picture, 2, 0.14)
    else:
        picture = surface(rng, name, x, y)
        if rng.random() < 0.5:
            picture = clutter(picture, 3, 0.22)

    # light over the whole picture: a gradient, soft shadows, darker corners, a cast, exposure
    a, b = rng.normal(0, 0.25, 2).astype(np.float32)
    light = 1 + a * x + b * y - np.float32(rng.uniform(0, 0.5)) * (x * x + y * y)
    if rng.random() < 0.35:
        light = light * (1 - 0.5 * step(noise(rng, 2 * x, 2 * y, 2) - rng.uniform(0.45, 0.65), rng.uniform(0.05, 0.4)))
    cast = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0.12, 0.18)).astype(np.float32)
    picture = np.clip(picture * np.clip(light, 0.15, 2)[..., None] * cast, 0, 1)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + (picture - grey) * np.float32(rng.uniform(0.5, 1.25))
    middle = picture.mean()
    picture = middle + (picture - middle) * np.float32(rng.uniform(0.75, 1.15))
    picture = blurred(picture, rng.uniform(0, 1.4) - 0.4)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    if (w, h) != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.integers(0, 256, (2, height, width), np.uint8).astype(np.int16)  # alike in all three colours
    levels = ((grain[0] - grain[1]) * np.float32(rng.uniform(0.5, 9) / 104)).astype(np.int16)
    return Image.fromarray(np.clip(np.asarray(image) + levels[..., None], 0, 255).astype(np.uint8))


def dimensions(rng: Rng) -> tuple[int, int]:
    """Width and height in pixels: 90 to 500, most of the shapes that cameras make, more lying than standing."""
    longer = round(np.exp(rng.uniform(np.log(140), np.log(500))))
    aspect = rng.choice([1.0, 1.25, 4 / 3, 1.5, 16 / 9]) * rng.uniform(0.97, 1.03)
    shorter = min(longer, max(90, round(longer / aspect)))
    return (longer, shorter) if rng.random() < 0.62 else (shorter, longer)


def write_image(number: int, *, out: Path, kind: str, seed: int, classes: int, valid: int) -> None:
    """Image ``number`` of the set: of class number % classes; the first ``valid`` of a class are for validation."""
    rng = np.random.default_rng([seed, list(SETS).index(kind), classes, number])
    name, k = SETS[kind][number % classes], number // classes
    image = draw(rng, name, *dimensions(rng))
    if rng.random() < 0.04:
        image = image.convert("L")
    path = out / ("val" if k < valid else "train") / name / f"{number:06}.jpg"
    sampling = "4:4:4" if rng.random() < 0.12 else "4:2:0"
    image.save(path, quality=int(rng.integers(75, 96)), subsampling=sampling)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    parser.add_argument("--images", type=int, default=20_000, metavar="N", help="in all (default: 20000)")
    parser.add_argument("--classes", type=int, metavar="N", help="the first N of the set (default: all; 20 and 10)")
    parser.add_argument("--val-share", type=float, default=0.1, metavar="X", help="for validation (default: 0.1)")
    parser.add_argument("--set", choices=list(SETS), default="first", help="two sets without a common class")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("-j", "--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    chosen = parser.parse_args()
    classes = chosen.classes or len(SETS[chosen.set])
    valid = round(chosen.images // max(classes, 1) * chosen.val_share)
    if not 2 <= classes <= len(SETS[chosen.set]):
        parser.error(f"--classes must be 2 to {len(SETS[chosen.set])} for this set, got {classes}")
    if not 1 <= valid < chosen.images // classes:
        parser.error(f"--images {chosen.images} and --val-share {chosen.val_share} leave a class no image; use more")
    if chosen.out.exists() and (not chosen.out.is_dir() or any(chosen.out.iterdir())):
        parser.error(f"{str(chosen.out)!r} exists and is not an empty folder; name a new one")
    for part in ("train", "val"):
        for name in SETS[chosen.set][:classes]:
            (chosen.out / part / name).mkdir(parents=True)
    job = partial(write_image, out=chosen.out, kind=chosen.set, seed=chosen.seed, classes=classes, valid=valid)
    with ProcessPoolExecutor(chosen.jobs) as pool:
        done = pool.map(job, range(chosen.images), chunksize=64)
        for _ in tqdm(done, total=chosen.images, unit="image", disable=None):
            pass
    print(f"{chosen.images:,} images of {classes} classes in {str(chosen.out)!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
