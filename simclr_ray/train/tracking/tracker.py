"""Repeats a run's metrics rows at an experiment tracker, on a thread: its service can neither stop nor slow the run."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from time import monotonic

from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import METRICS, Row, read_rows
from simclr_ray.train.tracking.series import Series

QUEUED_ROWS = 10_000
"""Rows that wait for the service at most. Older ones are dropped; the next start takes them from metrics.jsonl."""
BATCH_ROWS = 50
RETRY_S = 60.0
HANG_S = 120.0
"""A call that takes longer is said to hang."""
CLOSE_S = 10.0
"""The end of an attempt waits so long for the service."""

log = logging.getLogger(__name__)


class Tracker:
    """Logs every row of the run once, in order of its steps.

    `open_series` continues the run's series, if there is one. The rows of metrics.jsonl that the service lacks come
    first, so what was lost with a process or by an outage is made up for; steps done twice are left out, as a run gives
    the same losses again. When the service fails, one warning says so, and it is opened again every RETRY_S.
    """

    def __init__(self, name: str, run: Location, open_series: Callable[[], Series]) -> None:
        self.name, self._run, self._open_series = name, run, open_series
        self._rows: deque[Row] = deque(maxlen=QUEUED_ROWS)
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._progress, self._failure, self._warned = monotonic(), "", False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Once metrics.jsonl holds the rows up to the step at which the attempt begins. Later calls do nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def log(self, row: Row) -> None:
        """Returns at once."""
        with self._changed:
            if not self._rows:
                self._progress = monotonic()
            self._rows.append(row)
            self._changed.notify()
        if monotonic() - self._progress > HANG_S:
            self._warn(f"no answer for {HANG_S:.0f} s")

    def take_failure(self) -> str | None:
        """Why the service failed, once."""
        failure, self._failure = self._failure, ""
        return failure or None

    def close(self) -> None:
        """Waits for CLOSE_S at most until the service has all rows."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                self._warn(f"no answer for {CLOSE_S:.0f} s at the end")

    def _work(self) -> None:
        while True:
            try:
                with closing(self._open_series()) as series:
                    self._repeat(series)
                return
            except Exception as error:  # noqa: BLE001 (whatever a service does, the run goes on without it)
                self._warn(" ".join(f"{type(error).__name__}: {error}".split()))
            if self._closing.wait(RETRY_S):
                return

    def _repeat(self, series: Series) -> None:
        last = series.last_step
        for rows in self._batches():
            fresh = [row for row in rows if row["step"] > last]
            if fresh:
                series.log(fresh)
                last = fresh[-1]["step"]

    def _batches(self) -> Iterator[list[Row]]:
        """The rows of the file, then those logged since, until the tracker is closed and none is left."""
        written = read_rows(self._run / METRICS)
        for start in range(0, len(written), BATCH_ROWS):
            yield written[start : start + BATCH_ROWS]
            self._progress = monotonic()
        del written  # this goes on as long as the run
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rows or self._closing.is_set())
                rows = list(islice(self._rows, BATCH_ROWS))
            if not rows:
                return
            yield rows
            with self._changed:  # only now: if the service has failed, they are logged again
                self._progress = monotonic()
                while self._rows and self._rows[0]["step"] <= rows[-1]["step"]:
                    self._rows.popleft()

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned, self._failure = True, reason
            log.warning("%s: %s; the run goes on, metrics.jsonl has every row", self.name, reason)
