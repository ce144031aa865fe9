"""The cache of a small dataset's decoded images: one memory-mapped file per node, shared by its workers and trials."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import numpy as np

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.decode import BadImage, decode

FORMAT = 1


class PixelCache:
    """Decoded images by row. `image` raises BadImage for a row that could not be decoded when the cache was built."""

    def __init__(self, index: Path) -> None:
        with np.load(index) as arrays:
            self._offsets, self._shapes = arrays["offsets"], arrays["shapes"]
        # As a plain array: each slice of a memmap would be a memmap again, which takes longer than to read an image.
        self._pixels = np.asarray(np.memmap(index.with_suffix(".pixels"), dtype=np.uint8, mode="r"))

    def image(self, row: int) -> np.ndarray:
        """uint8 (h, w, 3), a view into the mapped file."""
        height, width = self._shapes[row]
        if height == 0:
            raise BadImage("not decodable")
        start = self._offsets[row]
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)


def open_cache(dataset: Dataset, limit_gib: float, folder: str | None, *, build: bool = True) -> PixelCache | None:
    """The cache of `dataset` on this machine, built first if it is missing; None if its pixels exceed the limit.

    Without `build` also None if it is missing. The file is named by the dataset's fingerprint. The first process builds
    it under a file lock, the others wait. Raises BadInput where it cannot be read or written.
    """
    try:
        return _open_cache(dataset, limit_gib, folder, build=build)
    except OSError as error:
        raise BadInput(
            f"the decoded cache cannot be written ({error}): set resources.cache_dir to a folder with "
            f"{dataset.pixel_bytes >> 20} MiB free, or resources.cache_gib 0"
        ) from None


def _open_cache(dataset: Dataset, limit_gib: float, folder: str | None, *, build: bool) -> PixelCache | None:
    if dataset.pixel_bytes > limit_gib * 2**30:
        return None
    home = Path(folder) if folder else Path(tempfile.gettempdir()) / f"simclr_ray-{os.getuid()}"
    index = home / f"{dataset.fingerprint}-{FORMAT}.npz"
    if not index.exists():
        if not build:
            return None
        home.mkdir(parents=True, exist_ok=True)
        with open(index.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not index.exists():
                _build(dataset, index)
    return PixelCache(index)


def _build(dataset: Dataset, index: Path) -> None:
    """Writes the pixels, then the index, so that an index that exists has all its pixels."""
    offsets = np.zeros(dataset.rows, np.int64)
    shapes = np.zeros((dataset.rows, 2), np.int32)
    reader, end = SliceReader(dataset), 0
    pixels, part = index.with_suffix(".pixels"), index.with_suffix(f".{os.getpid()}.npz")
    with open(pixels, "wb") as stream:
        for table in reader.rows(0, dataset.rows):
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
    part.replace(index)
