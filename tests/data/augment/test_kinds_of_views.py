"""The second view, solarisation and local views: each kind has its own distribution, and torchvision's pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from reference_views import assert_as_torchvision, textured
from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.views import augment_local, draw_local_views, draw_views, render


@pytest.mark.parametrize("size", [24, 96])
def test_augment_local_equals_draw_local_views_and_render(size: int) -> None:
    config = AugmentConfig(local_views=3, local_size=size, local_crop_max=0.4, solarize_p=1.0)
    image, out = textured(120, 90), np.empty((3, size, size, 3), np.uint8)
    augment_local(image, 5, 7, 11, config, out)
    views = draw_local_views(5, 7, 11, 120, 90, config)
    for written, params in zip(out, views, strict=True):
        np.testing.assert_array_equal(written, render(image, params, size))
        assert_as_torchvision(image, params, size)
    assert len({(view.top, view.left, view.height) for view in [*views, *draw_views(5, 7, 11, 120, 90, config)]}) == 5


def test_each_kind_of_view_has_its_own_distribution() -> None:
    """BYOL's views (appendix B) and DINO's local ones: probabilities, crops, and saturation apart from the rest."""
    config = AugmentConfig(
        crop_min=0.4,
        strength=0.5,
        saturation=0.2,
        blur_p=1.0,
        second_blur_p=0.1,
        second_solarize_p=0.2,
        local_views=1,
        local_crop_max=0.4,
        local_blur_p=0.5,
    )
    pairs = [draw_views(0, 0, i, 300, 400, config) for i in range(2000)]
    kinds = [[first for first, _ in pairs], [second for _, second in pairs]]
    kinds.append([draw_local_views(0, 0, i, 300, 400, config)[0] for i in range(2000)])
    for views, blur_p, solarize_p, low, high in zip(
        kinds, (1.0, 0.1, 0.5), (0.0, 0.2, 0.0), (0.4, 0.4, 0.05), (1.0, 1.0, 0.4), strict=True
    ):
        assert np.mean([view.blur_sigma > 0 for view in views]) == pytest.approx(blur_p, abs=0.03)
        assert np.mean([view.solarize for view in views]) == pytest.approx(solarize_p, abs=0.03)
        areas = np.array([view.height * view.width / (300 * 400) for view in views])
        assert low - 0.01 < areas.min() < areas.max() < high + 0.01
        jitters = [view.jitter for view in views if view.jitter]
        assert max(abs(jitter.saturation - 1) for jitter in jitters) == pytest.approx(0.2, abs=0.01)
        assert max(abs(jitter.contrast - 1) for jitter in jitters) == pytest.approx(0.4, abs=0.01)


def test_new_settings_leave_the_draws_of_the_others_as_they_are() -> None:
    changed = AugmentConfig(solarize_p=1.0, second_solarize_p=0.0, local_views=4)
    for i in range(50):
        first, second = draw_views(3, 1, i, 300, 400, changed)
        assert (dataclasses.replace(first, solarize=False), second) == draw_views(3, 1, i, 300, 400, AugmentConfig())
        assert first.solarize
