"""The cache of a small dataset's decoded images: one memory-mapped file per node, shared by its workers and trials."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.decode import BadImage, decode

FORMAT = 1


class PixelCache:
    """Decoded images by row. `image` raises BadImage for a row that could not be decoded when the cache was built.

    Raises ValueError where its files are damaged, as after a machine that failed while it wrote them.
    """

    def __init__(self, index: Path) -> None:
        try:
            with np.load(index) as arrays:
                self._offsets, self._shapes = arrays["offsets"], arrays["shapes"]
        except (BadZipFile, EOFError, KeyError) as error:
            raise ValueError(f"{index}: {error}") from None
        # As a plain array: each slice of a memmap would be a memmap again, which takes longer than to read an image.
        self._pixels = np.asarray(np.memmap(index.with_suffix(".pixels"), dtype=np.uint8, mode="r"))
        if self._pixels.size < (self._offsets + 3 * self._shapes.prod(axis=1, dtype=np.int64)).max():
            raise ValueError(f"{index}: its pixels are cut")

    def image(self, row: int) -> np.ndarray:
        """uint8 (h, w, 3), a view into the mapped file."""
        height, width = self._shapes[row]
        if height == 0:
            raise BadImage("not decodable")
        start = self._offsets[row]
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)


class _OfTheStore(Exception):
    """Carries an OSError of the dataset's store past those of the cache's own files."""


def open_cache(dataset: Dataset, limit_gib: float, folder: str | None, *, build: bool = True) -> PixelCache | None:
    """The cache of `dataset` on this machine, built first if it is missing or damaged.

    None if its pixels exceed the limit; without `build` if it is missing; without `folder`, in the one for temporary
    files, where that has no room. The file is named by the dataset's fingerprint. The first process builds it under a
    file lock, the others wait. Raises BadInput where `folder` cannot be read or written.
    """
    if dataset.pixel_bytes > limit_gib * 2**30:
        return None
    home = Path(folder) if folder else Path(tempfile.gettempdir()) / f"simclr_ray-{os.getuid()}"
    try:
        return _open_cache(dataset, home / f"{dataset.fingerprint}-{FORMAT}.npz", build=build)
    except _OfTheStore as error:
        raise error.args[0] from None
    except OSError as error:
        if folder is None:
            return None
        raise BadInput(
            f"the decoded cache cannot be written ({error}): set resources.cache_dir to a folder with "
            f"{dataset.pixel_bytes >> 20} MiB free, or resources.cache_gib 0"
        ) from None


def _open_cache(dataset: Dataset, index: Path, *, build: bool) -> PixelCache | None:
    cache = _opened(index)
    if cache or not build:
        return cache
    index.parent.mkdir(parents=True, exist_ok=True)
    with open(index.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache = _opened(index)
        if cache is None:
            _build(dataset, index)
            cache = PixelCache(index)
    return cache


def _opened(index: Path) -> PixelCache | None:
    """None if it is missing or damaged."""
    try:
        return PixelCache(index)
    except (FileNotFoundError, ValueError):
        return None


def _build(dataset: Dataset, index: Path) -> None:
    """Writes the pixels, then the index, so that an index that exists has all its pixels.

    Both under other names first: a file that is there may be damaged, but it may be mapped, too.
    """
    if shutil.disk_usage(index.parent).free < dataset.pixel_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    offsets = np.zeros(dataset.rows, np.int64)
    shapes = np.zeros((dataset.rows, 2), np.int32)
    pixels, part, end = index.with_suffix(".part.pixels"), index.with_suffix(".part.npz"), 0
    with open(pixels, "wb") as stream:
        for table in _rows(dataset):
            for row, encoded in zip(table["id"].to_pylist(), table["image"], strict=True):
                try:
                    image = decode(encoded.as_py())
                except BadImage:
                    continue
                offsets[row], shapes[row] = end, image.shape[:2]
                end += stream.write(image.tobytes())
        if end == 0:
            stream.write(b"\0")  # an empty file cannot be mapped
    np.savez(part, offsets=offsets, shapes=shapes)
    pixels.replace(index.with_suffix(".pixels"))
    part.replace(index)


def _rows(dataset: Dataset) -> Iterator[pa.Table]:
    try:
        yield from SliceReader(dataset).rows(0, dataset.rows)
    except OSError as error:
        raise _OfTheStore(error) from None
