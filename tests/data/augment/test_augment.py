"""Views: drawn from SimCLR's distribution as a pure function, and rendered as torchvision does it in float."""

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as v1

from reference_views import assert_as_torchvision, textured, whole
from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.render import blur_radius
from simclr_ray.data.augment.views import Jitter, ViewParams, augment_pair, draw_views, render

STAGES = {
    "resize": {},
    "flip": {"flip": True},
    "brightness": {"jitter": Jitter(1.7, 1.0, 1.0, 0.0, (0, 1, 2, 3))},
    "contrast": {"jitter": Jitter(1.0, 1.7, 1.0, 0.0, (1, 0, 2, 3))},
    "saturation": {"jitter": Jitter(1.0, 1.0, 1.8, 0.0, (2, 3, 1, 0))},
    "hue": {"jitter": Jitter(1.0, 1.0, 1.0, -0.17, (3, 0, 1, 2))},
    "nothing left": {"jitter": Jitter(0.0, 0.0, 0.0, 0.5, (3, 2, 1, 0))},
    "extremes": {"jitter": Jitter(3.0, 3.0, 3.0, -0.5, (1, 2, 3, 0))},
    "grayscale": {"grayscale": True},
    "faint blur": {"blur_sigma": 0.1},
    "blur": {"blur_sigma": 1.1},
    "strong blur": {"blur_sigma": 2.0},
    "all": {"flip": True, "jitter": Jitter(1.3, 0.6, 1.5, 0.2, (3, 1, 0, 2)), "blur_sigma": 0.8},
    "solarize": {"solarize": True},
    "all and grayscale": {"jitter": Jitter(0.5, 1.4, 0.3, -0.1, (2, 0, 1, 3)), "grayscale": True, "blur_sigma": 1.6},
    "all and solarize": {"flip": True, "jitter": Jitter(1.2, 0.9, 1.1, 0.1, (3, 1, 0, 2)), "blur_sigma": 0.8}
    | {"solarize": True},
}


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_equals_torchvision(stage: str, size: int) -> None:
    image = textured(150, 200)
    assert_as_torchvision(image, whole(image, **STAGES[stage]), size)


@pytest.mark.parametrize(
    ("top", "left", "height", "width"),
    [(0, 0, 300, 500), (17, 33, 250, 180), (100, 7, 60, 70), (299, 499, 1, 1), (40, 0, 224, 224), (3, 9, 30, 450)],
)
@pytest.mark.parametrize("size", [32, 75, 224])
def test_enlarged_and_reduced_crops_equal_torchvision(top: int, left: int, height: int, width: int, size: int) -> None:
    image = textured(300, 500)
    assert_as_torchvision(image, whole(image, top=top, left=left, height=height, width=width, flip=True), size)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3), (3, 4000), (4000, 3), (8, 8), (1200, 1600)])
def test_odd_shapes_equal_torchvision(shape: tuple[int, int]) -> None:
    image = textured(*shape)
    for sample_id in range(3):
        for params in draw_views(0, 0, sample_id, *shape, AugmentConfig()):
            assert_as_torchvision(image, params, 64)


def test_grey_images_equal_torchvision() -> None:
    image = np.repeat(textured(90, 90)[:, :, :1], 3, axis=2)
    assert_as_torchvision(image, whole(image, **STAGES["all"]), 64)


def test_drawn_views_equal_torchvision() -> None:
    image = textured(240, 320)
    for size in (32, 96, 224):
        for sample_id in range(12):
            for params in draw_views(7, 1, sample_id, 240, 320, AugmentConfig(size=size)):
                assert_as_torchvision(image, params, size)


def test_the_blur_kernel_is_a_tenth_of_the_view_made_odd() -> None:
    assert [2 * blur_radius(size) + 1 for size in (8, 32, 96, 200, 224)] == [3, 3, 9, 21, 23]


@pytest.mark.parametrize("size", [32, 100, 224])
def test_augment_pair_equals_draw_views_and_render(size: int) -> None:
    config = AugmentConfig(size=size)
    image = textured(120, 90)
    image.flags.writeable = False
    out = np.empty((2, size, size, 3), np.uint8)
    for sample_id in (0, 1, 2**63 - 1):
        augment_pair(image, 2**63 - 1, 2**32 - 1, sample_id, config, out)
        views = draw_views(2**63 - 1, 2**32 - 1, sample_id, 120, 90, config)
        for written, params in zip(out, views, strict=True):
            np.testing.assert_array_equal(written, render(image, params, size))


def draw_many(config: AugmentConfig, count: int = 4000, height: int = 300, width: int = 400) -> list[ViewParams]:
    return [view for i in range(count // 2) for view in draw_views(0, 0, i, height, width, config)]


def test_crops_have_torchvisions_distribution() -> None:
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    crop = v1.RandomResizedCrop(224)
    theirs = np.array([crop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.array([(v.top, v.left, v.height, v.width) for v in draw_many(AugmentConfig())])
    for quantity in (lambda c: c[:, 0], lambda c: c[:, 1], lambda c: c[:, 2] * c[:, 3], lambda c: c[:, 3] / c[:, 2]):
        assert_same_distribution(quantity(ours), quantity(theirs))


def assert_same_distribution(a: np.ndarray, b: np.ndarray) -> None:
    """Kolmogorov and Smirnov's test at p = 0.001."""
    at = np.concatenate([a, b])
    distance = np.abs(
        np.searchsorted(np.sort(a), at, "right") / a.size - np.searchsorted(np.sort(b), at, "right") / b.size
    )
    assert distance.max() < 1.95 * (1 / a.size + 1 / b.size) ** 0.5


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (3, 4000), (4000, 3), (2, 1)])
def test_an_image_of_extreme_aspect_gives_torchvisions_central_crop(shape: tuple[int, int]) -> None:
    theirs = v1.RandomResizedCrop.get_params(torch.empty(3, *shape), [2.0, 2.0], [3 / 4, 4 / 3])
    crops = {(v.top, v.left, v.height, v.width) for v in draw_many(AugmentConfig(crop_min=1.0), 20, *shape)}
    assert theirs in crops


def test_probabilities_and_ranges_follow_the_config() -> None:
    views = draw_many(AugmentConfig(strength=0.5, grayscale_p=0.3))
    jitters = [view.jitter for view in views if view.jitter is not None]
    blurs = [view.blur_sigma for view in views if view.blur_sigma > 0]
    # Five standard deviations of a proportion of 4000 are 0.04.
    assert len(jitters) / 4000 == pytest.approx(0.8, abs=0.04)
    assert len(blurs) / 4000 == pytest.approx(0.5, abs=0.04)
    assert sum(view.flip for view in views) / 4000 == pytest.approx(0.5, abs=0.04)
    assert sum(view.grayscale for view in views) / 4000 == pytest.approx(0.3, abs=0.04)
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        assert_uniform([getattr(jitter, name) for jitter in jitters], low, high)
    assert_uniform(blurs, 0.1, 2.0)
    orders = Counter(jitter.order for jitter in jitters)
    assert len(orders) == 24
    # 133 of each expected, give or take 11.
    assert 80 < min(orders.values()) < max(orders.values()) < 190


def assert_uniform(values: list[float], low: float, high: float) -> None:
    quantiles = (np.sort(values) - low) / (high - low)
    assert quantiles[0] >= 0
    assert quantiles[-1] <= 1
    assert np.abs(quantiles - np.linspace(0, 1, len(values))).max() < 2 / len(values) ** 0.5


def test_strong_jitter_never_draws_a_negative_factor() -> None:
    jitters = [view.jitter for view in draw_many(AugmentConfig(strength=2.0, jitter_p=1.0), 1000) if view.jitter]
    assert_uniform([jitter.brightness for jitter in jitters], 0.0, 2.6)


def test_draws_of_views_epochs_samples_and_seeds_are_independent() -> None:
    def hues(seed: int, epoch: int, view: int, first: int = 0) -> list[float]:
        config = AugmentConfig(jitter_p=1.0)
        drawn = [draw_views(seed, epoch, first + i, 64, 64, config)[view].jitter for i in range(1000)]
        return [jitter.hue for jitter in drawn if jitter is not None]

    draws = [hues(0, 0, 0), hues(0, 0, 1), hues(0, 1, 0), hues(1, 0, 0), hues(0, 0, 0, first=2**40)]
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < 0.15


def test_a_probability_does_not_change_the_other_draws() -> None:
    first, _ = draw_views(0, 0, 0, 100, 100, AugmentConfig(blur_p=0.0, grayscale_p=0.0))
    second, _ = draw_views(0, 0, 0, 100, 100, AugmentConfig(blur_p=1.0, grayscale_p=1.0))
    assert dataclasses.replace(second, grayscale=False, blur_sigma=0.0) == first


def test_views_are_pinned() -> None:
    views = draw_views(2**62 + 3, 17, 2**40 + 1, 375, 500, AugmentConfig())
    assert views == (
        ViewParams(
            14,
            96,
            329,
            378,
            True,
            Jitter(1.7571028027683497, 1.1984563574194909, 1.3181759286671877, 0.1781669922173023, (0, 2, 1, 3)),
            False,
            0.0,
        ),
        ViewParams(
            0,
            2,
            368,
            347,
            False,
            Jitter(0.6371037255972624, 1.5891204770654441, 0.4860484719276428, 0.027283223159611236, (2, 3, 1, 0)),
            False,
            0.0,
        ),
    )


def test_render_rejects_invalid_parameters() -> None:
    image = textured(20, 30)
    for changes in (
        {"height": 21},
        {"left": 1},
        {"top": -1},
        {"width": 0},
        {"jitter": Jitter(1, 1, 1, 0, (0, 0, 1, 2))},
    ):
        with pytest.raises(ValueError, match=r"crop|order"):
            render(image, whole(image, **changes), 16)
    for wrong in (image[:, :, :1], image[0], image.astype(np.float32), image[:0]):
        with pytest.raises(ValueError, match="image must be"):
            render(wrong, whole(image), 16)
    with pytest.raises(ValueError, match="out must be"):
        augment_pair(image, 0, 0, 0, AugmentConfig(), np.empty((2, 32, 32, 3), np.uint8))


def run_fresh(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_loads_neither_torch_nor_pillow() -> None:
    modules = "['torch', 'torchvision', 'jaxtyping', 'PIL', 'ray']"
    imports = "import sys, simclr_ray.data.augment.views, simclr_ray.data.decode"
    code = f"{imports}; print([name for name in {modules} if name in sys.modules])"
    assert run_fresh(code) == "[]"


def test_the_cache_skips_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    code = "from simclr_ray.data.jit import cache_folder; print(cache_folder())"
    unwritable = {"NUMBA_CACHE_DIR": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "HOME": "/proc/none"}
    assert run_fresh(code, **unwritable, TMPDIR=str(tmp_path)).startswith(str(tmp_path))


def test_a_kernel_works_without_any_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from simclr_ray.data import jit

    monkeypatch.setattr(jit, "cache_folder", lambda: None)
    assert jit.kernel(lambda x: x + 1)(1) == 2
