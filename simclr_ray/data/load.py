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
    """Loads slices by their positions in the order. It imports no torch: a data worker stays at 160 MB."""

    def __init__(self, dataset: Dataset, order: Order, augment: AugmentConfig, cache: PixelCache | None) -> None:
        self._order, self._augment, self._cache = order, augment, cache
        self._reader = SliceReader(dataset)

    def __call__(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """A block: views uint8 (n, 2, size, size, 3), id int64 (n,), bad bool (n,), n = slices x slice_rows."""
        rows, size = self._order.slice_rows, self._augment.size
        views = np.empty((len(positions) * rows, 2, size, size, 3), np.uint8)
        ids, bad = np.empty(len(views), np.int64), np.empty(len(views), bool)
        for i, position in enumerate(positions):
            part = slice(i * rows, (i + 1) * rows)
            ids[part], bad[part] = self._load(int(position), views[part])
        return {"views": views, "id": ids, "bad": bad}

    def _load(self, position: int, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fills the views of one slice; returns its sample ids and which of them are undecodable.

        A bad image is replaced by the next good one of the slice, cyclically, augmented with the bad one's key, so that
        batches keep their size. A slice without a good image is left black: the training workers then end the run.
        """
        epoch, number = self._order.slice_at(position)
        first = number * self._order.slice_rows
        ids = np.arange(first, first + self._order.slice_rows)
        images = self._images(first)
        bad = np.array([image is None for image in images])
        if bad.all():
            views[:] = 0
            return ids, bad
        good = np.flatnonzero(~bad)
        for i, sample in enumerate(ids):
            substitute = good[np.searchsorted(good, i) % len(good)]
            augment_pair(images[substitute], self._order.seed, epoch, int(sample), self._augment, views[i])
        return ids, bad

    def _images(self, first: int) -> list[np.ndarray | None]:
        """The decoded images of the slice that begins at row `first`; None for a bad one."""
        rows = self._order.slice_rows
        if self._cache is not None:
            return [_good(self._cache.image, row) for row in range(first, first + rows)]
        return [_good(decode, encoded) for encoded in self._reader.read_slice(first // rows)["image"].to_pylist()]


def _good(read: Callable[[T], np.ndarray], source: T) -> np.ndarray | None:
    try:
        return read(source)
    except BadImage:
        return None
