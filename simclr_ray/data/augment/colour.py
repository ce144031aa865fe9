"""Colour jitter and grayscale on float32 planes in 0..255, equal to torchvision's in float.

The arithmetic is written so that LLVM can vectorise it without `fastmath`: no branches, and sums kept in lanes. Nothing
is reordered or fused, so every CPU gives the same result.
"""

from __future__ import annotations

import numba
import numpy as np

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The operations in torchvision's numbering of ColorJitter's order."""

Factors = tuple[float, float, float, float]
JitterOrder = tuple[int, int, int, int]

_CHUNK = 512
"""Pixels that go through several operations while they stay in the L1 cache."""

_ZERO, _ONE, _TWO, _THREE, _FOUR, _SIX = (np.float32(n) for n in (0, 1, 2, 3, 4, 6))
_FULL = np.float32(255)
_LUMA_R, _LUMA_G, _LUMA_B = np.float32(0.2989), np.float32(0.587), np.float32(0.114)


@numba.njit
def jitter(red: np.ndarray, green: np.ndarray, blue: np.ndarray, factors: Factors, order: JitterOrder) -> None:
    """In place on three (n,) planes; `order` is a permutation of the operations, `factors` are in their numbering.

    Contrast needs the mean of the whole view, so there are two passes: the operations up to it, and the rest.
    """
    at = 0
    while order[at] != CONTRAST:
        at += 1
    lanes = np.zeros(_CHUNK, np.float32)
    for start in range(0, red.size, _CHUNK):
        r, g, b = red[start : start + _CHUNK], green[start : start + _CHUNK], blue[start : start + _CHUNK]
        for i in range(at):
            _apply(order[i], r, g, b, factors[order[i]])
        for i in range(r.size):
            lanes[i] += _luma(r[i], g[i], b[i])
    mean = np.float32(lanes.sum() / red.size)
    for start in range(0, red.size, _CHUNK):
        r, g, b = red[start : start + _CHUNK], green[start : start + _CHUNK], blue[start : start + _CHUNK]
        _contrast(r, g, b, np.float32(factors[CONTRAST]), mean)
        for i in range(at + 1, 4):
            _apply(order[i], r, g, b, factors[order[i]])


@numba.njit
def grayscale(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> None:
    """All three (n,) planes become the luma, in place."""
    for i in range(red.size):
        red[i] = green[i] = blue[i] = _luma(red[i], green[i], blue[i])


@numba.njit
def _apply(operation: int, r: np.ndarray, g: np.ndarray, b: np.ndarray, factor: float) -> None:
    if operation == BRIGHTNESS:
        _brightness(r, g, b, np.float32(factor))
    elif operation == SATURATION:
        _saturation(r, g, b, np.float32(factor))
    else:
        _hue(r, g, b, np.float32(factor))


@numba.njit
def _brightness(r: np.ndarray, g: np.ndarray, b: np.ndarray, factor: np.float32) -> None:
    for i in range(r.size):
        r[i] = _clip(r[i] * factor)
        g[i] = _clip(g[i] * factor)
        b[i] = _clip(b[i] * factor)


@numba.njit
def _contrast(r: np.ndarray, g: np.ndarray, b: np.ndarray, factor: np.float32, mean: np.float32) -> None:
    rest = (_ONE - factor) * mean
    for i in range(r.size):
        r[i] = _clip(r[i] * factor + rest)
        g[i] = _clip(g[i] * factor + rest)
        b[i] = _clip(b[i] * factor + rest)


@numba.njit
def _saturation(r: np.ndarray, g: np.ndarray, b: np.ndarray, factor: np.float32) -> None:
    for i in range(r.size):
        rest = (_ONE - factor) * _luma(r[i], g[i], b[i])
        r[i] = _clip(r[i] * factor + rest)
        g[i] = _clip(g[i] * factor + rest)
        b[i] = _clip(b[i] * factor + rest)


@numba.njit
def _hue(r: np.ndarray, g: np.ndarray, b: np.ndarray, shift: np.float32) -> None:
    """To HSV, hue turned by `shift` of a full circle, and back.

    With hue in sixths of a circle, a channel is value - chroma + chroma * ramp(hue), its ramp a trapezium: the six
    cases of HSV without branches, and without the division by value.
    """
    turn = shift * _SIX
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        value = _max(red, _max(green, blue))
        chroma = value - _min(red, _min(green, blue))
        scale = _ONE / (chroma if chroma > _ZERO else _ONE)
        hue = _FOUR + (red - green) * scale
        hue = _TWO + (blue - red) * scale if green == value else hue
        hue = (green - blue) * scale if red == value else hue
        hue += turn
        hue -= _SIX * np.floor(hue / _SIX)
        low = value - chroma
        r[i] = low + chroma * _ramp(abs(hue - _THREE) - _ONE)
        g[i] = low + chroma * _ramp(_TWO - abs(hue - _TWO))
        b[i] = low + chroma * _ramp(_TWO - abs(hue - _FOUR))


@numba.njit
def _luma(r: np.float32, g: np.float32, b: np.float32) -> np.float32:
    return _LUMA_R * r + _LUMA_G * g + _LUMA_B * b


@numba.njit
def _ramp(v: np.float32) -> np.float32:
    return _min(_max(v, _ZERO), _ONE)


@numba.njit
def _clip(v: np.float32) -> np.float32:
    return _min(_max(v, _ZERO), _FULL)


# The builtins handle NaN and signed zero, which do not occur here, and so do not vectorise.
@numba.njit
def _max(a: np.float32, b: np.float32) -> np.float32:
    return a if a > b else b


@numba.njit
def _min(a: np.float32, b: np.float32) -> np.float32:
    return a if a < b else b
