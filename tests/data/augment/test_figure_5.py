"""Rotation, Sobel filter, noise and cutout: equal to slow references, and keyed like every other parameter."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference_views import reference_view, textured, whole
from simclr_ray.config import AugmentConfig, BadInput
from simclr_ray.data import philox
from simclr_ray.data.augment.views import Jitter, ViewParams, augment_pair, draw_views, render

NEW: dict[str, Any] = {"turns": 0, "sobel": False, "noise_key": None, "cutout": None}


def reference(image: np.ndarray, params: ViewParams, size: int) -> np.ndarray:
    """(size, size, 3) float. Rotation may come last: jitter and blur have no direction."""
    view = reference_view(image, dataclasses.replace(params, **NEW), size)
    view = np.rot90(view, params.turns)
    if params.sobel:
        view = sobel(view)
    if params.noise_key is not None:
        view = (view + 25.5 * normals(params.noise_key, size)).clip(0, 255)
    if params.cutout is not None:
        left, top = (int(part * size) - size // 4 for part in params.cutout)
        inside = np.arange(size)
        rows = (inside >= top) & (inside < top + size // 2)
        columns = (inside >= left) & (inside < left + size // 2)
        view = np.where((rows[:, None] & columns)[:, :, None], 128, view)
    return view


def sobel(view: np.ndarray) -> np.ndarray:
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None].double() / 4
    channels = torch.from_numpy(view.copy()).double().permute(2, 0, 1)[:, None]
    gradients = F.conv2d(F.pad(channels, (1, 1, 1, 1), mode="reflect"), kernels)
    return (gradients.square().sum(1) / 2).sqrt().permute(1, 2, 0).numpy()


def normals(key: int, size: int) -> np.ndarray:
    """In the order of the planes: channel, column, row."""
    pairs = []
    for i in range(3 * size * size // 2):
        u, v = (int(word) / 2**32 for word in philox.block(key, 0, i, philox.NOISE, 0)[:2])
        radius = math.sqrt(-2 * math.log(u + 2**-32))
        pairs += [radius * math.cos(2 * math.pi * v), radius * math.sin(2 * math.pi * v)]
    return np.array(pairs).reshape(3, size, size).transpose(2, 1, 0)


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize(
    "changes",
    [
        *({"turns": turns} for turns in (1, 2, 3)),
        {"sobel": True},
        {"noise_key": 2**32 - 1},
        *({"cutout": place} for place in ((0.5, 0.25), (0.0, 0.999), (0.999, 0.0))),
        {"turns": 3, "flip": True, "jitter": Jitter(1.3, 0.6, 1.5, 0.2, (3, 1, 0, 2)), "blur_sigma": 0.8}
        | {"sobel": True, "noise_key": 7, "cutout": (0.3, 0.6)},
        {"turns": 1, "grayscale": True, "solarize": True, "noise_key": 8},
    ],
)
def test_each_operation_equals_its_reference(changes: dict[str, Any], size: int) -> None:
    image = textured(150, 200)
    params = whole(image, **changes)
    error = np.abs(render(image, params, size) - reference(image, params, size))
    if params.solarize:  # just around the threshold a rounding error decides between 127 and 128
        error = error[error < 100]
        assert error.size > 3 * size * size - 20
    assert error.mean() <= 0.3
    assert error.max() <= 0.6


def test_noise_is_normal_and_differs_from_key_to_key() -> None:
    grey = np.full((96, 96, 3), 128, np.uint8)
    noises = [render(grey, whole(grey, noise_key=key), 96).astype(float) - 128 for key in range(4)]
    found = np.stack(noises).reshape(4, -1)
    assert np.abs(found.mean(1)).max() < 5 * 25.5 / found.shape[1] ** 0.5
    assert found.std() == pytest.approx(25.5, rel=0.02)
    assert ((found / 25.5) ** 4).mean() == pytest.approx(3, rel=0.1)
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 0.03


ALL = AugmentConfig(size=32, rotate_p=0.4, sobel_p=0.3, noise_p=0.6, cutout_p=0.5)


def test_probabilities_and_ranges_follow_the_config() -> None:
    views = [view for i in range(2000) for view in draw_views(0, 0, i, 64, 64, ALL)]
    turns = np.bincount([view.turns for view in views], minlength=4) / 4000
    # Five standard deviations of a proportion of 4000 are 0.04.
    np.testing.assert_allclose(turns, [0.6, 0.4 / 3, 0.4 / 3, 0.4 / 3], atol=0.04)
    assert np.mean([view.sobel for view in views]) == pytest.approx(0.3, abs=0.04)
    keys = [view.noise_key for view in views if view.noise_key is not None]
    assert len(keys) / 4000 == pytest.approx(0.6, abs=0.04)
    assert len(set(keys)) > len(keys) - 2
    places = np.array([view.cutout for view in views if view.cutout])
    assert len(places) / 4000 == pytest.approx(0.5, abs=0.04)
    np.testing.assert_allclose(np.quantile(places, [0, 0.5, 1], axis=0), [[0, 0], [0.5, 0.5], [1, 1]], atol=0.06)


def test_they_leave_the_draws_of_the_others_as_they_are() -> None:
    for i in range(50):
        views = draw_views(3, 1, i, 300, 400, ALL)
        assert tuple(dataclasses.replace(view, **NEW) for view in views) == draw_views(
            3, 1, i, 300, 400, AugmentConfig()
        )


def test_augment_pair_equals_draw_views_and_render() -> None:
    image, out = textured(120, 90), np.empty((2, 32, 32, 3), np.uint8)
    for sample_id in range(8):
        augment_pair(image, 5, 7, sample_id, ALL, out)
        for written, params in zip(out, draw_views(5, 7, sample_id, 120, 90, ALL), strict=True):
            np.testing.assert_array_equal(written, render(image, params, 32))


@pytest.mark.parametrize("shape", [(32, 32), (48, 64)])
def test_a_plain_second_view_is_the_whole_image_beside_an_unchanged_first_one(shape: tuple[int, int]) -> None:
    config = dataclasses.replace(ALL, solarize_p=0.5, second_plain=True)
    for i in range(50):
        first, second = draw_views(3, 1, i, *shape, config)
        assert first == draw_views(3, 1, i, *shape, dataclasses.replace(config, second_plain=False))[0]
        assert second == ViewParams(0, 0, *shape, False, None, False, 0.0)
    with pytest.raises(BadInput, match="leave out second_blur_p"):
        dataclasses.replace(config, second_blur_p=0.1)


def test_render_rejects_more_turns_than_three() -> None:
    image = textured(20, 30)
    with pytest.raises(ValueError, match="turns must lie"):
        render(image, whole(image, turns=4), 16)
