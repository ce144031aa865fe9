"""Builds a dataset from a source: every image is decoded once, bad ones are left out, the rest shuffled and written."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.decode import BadImage, decode
from simclr_ray.data.philox import PREPARE, sort_words
from simclr_ray.data.prepare.shuffle import shuffled
from simclr_ray.data.prepare.source import Source, open_source
from simclr_ray.data.prepare.writer import CHECKED, DatasetWriter
from simclr_ray.storage.location import Location, open_location

JPEG_QUALITY = 92
THREAD_ROWS = 128


def require_settings(seed: int, max_side: int | None, slice_rows: int) -> None:
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed must lie in 0..2^63 - 1, not {seed}")
    if max_side is not None and max_side < 8:
        raise BadInput(f"max_side must be at least 8 pixels, not {max_side}")
    if slice_rows < 1:
        raise BadInput(f"slice_rows must be at least 1, not {slice_rows}")


def ordered_work(source: Source, seed: int) -> pa.Table:
    """The source's work in processing order: listed images shuffled, archives as listed (their images are shuffled
    later)."""
    if not source.listed:
        return source.work
    return source.work.take(np.argsort(sort_words(seed, 0, PREPARE, source.work.num_rows), kind="stable"))


def check(rows: pa.Table, max_side: int | None) -> pa.Table:
    """IMAGE -> CHECKED: each image decoded once, re-encoded where needed. Negative labels mean none."""
    images: list[bytes | None] = []
    sizes: list[int | None] = []
    problems: list[str | None] = []
    for encoded in rows["image"]:
        try:
            image, size = _kept(encoded.as_py() or b"", max_side)
            images.append(image)
            sizes.append(size)
            problems.append(None)
        except BadImage as error:
            images.append(None)
            sizes.append(None)
            problems.append(str(error))
    labels = [label if label is not None and label >= 0 else None for label in rows["label"].to_pylist()]
    return pa.table([images, labels, rows["path"], sizes, problems], schema=CHECKED)


def _kept(encoded: bytes, max_side: int | None) -> tuple[bytes, int]:
    """The bytes to keep and their decoded size: as they are if JPEG, PNG or WebP and no side is above max_side."""
    pixels = decode(encoded)
    height, width, _ = pixels.shape
    if max_side and max(height, width) > max_side:
        scale = max_side / max(height, width)
        side = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = np.asarray(Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC))
        return simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorsubsampling="420"), pixels.size
    if encoded.startswith((b"\xff\xd8\xff", b"\x89PNG")) or (encoded[:4], encoded[8:12]) == (b"RIFF", b"WEBP"):
        return encoded, pixels.size
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue(), pixels.size


def in_threads(source: Source, work: pa.Table, max_side: int | None) -> Iterator[pa.Table]:
    """Reads the work in this process and checks it on threads, in order: decoders release the GIL."""
    threads = len(os.sched_getaffinity(0))
    ahead: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, work.num_rows, source.rows_per_task):
            for read in source.read(work.slice(start, source.rows_per_task)):
                for first in range(0, read.num_rows, THREAD_ROWS):
                    ahead.append(pool.submit(check, read.slice(first, THREAD_ROWS), max_side))
                while len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def prepare_here(spec: str, dest: str, slice_rows: int) -> Dataset:
    """Prepares what is small without a cluster: with seed 0 and no limit on sides, into the empty folder `dest`."""
    source = open_source(spec)
    checked = in_threads(source, ordered_work(source, 0), None)
    return write_dataset(source, open_location(dest), checked, seed=0, max_side=None, slice_rows=slice_rows)


def write_dataset(
    source: Source,
    dest: Location,
    checked: Iterator[pa.Table],
    *,
    seed: int,
    max_side: int | None,
    slice_rows: int,
) -> Dataset:
    """Writes the checked images of `ordered_work(source, seed)`, given in that order, to `dest` (require_writable)."""
    if not source.listed:
        checked = shuffled(checked, seed, source.bytes, dest.local)
    with DatasetWriter(dest, slice_rows) as writer:
        for table in checked:
            writer.add(table)
        return writer.finish(
            source.classes, {"spec": source.spec, "digest": source.digest, "seed": seed, "max_side": max_side}
        )
