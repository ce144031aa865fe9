"""The progress of a stream of images: a line on stderr, rewritten on a terminal, every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

EVERY_S_TERMINAL = 0.5
EVERY_S_ELSEWHERE = 10.0


def shown(tables: Iterator[pa.Table], rows: int | None, total_bytes: int) -> Iterator[pa.Table]:
    """Yields the tables and shows rate and time left, estimated from bytes if the number of rows is unknown."""
    terminal = sys.stderr.isatty()
    start = last = time.monotonic()
    done = done_bytes = 0
    for table in tables:
        yield table
        done += table.num_rows
        done_bytes += pc.sum(pc.binary_length(table["image"])).as_py() or 0
        now = time.monotonic()
        if now - last >= (EVERY_S_TERMINAL if terminal else EVERY_S_ELSEWHERE):
            last = now
            fraction = done / rows if rows else done_bytes / total_bytes
            print(_line(done, rows, fraction, now - start), end="\r" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print(f"{'':79}", end="\r", file=sys.stderr, flush=True)


def _line(done: int, rows: int | None, fraction: float, seconds: float) -> str:
    left = seconds / fraction * (1 - min(1.0, fraction)) if fraction else 0.0
    of = f" of {rows:,}" if rows else ""
    return f"prepared {done:,}{of} images, {done / seconds:,.0f}/s, {left / 60:.0f} min {left % 60:2.0f} s left   "
