"""Draws the parameters of a view, inside Numba: SimCLR appendix A, with torchvision's RandomResizedCrop.

Every parameter has its own random word, whether it is used or not, so that a view is a pure function of seed, epoch,
sample id and view, and changing one probability does not change the other draws.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numba
import numpy as np

from simclr_ray.data.philox import words

CROP_TRIES = 10
MIN_ASPECT, MAX_ASPECT = 3 / 4, 4 / 3
_ORDERS = np.array(list(itertools.permutations(range(4))))
# Indices of a view's random words. The first 20 are two for each of CROP_TRIES: area, then aspect.
_TOP, _LEFT, _FLIP, _JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER, _GRAYSCALE, _BLUR, _SIGMA = range(
    20, 32
)
_SOLARIZE, _ROTATE, _TURNS, _SOBEL, _NOISE, _NOISE_KEY, _CUTOUT, _CUT_LEFT, _CUT_TOP = range(32, 41)
_WORDS = 44


class Distribution(NamedTuple):
    """The distribution of a view: AugmentConfig without the size, every value a float."""

    crop_min: float
    crop_max: float
    flip_p: float
    strength: float
    saturation: float
    jitter_p: float
    grayscale_p: float
    blur_p: float
    blur_sigma_min: float
    blur_sigma_max: float
    solarize_p: float
    rotate_p: float
    sobel_p: float
    noise_p: float
    cutout_p: float


class FlatView(NamedTuple):
    """augment.ViewParams for Numba, without optional fields: what follows a `jitter`, `noise` or `cutout` that is False
    is unused."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    jitter: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, int, int, int]
    grayscale: bool
    blur_sigma: float
    solarize: bool
    turns: int
    sobel: bool
    noise: bool
    noise_key: int
    cutout: bool
    cut_left: float
    cut_top: float


@numba.njit
def draw_view(
    seed: int, epoch: int, sample_id: int, domain: int, height: int, width: int, distribution: Distribution
) -> FlatView:
    """The FlatView of one sample and view; `domain` is that of the view in philox, `height` and `width` the image's."""
    drawn = words(seed, epoch, sample_id, domain, _WORDS)
    u = drawn * 2.0**-32
    crop_height, crop_width, found = _draw_crop_size(u, height, width, distribution.crop_min, distribution.crop_max)
    top = int(u[_TOP] * (height - crop_height + 1)) if found else (height - crop_height) // 2
    left = int(u[_LEFT] * (width - crop_width + 1)) if found else (width - crop_width) // 2
    spread = 0.8 * distribution.strength
    low = max(0.0, 1 - spread)
    order = _ORDERS[int(u[_ORDER] * 24)]
    sigma = _uniform(u[_SIGMA], distribution.blur_sigma_min, distribution.blur_sigma_max)
    return FlatView(
        top,
        left,
        crop_height,
        crop_width,
        u[_FLIP] < distribution.flip_p,
        u[_JITTER] < distribution.jitter_p,
        _uniform(u[_BRIGHTNESS], low, 1 + spread),
        _uniform(u[_CONTRAST], low, 1 + spread),
        _uniform(u[_SATURATION], max(0.0, 1 - distribution.saturation), 1 + distribution.saturation),
        _uniform(u[_HUE], -0.2 * distribution.strength, 0.2 * distribution.strength),
        (order[0], order[1], order[2], order[3]),
        u[_GRAYSCALE] < distribution.grayscale_p,
        sigma if u[_BLUR] < distribution.blur_p else 0.0,
        u[_SOLARIZE] < distribution.solarize_p,
        1 + int(u[_TURNS] * 3) if u[_ROTATE] < distribution.rotate_p else 0,
        u[_SOBEL] < distribution.sobel_p,
        u[_NOISE] < distribution.noise_p,
        int(drawn[_NOISE_KEY]),
        u[_CUTOUT] < distribution.cutout_p,
        u[_CUT_LEFT],
        u[_CUT_TOP],
    )


@numba.njit
def _draw_crop_size(u: np.ndarray, height: int, width: int, crop_min: float, crop_max: float) -> tuple[int, int, bool]:
    """Height and width of the crop, and whether a try succeeded; else the largest central one of an allowed aspect."""
    for attempt in range(CROP_TRIES):
        area = height * width * _uniform(u[2 * attempt], crop_min, crop_max)
        aspect = math.exp(_uniform(u[2 * attempt + 1], math.log(MIN_ASPECT), math.log(MAX_ASPECT)))
        crop_width = int(np.rint(math.sqrt(area * aspect)))
        crop_height = int(np.rint(math.sqrt(area / aspect)))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return crop_height, crop_width, True
    if width < MIN_ASPECT * height:
        return int(np.rint(width / MIN_ASPECT)), width, False
    if width > MAX_ASPECT * height:
        return height, int(np.rint(height * MAX_ASPECT)), False
    return height, width, False


@numba.njit
def _uniform(u: float, low: float, high: float) -> float:
    return low + u * (high - low)
