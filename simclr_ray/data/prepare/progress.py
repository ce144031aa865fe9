"""The progress of work on images: a line on stderr, rewritten on a terminal, every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

EVERY_S_TERMINAL = 0.5
EVERY_S_ELSEWHERE = 10.0


class ProgressLine:
    """Shows rate and time left. `verb`: what is done with the images; `rows`: how many there are, if it is known."""

    def __init__(self, verb: str, rows: int | None, *, shown: bool = True) -> None:
        self._verb, self._rows, self._shown = verb, rows, shown
        self._terminal = sys.stderr.isatty()
        self._start = self._last = time.monotonic()
        self._done = 0

    def add(self, images: int, fraction: float | None = None) -> None:
        """`fraction` of all the work that is done by now; None: by the number of images."""
        self._done += images
        now = time.monotonic()
        if self._shown and now - self._last >= (EVERY_S_TERMINAL if self._terminal else EVERY_S_ELSEWHERE):
            self._last = now
            if fraction is None:
                fraction = self._done / self._rows if self._rows else 0.0
            end = "\r" if self._terminal else "\n"
            print(self._line(fraction, now - self._start), end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clears the line of a terminal."""
        if self._shown and self._terminal:
            print(f"{'':79}", end="\r", file=sys.stderr, flush=True)

    def _line(self, fraction: float, seconds: float) -> str:
        left = seconds / fraction * (1 - min(1.0, fraction)) if fraction else 0.0
        of, rate = f" of {self._rows:,}" if self._rows else "", f"{self._done / seconds:,.0f}/s"
        return f"{self._verb} {self._done:,}{of} images, {rate}, {left / 60:.0f} min {left % 60:2.0f} s left   "


def shown(tables: Iterator[pa.Table], rows: int | None, total_bytes: int) -> Iterator[pa.Table]:
    """Yields the tables and shows their progress, by bytes if the number of rows is unknown."""
    line, done_bytes = ProgressLine("prepared", rows), 0
    for table in tables:
        yield table
        done_bytes += pc.sum(pc.binary_length(table["image"])).as_py() or 0
        line.add(table.num_rows, None if rows else done_bytes / total_bytes)
    line.end()
