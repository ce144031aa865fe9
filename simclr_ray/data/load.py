"""Loads the augmented views of the slices at given positions in the order; runs in data workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.views import augment_local, augment_pair
from simclr_ray.data.cache import PixelCache
from simclr_ray.data.dataset import UNLABELLED, Dataset, SliceReader
from simclr_ray.data.decode import BadImage, decode
from simclr_ray.data.order import Order

T = TypeVar("T")


class SliceLoader:
    """Loads slices by their positions in the order. It imports no torch: a data worker stays at 160 MB.

    `labels`: also load the labels of the images, UNLABELLED where one has none.
    """

    def __init__(
        self, dataset: Dataset, order: Order, augment: AugmentConfig, cache: PixelCache | None, *, labels: bool = False
    ) -> None:
        self._order, self._augment, self._cache, self._labels = order, augment, cache, labels
        self._reader = SliceReader(dataset)

    def __call__(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """A block: views uint8 (n, 2, size, size, 3), id int64 (n,), bad bool (n,), n = slices x slice_rows; with local
        views also local uint8 (n, local_views, local_size, local_size, 3), with labels also labels int64 (n,)."""
        rows = self._order.slice_rows
        block = self._empty(len(positions) * rows)
        for i, position in enumerate(positions):
            self._load(int(position), {name: column[i * rows : (i + 1) * rows] for name, column in block.items()})
        return block

    def _empty(self, n: int) -> dict[str, np.ndarray]:
        size, local_size, local_views = self._augment.size, self._augment.local_size, self._augment.local_views
        block: dict[str, np.ndarray] = {"id": np.empty(n, np.int64), "bad": np.empty(n, bool)}
        block["views"] = np.empty((n, 2, size, size, 3), np.uint8)
        if local_views:
            block["local"] = np.empty((n, local_views, local_size, local_size, 3), np.uint8)
        if self._labels:
            block["labels"] = np.empty(n, np.int64)
        return block

    def _load(self, position: int, part: dict[str, np.ndarray]) -> None:
        """Fills the columns of one slice.

        A bad image is replaced by the next good one of the slice, cyclically, augmented with the bad one's key, so that
        batches keep their size. A slice without a good image is left black: the training workers then end the run.
        """
        epoch, number = self._order.slice_at(position)
        first = number * self._order.slice_rows
        images, labels = self._read(first)
        bad = np.array([image is None for image in images])
        part["id"][:], part["bad"][:] = np.arange(first, first + len(bad)), bad
        if bad.all():
            for name in part.keys() - {"id", "bad"}:
                part[name][:] = 0
            return
        good = np.flatnonzero(~bad)
        substitutes = good[np.searchsorted(good, np.arange(len(bad))) % len(good)]
        if self._labels:
            part["labels"][:] = labels[substitutes]
        for i, substitute in enumerate(substitutes):
            key = (self._order.seed, epoch, first + i)
            augment_pair(images[substitute], *key, self._augment, part["views"][i])
            if "local" in part:
                augment_local(images[substitute], *key, self._augment, part["local"][i])

    def _read(self, first: int) -> tuple[list[np.ndarray | None], np.ndarray]:
        """The images of the slice that begins at row `first`, None for a bad one, and their labels if they are used."""
        rows, columns = self._order.slice_rows, ["label"] * self._labels + ["image"] * (self._cache is None)
        table = self._reader.read_slice(first // rows, columns) if columns else None
        labels = table["label"].fill_null(UNLABELLED).to_numpy() if table and self._labels else np.empty(0, np.int64)
        if self._cache is not None:
            return [_good(self._cache.image, row) for row in range(first, first + rows)], labels
        assert table is not None
        return [_good(decode, encoded) for encoded in table["image"].to_pylist()], labels


def _good(read: Callable[[T], np.ndarray], source: T) -> np.ndarray | None:
    try:
        return read(source)
    except BadImage:
        return None
