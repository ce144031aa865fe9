"""An external shuffle of images that can only be read in sequence: tars and Parquet files are often sorted by class."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from simclr_ray.data.philox import PREPARE, sort_words

BUCKET_BYTES = 128 * 2**20
LARGE_BUCKETS = 4
"""A bucket of more than so many times BUCKET_BYTES is divided itself: of more than 200 GB in all."""
MOST_BUCKETS = 400  # each is an open file, two levels are open at once, and a process may have 1,024 as a rule
FLUSH_BYTES = 128 * 2**20
KEYS = 2**16
PIECE_ROWS = 1024


def shuffled(tables: Iterator[pa.Table], seed: int, expected_bytes: int, folder: Path | None) -> Iterator[pa.Table]:
    """The rows of `tables` sorted by a random key each, a function of seed and row number alone.

    The rows are distributed over buckets on disk by their key, then each bucket is sorted: memory holds a bucket and
    FLUSH_BYTES, never all rows. The buckets are unnamed temporary files in `folder` (None: the system's temporary one),
    which are deleted with this process however it ends.
    """
    for rows in _sorted(_with_keys(tables, seed), range(2**32), expected_bytes, folder):
        # Stable: rows of equal keys stay in the order in which they were read.
        order = np.argsort(rows["key"].to_numpy(), kind="stable")
        for start in range(0, len(order), PIECE_ROWS):
            yield _without_key(rows.take(order[start : start + PIECE_ROWS]))


def _sorted(keyed: Iterator[pa.Table], keys: range, expected_bytes: int, folder: Path | None) -> Iterator[pa.Table]:
    """Buckets in the order of their keys, unsorted inside. `keys`: where the upper halves of the keys lie."""
    count = max(1, min(MOST_BUCKETS, len(keys), expected_bytes // BUCKET_BYTES))
    with ExitStack() as files:
        buckets = [files.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(count)]
        for number, (file, size) in enumerate(zip(buckets, _distribute(keyed, keys, buckets), strict=True)):
            if not size:
                continue
            file.seek(0)
            stream = pa.ipc.open_stream(file)
            first, stop = (-(-len(keys) * edge // count) for edge in (number, number + 1))
            if size > LARGE_BUCKETS * BUCKET_BYTES and stop - first > 1:
                parts = (pa.Table.from_batches([batch]) for batch in stream)
                yield from _sorted(parts, keys[first:stop], size, folder)
            else:
                yield stream.read_all()
            file.truncate(0)


def _distribute(keyed: Iterator[pa.Table], keys: range, buckets: Sequence[IO[bytes]]) -> list[int]:
    """Writes each row to the bucket of its key; returns the bytes in each."""
    writers: list[pa.RecordBatchStreamWriter | None] = [None] * len(buckets)
    for table in _gathered(keyed):
        place = (table["key"].to_numpy() >> np.uint64(32)) - np.uint64(keys.start)
        bucket_of = place * np.uint64(len(buckets)) // np.uint64(len(keys))
        for bucket in np.unique(bucket_of).tolist():
            writer = writers[bucket] = writers[bucket] or pa.ipc.new_stream(buckets[bucket], table.schema)
            writer.write_table(table.take(np.flatnonzero(bucket_of == bucket)))
    for writer in writers:
        if writer is not None:
            writer.close()
    return [file.tell() for file in buckets]


def _with_keys(tables: Iterator[pa.Table], seed: int) -> Iterator[pa.Table]:
    """Row i gets word i mod KEYS of draw i // KEYS, so that the number of rows need not be known.

    Images become large_binary: a bucket of a very large source may exceed the 2 GiB that binary can address.
    """
    row = 0
    draw, words = -1, np.empty(0, np.uint64)
    for table in tables:
        keys = np.empty(table.num_rows, np.uint64)
        done = 0
        while done < len(keys):
            if row // KEYS != draw:
                draw = row // KEYS
                words = sort_words(seed, draw, PREPARE, KEYS)
            some = words[row % KEYS :][: len(keys) - done]
            keys[done : done + len(some)] = some
            done += len(some)
            row += len(some)
        yield table.set_column(0, "image", table["image"].cast(pa.large_binary())).append_column("key", pa.array(keys))


def _without_key(keyed: pa.Table) -> pa.Table:
    return keyed.set_column(0, "image", keyed["image"].cast(pa.binary())).drop_columns("key")


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Concatenates tables to about FLUSH_BYTES, so that writes are large enough for any number of buckets."""
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        held.append(table)
        size += table.nbytes
        if size >= FLUSH_BYTES:
            yield pa.concat_tables(held)
            held, size = [], 0
    if held:
        yield pa.concat_tables(held)
