"""An external shuffle of images that can only be read in sequence: tars and Parquet files are often sorted by class."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from simclr_ray.data.philox import PREPARE, sort_words

BUCKET_BYTES = 128 * 2**20
MOST_BUCKETS = 512  # each is an open file, and a process may have 1,024 as a rule
FLUSH_BYTES = 128 * 2**20
KEYS = 2**16
PIECE_ROWS = 1024


def shuffled(tables: Iterator[pa.Table], seed: int, expected_bytes: int, folder: Path | None) -> Iterator[pa.Table]:
    """The rows of `tables` sorted by a random key each, a function of seed and row number alone; in two passes.

    The first pass distributes the rows over buckets on disk by their key, the second sorts each bucket: memory holds a
    bucket and FLUSH_BYTES, never all rows. The buckets are unnamed temporary files in `folder` (None: the system's
    temporary one), which are deleted with this process however it ends.
    """
    count = max(1, min(MOST_BUCKETS, expected_bytes // BUCKET_BYTES))
    with ExitStack() as files:
        buckets = [files.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(count)]
        writers: list[pa.RecordBatchStreamWriter | None] = [None] * count
        for keyed in _gathered(_with_keys(tables, seed)):
            keys = keyed["key"].to_numpy()
            bucket_of = (keys >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
            for bucket in np.unique(bucket_of).tolist():
                writer = writers[bucket] = writers[bucket] or pa.ipc.new_stream(buckets[bucket], keyed.schema)
                writer.write_table(keyed.take(np.flatnonzero(bucket_of == bucket)))
        for file, writer in zip(buckets, writers, strict=True):
            if writer is None:
                continue
            writer.close()
            file.seek(0)
            rows = pa.ipc.open_stream(file).read_all()
            file.truncate(0)
            # Stable: rows of equal keys stay in the order in which they were read.
            order = np.argsort(rows["key"].to_numpy(), kind="stable")
            for start in range(0, len(order), PIECE_ROWS):
                yield _without_key(rows.take(order[start : start + PIECE_ROWS]))


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
