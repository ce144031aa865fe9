"""The augmentations of SimCLR's figure 5 that its recipe leaves out: rotation, Sobel filter, Gaussian noise, cutout.

All work on float32 planes in 0..255, (3, n, n), [channel, column, row].
"""

from __future__ import annotations

import math

import numba
import numpy as np

from simclr_ray.data.philox import NOISE, block

NOISE_STD = 0.1 * 255
CUTOUT_GREY = np.float32(128)


@numba.njit
def quarter_turns(planes: np.ndarray, turns: int, turned: np.ndarray) -> None:
    """Fills `turned` with the view turned counter-clockwise by 90 degrees `turns` times, 1 to 3."""
    last = planes.shape[1] - 1
    for channel in range(3):
        for x in range(last + 1):
            for y in range(last + 1):
                if turns == 1:
                    turned[channel, x, y] = planes[channel, last - y, x]
                elif turns == 2:
                    turned[channel, x, y] = planes[channel, last - x, last - y]
                else:
                    turned[channel, x, y] = planes[channel, y, last - x]


@numba.njit
def sobel(planes: np.ndarray, edges: np.ndarray) -> None:
    """Fills `edges` with each channel's gradient magnitude by Sobel's filters, within 0..255; edges are reflected."""
    last = planes.shape[1] - 1
    for channel in range(3):
        plane = planes[channel]
        for x in range(last + 1):
            left, here, right = plane[abs(x - 1)], plane[x], plane[last - abs(last - x - 1)]
            for y in range(last + 1):
                above, below = abs(y - 1), last - abs(last - y - 1)
                across = right[above] - left[above] + 2 * (right[y] - left[y]) + right[below] - left[below]
                down = left[below] - left[above] + 2 * (here[below] - here[above]) + right[below] - right[above]
                # Either is at most 4 x 255.
                edges[channel, x, y] = np.sqrt((across * across + down * down) / np.float32(32))


@numba.njit
def add_noise(values: np.ndarray, key: int) -> None:
    """Adds to each of the (m,) values, in place, what a standard deviation of a tenth of the range gives; clipped.

    Value 2 i and 2 i + 1 are Box and Muller's pair of the first two words of block i under the 32-bit `key`.
    """
    for i in range(0, len(values), 2):
        first, second, _, _ = block(key, 0, i // 2, NOISE, 0)
        radius = NOISE_STD * math.sqrt(-2 * math.log((first + 1) * 2.0**-32))
        angle = 2 * math.pi * (second * 2.0**-32)
        values[i] = _clipped(values[i] + radius * math.cos(angle))
        if i + 1 < len(values):
            values[i + 1] = _clipped(values[i + 1] + radius * math.sin(angle))


@numba.njit
def cut_out(planes: np.ndarray, left: float, top: float) -> None:
    """Makes a square of half the view's side grey, in place (DeVries and Taylor 2017).

    `left`, `top`: where its centre lies, as parts of the side, in [0, 1); what lies outside of the view is left out.
    """
    size = planes.shape[1]
    side = size // 2
    first_x, first_y = int(left * size) - side // 2, int(top * size) - side // 2
    planes[:, max(first_x, 0) : first_x + side, max(first_y, 0) : first_y + side] = CUTOUT_GREY


@numba.njit
def _clipped(value: float) -> float:
    return min(max(value, 0.0), 255.0)
