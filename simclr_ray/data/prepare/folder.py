"""A folder of images: one file each, with class folders or without."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import IMAGE
from simclr_ray.storage.location import Location

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"
})  # fmt: skip

UNREAD = frozenset({
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"
})  # fmt: skip
"""Of pictures in formats that are not read."""

# Requests in flight to an object store, where a small file costs a round trip and no CPU.
REQUESTS = 16


def list_images(paths: list[str]) -> tuple[pa.Table, tuple[str, ...] | None]:
    """A row (path, label) for each path, and the class names.

    Labels number the sorted first-level folders, as torchvision's ImageFolder does. There are none unless every
    image is in such a folder and there are at least two of them: a single class is no label.
    """
    classes = tuple(sorted({path.partition("/")[0] for path in paths if "/" in path}))
    if len(classes) < 2 or not all("/" in path for path in paths):
        return pa.table({"path": paths, "label": pa.nulls(len(paths), pa.int32())}), None
    number = {name: label for label, name in enumerate(classes)}
    labels = np.fromiter((number[path.partition("/")[0]] for path in paths), np.int32, len(paths))
    return pa.table({"path": paths, "label": labels}), classes


def remarks(paths: list[str], unread: dict[str, int]) -> tuple[str, ...]:
    """Lines about what the user may not expect: pictures left out, and class folders that give no labels."""
    found = []
    if unread:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(unread.items()))
        found.append(f"left out, in formats that are not read: {counts}")
    outside = [path for path in paths if "/" not in path]
    classes = len({path.partition("/")[0] for path in paths if "/" in path})
    if outside and classes > 1:
        found.append(
            f"no image has a label: {len(outside):,}, such as {outside[0]}, lie outside the {classes:,} class folders"
        )
    return tuple(found)


def read(location: Location, work: pa.Table) -> Iterator[pa.Table]:
    """One table with the files of `work`. Raises BadInput for a file that was listed and cannot be opened here."""
    paths = work["path"].to_pylist()

    def fetch(path: str) -> bytes:
        try:
            return (location / path).read_bytes()
        except (FileNotFoundError, PermissionError):
            raise BadInput(
                f"{location / path} was listed but cannot be read on {socket.gethostname()}: every node must see the "
                "images, and they must not be moved during preparation"
            ) from None

    if location.local:
        images = [fetch(path) for path in paths]
    else:
        with ThreadPoolExecutor(REQUESTS) as pool:
            images = list(pool.map(fetch, paths))
    yield pa.table([images, work["label"], paths], schema=IMAGE)
