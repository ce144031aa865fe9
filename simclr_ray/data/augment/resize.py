"""Crop, antialiased bilinear resize and flip, equal to ATen's `antialias=True` in float32.

The result is transposed, [channel, column, row]: rows are combined first, along contiguous pixels; then a tile of them
is transposed, so that columns too are combined along contiguous memory. Without the transposition, pixel by pixel, it
took twice as long.
"""

from __future__ import annotations

import math

import numba
import numpy as np

_TILE = 64
"""Rows transposed at a time: few enough for the L2 cache, enough for long vectors."""


@numba.njit
def resize(
    image: np.ndarray, top: int, left: int, height: int, width: int, flip: bool, planes: np.ndarray, spare: np.ndarray
) -> None:
    """Fills (3, size, size) float32 planes [channel, column, row] in 0..255 from the crop of a (h, w, 3) uint8 image.

    `spare` is `spare_floats(width, size)` of working space.
    """
    size = planes.shape[1]
    first_row, row_taps, row_weights = _taps(height, size)
    first_column, column_taps, column_weights = _taps(width, size)
    pixels = image.reshape(image.shape[0], -1)
    for start in range(0, size, _TILE):
        rows = min(_TILE, size - start)
        lines = spare[: 3 * width * rows].reshape(rows, 3 * width)
        tile = spare[lines.size : 2 * lines.size].reshape(3 * width, rows)
        for row in range(rows):
            y = start + row
            _combine_rows(pixels, top + first_row[y], 3 * left, row_weights[y, : row_taps[y]], lines[row])
        _transpose(lines, tile)
        for x in range(size):
            column = size - 1 - x if flip else x
            for channel in range(3):
                target = planes[channel, column][start : start + rows]
                _combine_columns(tile, 3 * first_column[x] + channel, column_weights[x, : column_taps[x]], target)


@numba.njit
def spare_floats(width: int, size: int) -> int:
    return 6 * width * min(_TILE, size)


@numba.njit
def _taps(n: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `size` outputs over n inputs: the first input, how many, and their (size, most) float32 weights."""
    scale = n / size
    support = max(scale, 1.0)
    first = np.empty(size, np.int64)
    count = np.empty(size, np.int64)
    weights = np.zeros((size, 2 * math.ceil(support) + 1), np.float32)
    for i in range(size):
        centre = scale * (i + 0.5)
        first[i] = max(int(centre - support + 0.5), 0)
        count[i] = min(int(centre + support + 0.5), n) - first[i]
        total = 0.0
        for k in range(count[i]):
            total += _triangle((first[i] + k - centre + 0.5) / support)
        for k in range(count[i]):
            weights[i, k] = _triangle((first[i] + k - centre + 0.5) / support) / total
    return first, count, weights


@numba.njit
def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


@numba.njit
def _combine_rows(pixels: np.ndarray, first: int, offset: int, weights: np.ndarray, line: np.ndarray) -> None:
    weight, source = weights[0], pixels[first][offset : offset + line.size]
    for i in range(line.size):
        line[i] = weight * np.float32(source[i])
    for k in range(1, weights.size):
        weight, source = weights[k], pixels[first + k][offset : offset + line.size]
        for i in range(line.size):
            line[i] += weight * np.float32(source[i])


@numba.njit
def _transpose(lines: np.ndarray, tile: np.ndarray) -> None:
    for i in range(tile.shape[0]):
        for row in range(tile.shape[1]):
            tile[i, row] = lines[row, i]


@numba.njit
def _combine_columns(tile: np.ndarray, first: int, weights: np.ndarray, target: np.ndarray) -> None:
    weight, source = weights[0], tile[first]
    for y in range(target.size):
        target[y] = weight * source[y]
    for k in range(1, weights.size):
        weight, source = weights[k], tile[first + 3 * k]
        for y in range(target.size):
            target[y] += weight * source[y]
