"""Synthetic images: labelled, textured shapes, to run everything without a download.

A class is a texture within an outline; both survive cropping, flipping and any change of colour. The nuisance variables
are grey levels, tints, background, place, scale, rotation, phase, light and noise. So raw pixels classify badly: kNN
gets 24 % of ten classes on them, and 63 % on the features of a small network after ten epochs.
Tints are faint on purpose: under CIFAR's jitter strong colours show in both views and are learned instead of the class
(26 %).

Image i of a split is a pure function of (split, i), bitwise the same on every machine: only operations that IEEE
754 defines exactly are used (no sin, no exp), and libjpeg's integer transform.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import simplejpeg

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import IMAGE
from simclr_ray.data.philox import SYNTHETIC, sort_words

CLASSES = (
    "striped disc", "checked square", "dotted triangle", "ringed cross", "bricked disc",
    "zigzag square", "netted triangle", "crossed disc", "boxed cross", "cloudy square",
)  # fmt: skip
SIZE = 32
SPLITS = ("train", "test")
JPEG_QUALITY = 95
TINT = 0.04
NOISE = 0.4
DRAWS = 32
LATTICE = 8

PREFIX = "synthetic:"
SPEC = re.compile(PREFIX + r"(?P<count>\d+)(:(?P<size>\d+)px)?(:(?P<split>train|test))?")


def parse(spec: str) -> tuple[str, int, int]:
    """Split, side in pixels and number of images of `synthetic:N[:SIZEpx][:test]`."""
    match = SPEC.fullmatch(spec)
    if not match or int(match["count"]) == 0 or not 8 <= int(match["size"] or SIZE) <= 1024:
        raise BadInput(f"{spec} must read synthetic:N[:SIZEpx][:test], N at least 1 and SIZE in 8..1024")
    return match["split"] or "train", int(match["size"] or SIZE), int(match["count"])


def typical_bytes(size: int) -> int:
    """About the size of an encoded image."""
    return 700 + 9 * size * size // 5


def read(split: str, size: int, work: pa.Table) -> Iterator[pa.Table]:
    """One table with the images whose numbers are in `work`."""
    numbers = work["index"].to_pylist()
    images = [
        simplejpeg.encode_jpeg(draw(split, i, size), quality=JPEG_QUALITY, colorsubsampling="444") for i in numbers
    ]
    labels = pa.array([i % len(CLASSES) for i in numbers], pa.int32())
    yield pa.table([images, labels, [f"{split}/{i}" for i in numbers]], schema=IMAGE)


def draw(split: str, number: int, size: int = SIZE) -> np.ndarray:
    """uint8 (size, size, 3); its class is number modulo ten."""
    words = sort_words(number, SPLITS.index(split), SYNTHETIC, DRAWS + LATTICE * LATTICE + size * size // 2)
    chance = words[:DRAWS] / 2.0**64
    blotches = words[DRAWS : DRAWS + LATTICE * LATTICE].reshape(LATTICE, LATTICE) / 2.0**63 - 1
    noise = words[DRAWS + LATTICE * LATTICE :].view(np.uint8)[: size * size * 3].reshape(size, size, 3) / 255.0 - 0.5

    steps = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(steps - (0.3 + 0.4 * chance[0]), steps - (0.3 + 0.4 * chance[1]))
    x, y = _rotated(x, y, chance[2])
    label = number % len(CLASSES)
    radius = 0.42 + 0.24 * chance[3]
    inside = np.clip(0.5 + _outline(label, x / radius, y / radius) * radius * size, 0, 1)

    u, v = _rotated(x, y, chance[4])
    period = 0.12 + 0.12 * chance[5]
    distance = np.sqrt(x * x + y * y) / period + chance[6]
    texture = _texture(label, u / period + chance[6], v / period + chance[7], distance, blotches)
    dark, light = _tinted(0.1 + 0.3 * chance[8], chance[9:12]), _tinted(0.6 + 0.3 * chance[12], chance[13:16])
    front = _mixed(dark, light, np.clip(0.5 + (1.5 if chance[16] < 0.5 else -1.5) * texture, 0, 1))

    near, far = _tinted(0.2 + 0.6 * chance[17], chance[18:21]), _tinted(0.2 + 0.6 * chance[21], chance[22:25])
    back = _mixed(near, far, _wave(x * (1 + chance[25]) + y * chance[26]))
    shade = 1 + (chance[27] - 0.5) * x + (chance[28] - 0.5) * y
    pixels = _mixed(back, front, inside) * shade[..., None] + NOISE * noise
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def _rotated(x: np.ndarray, y: np.ndarray, chance: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotated by up to 28 degrees to either side: the tangent of half the angle is uniform, which needs no cosine."""
    t = 0.5 * (chance - 0.5)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return x * cos + y * sin, y * cos - x * sin


def _tinted(grey: float, chances: np.ndarray) -> np.ndarray:
    """(3,): a grey level with a faint colour."""
    return grey + TINT * (chances - 0.5)


def _mixed(start: np.ndarray, end: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """(size, size, 3): `start` where the (size, size) `mix` is 0, `end` where it is 1."""
    return start + (end - start) * mix[..., None]


def _wave(x: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 in [0, 1]."""
    return np.abs(2 * (x - np.floor(x)) - 1)


def _outline(label: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """About the distance to the edge in units of the radius, positive inside."""
    across, along = np.abs(x), np.abs(y)
    match CLASSES[label].split()[1]:
        case "disc":
            return 1 - np.sqrt(x * x + y * y)
        case "square":
            return 0.9 - np.maximum(across, along)
        case "triangle":
            return 0.6 - np.maximum(y, 0.866 * across - 0.5 * y)
        case _:  # cross
            bar, pole = np.minimum(0.45 - along, 1.05 - across), np.minimum(0.45 - across, 1.05 - along)
            return np.maximum(bar, pole)


def _texture(label: int, u: np.ndarray, v: np.ndarray, r: np.ndarray, blotches: np.ndarray) -> np.ndarray:
    """A pattern in about [-1, 1] of two coordinates counted in periods; r is the distance to the centre."""
    a, b = _wave(u), _wave(v)
    match CLASSES[label].split()[0]:
        case "striped":
            return 2 * a - 1
        case "checked":
            return 4 * (a - 0.5) * (b - 0.5) * 2
        case "dotted":
            return 0.62 - np.sqrt((1 - a) ** 2 + (1 - b) ** 2)
        case "ringed":
            return 2 * _wave(r) - 1
        case "bricked":
            return 3 * np.maximum(b, _wave(u / 2 + np.floor(v) / 2) * 1.4 - 0.4) - 2.2
        case "zigzag":
            return 2 * _wave(u + 0.8 * b) - 1
        case "netted":
            return 2 * np.maximum(np.maximum(a, _wave(u / 2 + 0.866 * v)), _wave(u / 2 - 0.866 * v)) - 1.5
        case "crossed":
            return np.where(np.maximum(1 - a, 1 - b) < 0.75, 0.35 - np.minimum(1 - a, 1 - b), -0.5)
        case "boxed":
            return 2 * _wave(np.maximum(np.abs(u), np.abs(v))) - 1
        case _:  # cloudy
            rows, columns = (np.floor(2 * w).astype(int) % LATTICE for w in (v, u))
            return blotches[rows, columns]
