"""The images of a dataset in batches, one view of each with its label; threads read one batch ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, UInt8

from simclr_ray.config import AugmentConfig, BadInput
from simclr_ray.data.augment.center import center_view
from simclr_ray.data.augment.views import draw_views, render
from simclr_ray.data.cache import PixelCache
from simclr_ray.data.dataset import UNLABELLED, Dataset, SliceReader
from simclr_ray.data.decode import BadImage, decode

View = Callable[[int, UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "s s 3"]]
"""From a sample's id and its decoded image to a view of it."""

LAST_EPOCH = 2**32 - 1

T = TypeVar("T")


@dataclass(frozen=True)
class ImageBatch:
    """Views of the rows that could be decoded, in the order of the dataset."""

    pixels: UInt8[np.ndarray, "n s s 3"]
    labels: Int64[np.ndarray, " n"]
    """UNLABELLED where the dataset has none."""
    ids: Int64[np.ndarray, " n"]
    paths: list[str | None]
    bad: int
    """Images that could not be decoded and were left out."""


def centered(size: int) -> View:
    """The test-time view, of side `size`."""
    return lambda _, image: center_view(image, size)


def cropped(size: int, seed: int, copy: int) -> View:
    """Random resized crop and flip, on which a linear classifier trains (SimCLR, B.6); keyed by seed, copy and id."""
    config = AugmentConfig(size=size, jitter_p=0.0, grayscale_p=0.0, blur_p=0.0)

    def view(sample_id: int, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        # Epochs are counted down from the last possible one, so that no crop of the pretraining is drawn again.
        first, _ = draw_views(seed, LAST_EPOCH - copy, sample_id, height, width, config)
        return render(image, first, size)

    return view


def read_images(
    dataset: Dataset,
    view: View,
    *,
    slices: Sequence[int] | None = None,
    rows: int | None = None,
    batch_slices: int = 8,
    threads: int = 4,
    cache: PixelCache | None = None,
) -> Iterator[ImageBatch]:
    """One view of every image of `slices` (None: all) whose id is below `rows` (None: all).

    With W workers, worker r passes slices r, r + W, ... `cache`: that of the dataset, so that no image is decoded.
    Raises BadInput if none of a batch's images can be decoded.
    """
    reader, columns = SliceReader(dataset), ["id", "label", "path"] if cache else None
    rows = dataset.rows if rows is None else min(rows, dataset.rows)
    if slices is None:
        slices = range(-(-rows // dataset.slice_rows))
    ahead: deque[tuple[pa.Table, Iterator[list[np.ndarray | None]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(slices), batch_slices):
            own = [reader.read_slice(g, columns) for g in slices[start : start + batch_slices]]
            own = [part.filter(pc.field("id") < rows) for part in own]
            ahead.append((pa.concat_tables(own), pool.map(partial(_views, view, cache), own)))
            if len(ahead) == 2:  # one batch is decoded while the caller works on the one before
                yield _batch(*ahead.popleft())
        while ahead:
            yield _batch(*ahead.popleft())


def _views(view: View, cache: PixelCache | None, part: pa.Table) -> list[np.ndarray | None]:
    """Those of a slice, None where an image cannot be decoded."""
    ids = part["id"].to_pylist()
    if cache:
        return [_viewed(view, row, cache.image, row) for row in ids]
    return [_viewed(view, row, decode, image) for row, image in zip(ids, part["image"].to_pylist(), strict=True)]


def _viewed(view: View, row: int, read: Callable[[T], np.ndarray], source: T) -> np.ndarray | None:
    try:
        return view(row, read(source))
    except BadImage:
        return None


def _batch(table: pa.Table, views: Iterator[list[np.ndarray | None]]) -> ImageBatch:
    decoded = [view for part in views for view in part]
    good = np.array([view is not None for view in decoded])
    ids = table["id"].to_numpy()
    if not good.any():
        raise BadInput(f"none of the images {ids[0]}..{ids[-1]} can be decoded; prepare the dataset again")
    labels = table["label"].fill_null(UNLABELLED).to_numpy().astype(np.int64)
    pixels = np.stack([view for view in decoded if view is not None])
    paths = table["path"].filter(good).to_pylist()
    return ImageBatch(pixels, labels[good], ids[good], paths, int((~good).sum()))
