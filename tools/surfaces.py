"""Noise, surfaces and outlines for drawn photographs, computed on planes of coordinates; see draw_photographs.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Plane = np.ndarray  # float32 (height, width), or (height, width, 3) for colours, in 0..1
Rng = np.random.Generator

# ---- noise that can be looked up at any coordinates: one period of smooth and of rough random values ----


def _smooth_tile(cells: int, size: int) -> Plane:
    grid = np.random.default_rng(2012).random((cells, cells), np.float32)
    padded = Image.fromarray(np.pad(grid, 4, mode="wrap"))
    step = size // cells
    large = np.asarray(padded.resize(((cells + 8) * step,) * 2, Image.Resampling.BICUBIC))
    return large[4 * step : 4 * step + size, 4 * step : 4 * step + size]


SMOOTH = _smooth_tile(32, 512)  # 16 pixels to a cell
ROUGH = np.random.default_rng(1998).random((512, 512), np.float32)


def noise(rng: Rng, u: Plane, v: Plane, octaves: int = 1) -> Plane:
    """Smooth noise about 0.5 with one bump to a unit of (u, v), and finer ones in further octaves."""
    total, weight = 0.0, 0.0
    for k in range(octaves):
        du, dv = rng.integers(0, 512, 2)
        scale = np.float32(16 * 2**k)
        at = (v * scale).astype(np.int32) + dv & 511, (u * scale).astype(np.int32) + du & 511
        total = total + SMOOTH[at] * np.float32(0.5**k)
        weight += 0.5**k
    return total / np.float32(weight)


def cells(rng: Rng, u: Plane, v: Plane, jitter: float) -> tuple[Plane, Plane, Plane]:
    """Voronoi cells of a jittered grid: distance to the nearest centre, to the second nearest, a random number each."""
    iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    first = np.full(u.shape, 9, np.float32)
    second, tag = first.copy(), first.copy()
    a, b, c = rng.integers(0, 512, 3)
    for dv in (-1, 0, 1):
        for du in (-1, 0, 1):
            at = iv + (dv + a) & 511, iu + (du + b) & 511
            x = iu + np.float32(du + 0.5) + jitter * (ROUGH[at] - 0.5) - u
            y = iv + np.float32(dv + 0.5) + jitter * (ROUGH[at[1], at[0] + c & 511] - 0.5) - v
            distance = np.sqrt(x * x + y * y)
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            first = np.where(nearer, distance, first)
            tag = np.where(nearer, ROUGH[at[0] + c & 511, at[1]], tag)
    return first, second, tag


def fract(t: Plane) -> Plane:
    return t - np.floor(t)


def step(t: Plane, width: float = 0.1) -> Plane:
    """0 to 1 about t = 0."""
    return np.clip(t / np.float32(width) + np.float32(0.5), 0, 1)


def mix(first: np.ndarray, second: np.ndarray, t: Plane) -> Plane:
    """Colours (3,) or (height, width, 3): the first where t is 0, the second where it is 1."""
    return (first + (np.asarray(second, np.float32) - first) * t[..., None]).astype(np.float32)


def colour(rng: Rng, *choices: tuple[float, float, float], spread: float = 0.08) -> np.ndarray:
    picked = np.array(choices[rng.integers(len(choices))])
    return np.clip(picked + rng.normal(0, spread / 2) + rng.normal(0, spread, 3), 0.02, 1).astype(np.float32)


def any_colour(rng: Rng) -> np.ndarray:
    return rng.uniform(0.05, 0.95, 3).astype(np.float32)


# ---- surfaces: (rng, u, v) in units of the pattern -> colours and height ----

Surface = Callable[[Rng, Plane, Plane], tuple[Plane, Plane]]


def brick(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    row = np.floor(v)
    along = u / np.float32(rng.uniform(1.8, 2.6)) + 0.5 * (row % 2)
    one = ROUGH[row.astype(np.int32) & 511, np.floor(along).astype(np.int32) * 7 & 511]
    edge = np.minimum(0.5 - np.abs(fract(v) - 0.5), 2.2 * (0.5 - np.abs(fract(along) - 0.5)))
    height = step(edge - rng.uniform(0.06, 0.1), 0.08)
    face = colour(rng, (0.62, 0.28, 0.2), (0.72, 0.5, 0.36), (0.5, 0.3, 0.27), (0.6, 0.58, 0.55))
    face = mix(face * 0.72, face * 1.2, 0.6 * one + 0.4 * noise(rng, 3 * u, 3 * v, 2))
    return mix(colour(rng, (0.75, 0.72, 0.68), (0.4, 0.38, 0.36)), face, height), height


def planks(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    row = np.floor(v)
    one = ROUGH[row.astype(np.int32) & 511, 3]
    rings = fract(6 * noise(rng, 0.18 * u + 7 * one, 1.3 * v, 2) + noise(rng, 0.6 * u, 9 * v))
    grain = 0.6 * rings + 0.4 * noise(rng, 1.2 * u, 14 * v)
    gap = step(0.5 - np.abs(fract(v) - 0.5) - 0.03, 0.04)
    face = colour(rng, (0.65, 0.45, 0.28), (0.45, 0.28, 0.17), (0.7, 0.6, 0.46), (0.5, 0.47, 0.43))
    return mix(face * 0.55, face * 1.2, (0.25 + 0.5 * grain + 0.4 * (one - 0.5)) * gap), 0.8 * gap + 0.1 * grain


def leaves(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    base = colour(rng, (0.2, 0.42, 0.12), (0.32, 0.5, 0.16), (0.7, 0.4, 0.1), (0.6, 0.22, 0.1))
    light, top, vein = np.full(u.shape, 0.12, np.float32), np.full(u.shape, -1, np.float32), np.zeros_like(u)
    iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    a, b, c = rng.integers(0, 512, 3)
    slender = rng.uniform(0.3, 0.5)
    for dv in (-1, 0, 1):
        for du in (-1, 0, 1):
            row, column = iv + (dv + a) & 511, iu + (du + b) & 511
            one, other = ROUGH[row, column], ROUGH[column, row + c & 511]
            x, y = iu + du + other - u, iv + dv + fract(7 * one) - v
            turn = 6.2832 * fract(13 * other)
            cos, sin = np.cos(turn), np.sin(turn)
            p, q = (cos * x + sin * y) / 0.95, np.abs(cos * y - sin * x)
            inside = slender * (1 - p * p) - q
            over = (inside > 0) & (one > top)
            top = np.where(over, one, top)
            light = np.where(over, 0.35 + 0.5 * one + 0.8 * np.minimum(inside, 0.25) + 0.15 * p, light)
            vein = np.where(over, step(0.035 - q, 0.03), vein)
    return mix(base[None, None] * light[..., None] * 1.35, base + 0.25, 0.5 * vein), top + 0.5 * light


def pebbles(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    u = u + 0.4 * noise(rng, 1.4 * u, 1.4 * v)
    first, second, tag = cells(rng, u, v, 0.7)
    dome = np.sqrt(np.clip(np.minimum(second - first, 0.3 + 0.3 * tag - 0.7 * first), 0, 0.6))
    stone = mix(colour(rng, (0.5, 0.48, 0.45), (0.6, 0.5, 0.4)), colour(rng, (0.8, 0.78, 0.74), (0.3, 0.3, 0.33)), tag)
    grain = 0.8 + 0.4 * noise(rng, 5 * u, 5 * v, 2)
    return stone * np.float32(1.1) * (np.clip(2.2 * dome, 0.15, 1) * grain)[..., None], 1.5 * dome


def sand(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    bend = noise(rng, 0.25 * u, 0.25 * v, 2)
    wave = fract(v + 3 * bend + 0.25 * noise(rng, u, v))
    ridge = np.where(wave < 0.7, wave / 0.7, (1 - wave) / 0.3).astype(np.float32)
    face = colour(rng, (0.8, 0.65, 0.43), (0.75, 0.52, 0.33), (0.82, 0.76, 0.64))
    shade = 0.35 + 0.4 * ridge + 0.35 * bend + 0.1 * noise(rng, 12 * u, 12 * v)
    return mix(face * 0.5, face * 1.15, shade), ridge


def water(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    bend = noise(rng, 0.3 * u, 0.5 * v, 2)
    swell = 0.5 + 0.5 * np.sin(6.2832 * (v + 0.25 * u + 2.5 * bend))
    chop = noise(rng, 1.3 * u, 3 * v, 3)
    height = 0.6 * swell + 0.6 * chop
    deep, bright = colour(rng, (0.05, 0.2, 0.32), (0.08, 0.3, 0.3), (0.16, 0.2, 0.25)), any_colour(rng) * 0.2
    face = mix(deep, bright + np.float32([0.3, 0.5, 0.58]), np.clip(height - 0.1, 0, 1))
    foam = step(height - rng.uniform(0.85, 1.0), 0.12) * step(chop - 0.5, 0.2)
    return mix(face, np.float32([0.93, 0.95, 0.96]), foam), height


def cloth(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    over = (np.floor(u) + np.floor(v)) % 2
    across = np.where(over > 0, fract(u), fract(v)).astype(np.float32) - 0.5
    along = np.where(over > 0, fract(v), fract(u)).astype(np.float32) - 0.5
    height = (1 - 3 * across * across) * (1 - 2 * along * along)
    face = mix(any_colour(rng), any_colour(rng), over.astype(np.float32))
    threads = 0.85 + 0.15 * np.sin(25 * across)
    return face * (threads * (0.35 + 0.75 * np.clip(height, 0, 1)))[..., None], height


def bark(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    bend = noise(rng, 0.5 * u, 0.5 * v)
    ridge = np.abs(2 * noise(rng, 0.35 * u, 1.6 * v + bend, 3) - 1)
    height = np.clip(4 * ridge, 0, 1)
    face = colour(rng, (0.42, 0.32, 0.24), (0.5, 0.46, 0.4), (0.36, 0.26, 0.2))
    return mix(face * 0.3, face * 1.25, 0.7 * height + 0.3 * noise(rng, 4 * u, 6 * v, 2)), height


def stones(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    first, second, tag = cells(rng, 0.6 * u + 0.2 * noise(rng, u, v), v + 0.2 * noise(rng, u, v), 0.6)
    height = step(second - first - 0.12, 0.14)
    face = colour(rng, (0.52, 0.5, 0.46), (0.62, 0.55, 0.44), (0.42, 0.42, 0.45))
    face = mix(face * 0.7, face * 1.25, 0.5 * tag + 0.5 * noise(rng, 3 * u, 3 * v, 3))
    return mix(colour(rng, (0.3, 0.28, 0.26), (0.7, 0.68, 0.64)), face, height), height


def grass(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    lean = noise(rng, 0.5 * u, 0.5 * v)
    tips = fract(1 - 0.8 * v + 1.6 * noise(rng, 6 * u + 3 * lean, 0.3 * v))  # bright tips before dark feet
    blades = noise(rng, 5 * u + 4 * lean, 0.7 * v) + 0.5 * noise(rng, 11 * u + 6 * lean, 1.5 * v)
    height = np.clip(0.7 * blades + 0.5 * tips - 0.25, 0, 1)
    face = colour(rng, (0.3, 0.5, 0.15), (0.4, 0.5, 0.2), (0.5, 0.48, 0.25))
    return mix(face * 0.25, face * 1.4, height * (0.6 + 0.6 * lean)), height


def stripes(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    one, other = two_colours(rng)
    return mix(one, other, step(0.25 - np.abs(fract(v) - 0.5), 0.1)), 0 * u


def checks(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    one, other = two_colours(rng)
    a, b = np.abs(fract(u / 2) - 0.5) - 0.25, np.abs(fract(v / 2) - 0.5) - 0.25
    return mix(one, other, step(a * b * 8, 0.1)), 0 * u


def spots(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    one, other = two_colours(rng)
    first, _, _ = cells(rng, 0.8 * u, 0.8 * v, rng.uniform(0.1, 0.5))
    return mix(one, other, step(rng.uniform(0.24, 0.36) - first, 0.1)), 0 * u


def marble(rng: Rng, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    one, other = two_colours(rng)
    veins = np.abs(np.sin(1.8 * (0.6 * u + v) + 7 * noise(rng, 0.5 * u, 0.5 * v, 4)))
    cloud = noise(rng, 0.7 * u, 0.7 * v, 3)
    return mix(mix(one, other, 0.5 * cloud), other, np.clip(1.1 - 2.2 * veins, 0, 1)), 0 * u


def two_colours(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Of four pairs the one that differs most in brightness."""
    pairs = rng.uniform(0.04, 0.96, (4, 2, 3)).astype(np.float32)
    return tuple(pairs[np.abs(pairs[:, 0] - pairs[:, 1]).mean(axis=1).argmax()])  # type: ignore[return-value]


# ---- shapes: (x, y) in radii, y down -> how deep inside, negative outside ----


def ball(x: Plane, y: Plane) -> Plane:
    return 0.9 - np.sqrt(x * x + y * y)


def star(x: Plane, y: Plane) -> Plane:
    # A pentagram is where at most one of five half-planes is left.
    sides = [np.float32(np.sin(k * 1.2566)) * x + np.float32(np.cos(k * 1.2566)) * y for k in range(5)]
    return 0.36 - np.sort(np.stack(sides), axis=0)[3]


def cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(0.95 - np.maximum(x, y), 0.34 - np.minimum(x, y))


def heart(x: Plane, y: Plane) -> Plane:
    x = np.abs(x)
    return -np.minimum(0.7071 * (x + np.abs(y) - 0.86), np.sqrt((x - 0.43) ** 2 + (y + 0.43) ** 2) - 0.608)


def ring(x: Plane, y: Plane) -> Plane:
    return 0.3 - np.abs(np.sqrt(x * x + y * y) - 0.66)


def box(x: Plane, y: Plane) -> Plane:
    return 0.8 - np.maximum(np.abs(x), 1.3 * np.abs(y))


def pole(x: Plane, y: Plane) -> Plane:
    return 0.12 - np.abs(x) + 0 * y


SCENES: dict[str, Surface] = {
    "brick wall": brick,
    "leaves": leaves,
    "pebbles": pebbles,
    "sand ripples": sand,
    "waves": water,
    "wooden planks": planks,
    "grass": grass,
    "stone wall": stones,
    "tree bark": bark,
    "woven cloth": cloth,
}
PATTERNS: dict[str, Surface] = {
    "checked": checks,
    "marbled": marble,
    "spotted": spots,
    "striped": stripes,
    "wooden": planks,
}
SHAPES = {"ball": ball, "cross": cross, "star": star, "heart": heart, "ring": ring}
