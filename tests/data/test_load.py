"""The views of a slice: those of the order, the same from the cache, and with a substitute for a bad image."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from simclr_ray.data.augment.views import draw_views, render
from simclr_ray.data.cache import open_cache
from simclr_ray.data.dataset import UNLABELLED, Dataset, SliceReader
from simclr_ray.data.decode import decode
from simclr_ray.data.load import SliceLoader
from simclr_ray.data.order import Order, order_of
from small_runs import TINY, corrupted, synthetic_dataset
from worker_processes import worker_context


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 100)


def loader(dataset: Dataset, cache_dir: Path | None = None, *, labels: bool = False) -> SliceLoader:
    cache = open_cache(dataset, 1.0, str(cache_dir)) if cache_dir else None
    return SliceLoader(dataset, order_of(TINY, dataset), TINY.augment, cache, labels=labels)


def position_of_slice_0(order: Order) -> np.ndarray:
    """(1,): where epoch 0 has the first slice; these datasets have no dropped tail."""
    return np.array([[order.slice_at(position) for position in range(order.slices)].index((0, 0))])


def test_views_are_drawn_by_seed_epoch_and_id(dataset: Dataset) -> None:
    order = order_of(TINY, dataset)
    position = order.steps_per_epoch * order.slices_per_batch + 3  # the fourth slice of the second epoch
    block = loader(dataset)(np.array([position]))
    epoch, number = order.slice_at(position)
    assert epoch == 1
    first = 8 * number
    assert block["id"].tolist() == list(range(first, first + 8))
    assert not block["bad"].any()
    for row, encoded in enumerate(SliceReader(dataset).read_slice(first // 8)["image"].to_pylist()):
        image = decode(encoded)
        views = draw_views(0, 1, first + row, *image.shape[:2], TINY.augment)
        for view, params in enumerate(views):
            np.testing.assert_array_equal(block["views"][row, view], render(image, params, 16))


def test_any_grouping_of_positions_gives_the_same_rows(dataset: Dataset) -> None:
    load = loader(dataset)
    together = load(np.arange(7))
    apart = [load(np.array([p])) for p in range(7)]
    for key in together:
        np.testing.assert_array_equal(together[key], np.concatenate([block[key] for block in apart]))


def test_the_cache_does_not_change_views(dataset: Dataset, tmp_path: Path) -> None:
    plain, cached = loader(dataset)(np.arange(12)), loader(dataset, tmp_path)(np.arange(12))
    for key in plain:
        np.testing.assert_array_equal(plain[key], cached[key])


def test_a_large_dataset_is_not_cached(dataset: Dataset, tmp_path: Path) -> None:
    assert open_cache(replace(dataset, pixel_bytes=2**31), 1.0, str(tmp_path)) is None
    assert open_cache(dataset, 0.0, str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def _open(dataset: Dataset, folder: str) -> None:
    assert open_cache(dataset, 1.0, folder) is not None


def test_processes_that_start_together_build_one_cache(dataset: Dataset, tmp_path: Path) -> None:
    processes = [worker_context().Process(target=_open, args=(dataset, str(tmp_path))) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".npz", ".pixels"]


@pytest.mark.parametrize("cached", [False, True])
def test_the_next_good_image_replaces_a_bad_one_with_its_key(dataset: Dataset, tmp_path: Path, cached: bool) -> None:
    damaged = corrupted(dataset, tmp_path / "d", bad={1, 2, 7})
    position = position_of_slice_0(order_of(TINY, damaged))
    block = loader(damaged, tmp_path / "cache" if cached else None)(position)
    assert np.flatnonzero(block["bad"]).tolist() == [1, 2, 7]
    images = [decode(e) for e in SliceReader(dataset).read_slice(0)["image"].to_pylist()]
    for row, stand_in in ((0, 0), (1, 3), (2, 3), (3, 3), (7, 0)):
        params = draw_views(0, 0, row, 32, 32, TINY.augment)[1]
        np.testing.assert_array_equal(block["views"][row, 1], render(images[stand_in], params, 16))


def test_a_slice_without_a_good_image_is_flagged(dataset: Dataset, tmp_path: Path) -> None:
    damaged = corrupted(dataset, tmp_path / "d", bad=set(range(8)))
    block = loader(damaged)(position_of_slice_0(order_of(TINY, damaged)))
    assert block["bad"].all()
    assert not block["views"].any()


@pytest.mark.parametrize("cached", [False, True])
def test_labels_are_those_of_the_images_whose_views_are_loaded(dataset: Dataset, tmp_path: Path, cached: bool) -> None:
    damaged = corrupted(dataset, tmp_path / "damaged", {2, 3, 7}, unlabelled={4, 6})
    load = loader(damaged, tmp_path / "cache" if cached else None, labels=True)
    block = load(position_of_slice_0(order_of(TINY, damaged)))
    labels = SliceReader(damaged).read_slice(0)["label"].fill_null(UNLABELLED).to_pylist()
    assert [row for row, label in enumerate(labels) if label == UNLABELLED] == [4, 6]
    expected = {2: labels[4], 3: labels[4], 7: labels[0]}
    assert block["labels"].tolist() == [expected.get(row, label) for row, label in enumerate(labels)]
    assert len(set(labels)) > 1
    assert "labels" not in loader(damaged)(np.array([0]))


class Decoded(np.ndarray):
    """An image that is known to be alive."""

    alive: ClassVar[set[int]] = set()
    most = 0

    @classmethod
    def of(cls, pixels: np.ndarray) -> np.ndarray:
        image = pixels.view(cls)
        cls.alive.add(id(image))
        cls.most = max(cls.most, len(cls.alive))
        weakref.finalize(image, cls.alive.discard, id(image))
        return image


def test_one_image_is_decoded_at_a_time(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of photographs would be gigabytes."""
    damaged = corrupted(dataset, tmp_path, {1, 2})
    expected = loader(damaged)(position_of_slice_0(order_of(TINY, damaged)))
    monkeypatch.setattr("simclr_ray.data.load.decode", lambda encoded: Decoded.of(decode(encoded)))
    found = loader(damaged)(position_of_slice_0(order_of(TINY, damaged)))
    np.testing.assert_array_equal(found["views"], expected["views"])
    assert 1 <= Decoded.most <= 2
    assert not Decoded.alive
