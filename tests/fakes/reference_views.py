"""Views as torchvision computes them, and an image on which errors show."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmark import load_benchmark
from simclr_ray.data.augment.views import ViewParams, render

reference_view = load_benchmark("augment").reference_view
"""Torchvision v2 on floats, operation by operation."""


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colour ramps, hard edges, noise, and flat black, white and saturated patches, where hue is undefined or jumps."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack(
        [x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), 127 + 127 * np.sin((x + y) / 5)], axis=2
    )
    image[(x // 7 + y // 5) % 3 == 0] += rng.normal(0, 60, 3)
    image += rng.normal(0, 10, image.shape)
    image[: height // 4, : width // 4] = 0
    image[-(height // 4) :, : width // 4] = (255, 0, 0)
    image[: height // 4, -(width // 4) :] = 255
    return image.clip(0, 255).astype(np.uint8)


def whole(image: np.ndarray, **changes: object) -> ViewParams:
    plain = ViewParams(0, 0, image.shape[0], image.shape[1], False, None, False, 0.0)
    return dataclasses.replace(plain, **changes)


def assert_as_torchvision(image: np.ndarray, params: ViewParams, size: int) -> None:
    view = render(image, params, size)
    assert view.shape == (size, size, 3)
    assert view.dtype == np.uint8
    expected = reference_view(image, params, size)
    if params.solarize:  # just around the threshold a rounding error decides between 127 and 128
        expected[np.abs(expected - 127.5) < 0.6] = view[np.abs(expected - 127.5) < 0.6]
    error = np.abs(view - expected)
    assert error.mean() <= 0.3
    assert error.max() <= 0.6
