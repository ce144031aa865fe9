"""Loads the augmented views of the slices at given positions in the order; runs in data workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.views import augment_pair
from simclr_ray.data.cache import PixelCache
from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.decode import BadImage, decode
from simclr_ray.data.order import Order

T = TypeVar("T")


class SliceLoader:
    """Loads slices by their positions in the order. It imports no torch: a data worker stays at 160 MB.

    `labels`: also load the labels of the images, which all have one.
    """

    def __init__(
        self, dataset: Dataset, order: Order, augment: AugmentConfig, cache: PixelCache | None, *, labels: bool = False
    ) -> None:
        self._order, self._augment, self._cache, self._labels = order, augment, cache, labels
        self._reader = SliceReader(dataset)

    def __call__(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """A block: views uint8 (n, 2, size, size, 3), id int64 (n,), bad bool (n,), n = slices x slice_rows; with
        `labels` also label int64 (n,), that of the image whose views these are."""
        rows, size = self._order.slice_rows, self._augment.size
        views = np.empty((len(positions) * rows, 2, size, size, 3), np.uint8)
        ids, bad = np.empty(len(views), np.int64), np.empty(len(views), bool)
        block: dict[str, np.ndarray] = {"views": views, "id": ids, "bad": bad}
        labels = np.empty(len(views) if self._labels else 0, np.int64)
        for i, position in enumerate(positions):
            part = slice(i * rows, (i + 1) * rows)
            ids[part], bad[part] = self._load(int(position), views[part], labels[part])
        return block | {"label": labels} if self._labels else block

    def _load(self, position: int, views: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fills the views and labels of one slice; returns its sample ids and which of them are undecodable.

        A bad image is replaced by the next good one of the slice, cyclically, augmented with the bad one's key, so that
        batches keep their size. A slice without a good image is left black: the training workers then end the run.
        """
        epoch, number = self._order.slice_at(position)
        first = number * self._order.slice_rows
        ids = np.arange(first, first + self._order.slice_rows)
        images, found = self._read(first)
        bad = np.array([image is None for image in images])
        if bad.all():
            views[:], labels[:] = 0, 0
            return ids, bad
        good = np.flatnonzero(~bad)
        substitutes = good[np.searchsorted(good, np.arange(len(ids))) % len(good)]
        if self._labels:
            labels[:] = found[substitutes]
        for i, (sample, substitute) in enumerate(zip(ids, substitutes, strict=True)):
            augment_pair(images[substitute], self._order.seed, epoch, int(sample), self._augment, views[i])
        return ids, bad

    def _read(self, first: int) -> tuple[list[np.ndarray | None], np.ndarray]:
        """The images of the slice that begins at row `first`, None for a bad one, and their labels if they are used."""
        rows, columns = self._order.slice_rows, ["label"] * self._labels + ["image"] * (self._cache is None)
        table = self._reader.read_slice(first // rows, columns) if columns else None
        labels = table["label"].to_numpy() if table and self._labels else np.empty(0, np.int64)
        if self._cache is not None:
            return [_good(self._cache.image, row) for row in range(first, first + rows)], labels
        assert table is not None
        return [_good(decode, encoded) for encoded in table["image"].to_pylist()], labels


def _good(read: Callable[[T], np.ndarray], source: T) -> np.ndarray | None:
    try:
        return read(source)
    except BadImage:
        return None
