"""Gaussian blur of float32 planes: separable, with reflected edges, equal to torchvision's GaussianBlur."""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit
def blur(planes: np.ndarray, sigma: float, radius: int, blurred: np.ndarray) -> None:
    """Fills `blurred` from `planes`, both (3, n, n); the kernel has 2 radius + 1 taps, radius < n.

    Taps beyond 4 sigma are left out: together they weigh 6e-5, 0.02 of a level of 255, and are half of the work.
    """
    weights = _gaussian(sigma, min(radius, max(1, math.ceil(4 * sigma))))
    reach = weights.size - 1
    n = planes.shape[1]
    line = np.empty(n + 2 * reach, np.float32)
    for channel in range(3):
        for row in range(n):
            _across(planes[channel], row, weights, line[reach : reach + n])
            for i in range(1, reach + 1):
                line[reach - i] = line[reach + i]
                line[reach + n - 1 + i] = line[reach + n - 1 - i]
            _along(line, weights, blurred[channel, row])


@numba.njit
def _gaussian(sigma: float, reach: int) -> np.ndarray:
    """(reach + 1,) float32: the centre's weight and those on one side."""
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    return (weights / (2 * weights.sum() - weights[0])).astype(np.float32)


@numba.njit
def _across(plane: np.ndarray, row: int, weights: np.ndarray, line: np.ndarray) -> None:
    """One row of `plane` blurred over its neighbouring rows."""
    last = plane.shape[0] - 1
    centre, weight = plane[row], weights[0]
    for i in range(line.size):
        line[i] = weight * centre[i]
    for k in range(1, weights.size):
        weight = weights[k]
        above = plane[abs(row - k)]
        below = plane[last - abs(last - row - k)]
        for i in range(line.size):
            line[i] += weight * (above[i] + below[i])


@numba.njit
def _along(line: np.ndarray, weights: np.ndarray, target: np.ndarray) -> None:
    reach = weights.size - 1
    centre, weight = line[reach : reach + target.size], weights[0]
    for i in range(target.size):
        target[i] = weight * centre[i]
    for k in range(1, weights.size):
        weight = weights[k]
        left, right = line[reach - k :], line[reach + k :]
        for i in range(target.size):
            target[i] += weight * (left[i] + right[i])
