"""Loads the augmented views of the slices at given positions in the order; runs in data workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.views import augment_local, augment_pair
from simclr_ray.data.cache import PixelCache
from simclr_ray.data.dataset import UNLABELLED, Dataset, SliceReader
from simclr_ray.data.decode import BadImage, decode
from simclr_ray.data.order import Order


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
        Images are decoded one at a time: 32 photographs of 12 megapixels would be more than a gigabyte.
        """
        epoch, number = self._order.slice_at(position)
        first = number * self._order.slice_rows
        read, sources, labels = self._sources(first)

        def rendered(i: int, source: Any) -> bool:
            """Whether the image is good; its views are then those of row i."""
            try:
                image = read(source)
            except BadImage:
                return False
            key = (self._order.seed, epoch, first + i)
            augment_pair(image, *key, self._augment, part["views"][i])
            if "local" in part:
                augment_local(image, *key, self._augment, part["local"][i])
            return True

        bad = np.array([not rendered(i, source) for i, source in enumerate(sources)])
        part["id"][:], part["bad"][:] = np.arange(first, first + len(bad)), bad
        if bad.all():
            for name in part.keys() - {"id", "bad"}:
                part[name][:] = 0
            return
        good = np.flatnonzero(~bad)
        substitutes = good[np.searchsorted(good, np.arange(len(bad))) % len(good)]
        if self._labels:
            part["labels"][:] = labels[substitutes]
        for i in np.flatnonzero(bad):
            rendered(int(i), sources[substitutes[i]])

    def _sources(self, first: int) -> tuple[Callable[[Any], np.ndarray], Sequence[Any], np.ndarray]:
        """Of the slice that begins at row `first`: what reads an image, from what, and the labels if they are used."""
        rows, columns = self._order.slice_rows, ["label"] * self._labels + ["image"] * (self._cache is None)
        table = self._reader.read_slice(first // rows, columns) if columns else None
        labels = table["label"].fill_null(UNLABELLED).to_numpy() if table and self._labels else np.empty(0, np.int64)
        if self._cache is not None:
            return self._cache.image, range(first, first + rows), labels
        assert table is not None
        return decode, table["image"].to_pylist(), labels
