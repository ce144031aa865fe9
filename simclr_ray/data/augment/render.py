"""Renders a view inside Numba, rounded at the end.

The order is crop, resize, flip, rotation, jitter, grayscale, blur, solarize, Sobel filter, noise, cutout.
"""

from __future__ import annotations

import numba
import numpy as np

from simclr_ray.data.augment.blur import blur
from simclr_ray.data.augment.colour import grayscale, jitter
from simclr_ray.data.augment.draw import FlatView
from simclr_ray.data.augment.figure_5 import add_noise, cut_out, quarter_turns, sobel
from simclr_ray.data.augment.resize import resize, spare_floats

_HALF = np.float32(0.5)
_SOLARIZE_FROM, _WHITE = np.float32(128), np.float32(255)


@numba.njit
def render_view(image: np.ndarray, view: FlatView, out: np.ndarray) -> None:
    """Writes the draw.FlatView of a (h, w, 3) uint8 image into (size, size, 3) uint8."""
    size = out.shape[0]
    # One allocation, not several: glibc then keeps the memory between calls, instead of returning it to the system and
    # faulting every page in again, which took as long as the arithmetic.
    floats = 3 * size * size
    work = np.empty(floats + max(floats, spare_floats(view.width, size)), np.float32)
    planes, spare = work[:floats].reshape(3, size, size), work[floats:]
    resize(image, view.top, view.left, view.height, view.width, view.flip, planes, spare)
    other = spare[:floats].reshape(3, size, size)
    if view.turns > 0:
        quarter_turns(planes, view.turns, other)
        planes, other = other, planes
    flat = planes.reshape(3, size * size)
    red, green, blue = flat[0], flat[1], flat[2]
    if view.jitter:
        factors = (view.brightness, view.contrast, view.saturation, view.hue)
        jitter(red, green, blue, factors, view.order)
    if view.grayscale:
        grayscale(red, green, blue)
    if view.blur_sigma > 0:
        blur(planes, view.blur_sigma, blur_radius(size), other)
        planes, other = other, planes
    if view.solarize:
        _solarize(planes.reshape(3 * size * size))
    if view.sobel:
        sobel(planes, other)
        planes, other = other, planes
    if view.noise:
        add_noise(planes.reshape(3 * size * size), view.noise_key)
    if view.cutout:
        cut_out(planes, view.cut_left, view.cut_top)
    _store(planes, out)


@numba.njit
def _solarize(values: np.ndarray) -> None:
    for i in range(len(values)):
        if values[i] >= _SOLARIZE_FROM:
            values[i] = _WHITE - values[i]


@numba.njit
def blur_radius(size: int) -> int:
    """Half the width of the blur's kernel, which is a tenth of the view, made odd and at least 3: 23 taps at 224."""
    return max(1, size // 20)


@numba.njit
def _store(planes: np.ndarray, out: np.ndarray) -> None:
    """Rounds to uint8, and transposes [channel, column, row] to [row, column, channel]."""
    for x in range(out.shape[1]):
        for channel in range(3):
            line = planes[channel, x]
            for y in range(out.shape[0]):
                out[y, x, channel] = np.uint8(np.int32(line[y] + _HALF))
