"""The logs of a run folder: metrics.jsonl, events.jsonl, ledger.jsonl and TensorBoard, on a disk or an object store.

The rows of metrics.jsonl go to the run's trackers too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import EVENTS, LEDGER, METRICS, TENSORBOARD, Row, read_rows
from simclr_ray.train.tracking.series import scalars
from simclr_ray.train.tracking.tracker import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Of errors: a disk, a user's part of it or a file has no room left."""


class JsonLines:
    """A file of JSON rows: appended to on a disk, rewritten as a whole by `flush` on an object store.

    A full disk loses no row: unwritten rows are kept and written with the next one.
    """

    def __init__(self, file: Location, keep: list[Row]) -> None:
        self._file = file
        self._lines = [json.dumps(row) + "\n" for row in keep]
        self._replace("".join(self._lines).encode())
        self._unwritten = 0

    def append(self, row: Row) -> None:
        self._lines.append(json.dumps(row) + "\n")
        self._unwritten += 1
        if self._file.local:
            self.flush()

    def rows(self) -> list[Row]:
        """All of them, those included that are not yet written."""
        if not self._file.local:
            return [json.loads(line) for line in self._lines]
        return read_rows(self._file) + [json.loads(line) for line in self._lines[len(self._lines) - self._unwritten :]]

    def rewind(self, step: int) -> int:
        """Drops the rows after `step`; returns the step of the last row that is left, -1 if none is."""
        pending = self._lines[len(self._lines) - self._unwritten :]
        if self._file.local:
            written = [json.dumps(row) + "\n" for row in read_rows(self._file)]
        else:
            written = self._lines[: len(self._lines) - self._unwritten]
        kept = [line for line in written if json.loads(line)["step"] <= step]
        pending = [line for line in pending if json.loads(line)["step"] <= step]
        if len(kept) < len(written) and self._file.local:
            self._replace("".join(kept).encode())
        elif len(kept) < len(written):
            kept, pending = [], kept + pending  # a store's file is written as a whole at the next flush
        self._lines, self._unwritten = (pending if self._file.local else kept + pending), len(pending)
        last = [*kept, *pending][-1:]
        return json.loads(last[0])["step"] if last else -1

    def flush(self, patience_s: float | None = 0) -> bool:
        """Writes the pending rows; whether that succeeded. Training waits for it, so by default it does not retry."""
        if not self._unwritten:
            return True
        try:
            if self._file.local:
                self._append(self._file.local)
            else:
                self._file.write_bytes("".join(self._lines).encode(), patience_s=patience_s)
        except OSError:
            return False  # the next call retries
        self._unwritten = 0
        return True

    def _replace(self, content: bytes) -> None:
        """On a disk a file that begins with `content` is cut there, which a full one allows."""
        path = self._file.local
        if path and path.exists() and path.read_bytes().startswith(content):
            os.truncate(path, len(content))
        else:
            self._file.write_bytes(content)

    def _append(self, path: Path) -> None:
        content = "".join(self._lines[-self._unwritten :]).encode()
        with open(path, "ab", buffering=0) as stream:
            end = stream.tell()
            try:
                if stream.write(content) != len(content):
                    raise OSError(errno.ENOSPC, "a line was cut short", str(path))
            except OSError:
                stream.truncate(end)  # a partial line would corrupt the row after it
                raise
        self._lines.clear()  # only an object store needs all rows at each write


class RunLog:
    """The logs of a run folder, written by rank 0 alone. Metrics are rewound to the restored step, events never are."""

    def __init__(
        self, run: Location, require_ours: Callable[[], None] = lambda: None, trackers: Sequence[Tracker] = ()
    ) -> None:
        """`require_ours` is called before each write, and raises if the other workers have gone on without this one."""
        self._run, self._require_ours, self._trackers = run, require_ours, trackers
        self._files = {EVENTS: JsonLines(run / EVENTS, read_rows(run / EVENTS))}
        self._board: SummaryWriter | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._restored = 0

    def begin(self, began: float, workers: int, last_failure: str | None) -> None:
        """Records the start of an attempt, at the unix time `began`, and the failure of the one before if that recorded
        no end."""
        events, rows = read_rows(self._run / EVENTS), read_rows(self._run / METRICS)
        self.event("attempt", events[-1]["step"] if events else 0, time=round(began, 3), workers=workers)
        if events and events[-1]["event"] not in ("done", "resize", "stop", "gave_up"):
            last = [events[-1], *rows[-1:]]
            newest = {key: max(row[key] for row in last) for key in ("step", "time")}
            self.event("failure", **newest, cause=last_failure)

    def rewind(self, step: int, rows: Sequence[tuple[str, Row]] = ()) -> None:
        """Drops the rows after `step`, and adds those of `rows`, (file, row), that are later than the last one left.

        Before it is called, only events can be written.
        """
        self._require_ours()
        for name in (METRICS, LEDGER):
            if name not in self._files:
                found = read_rows(self._run / name)
                if found or name == METRICS:
                    self._files[name] = JsonLines(self._run / name, [row for row in found if row["step"] <= step])
        last = {name: file.rewind(step) for name, file in self._files.items() if name != EVENTS}
        self._restored = step
        self._close_board()
        self._open_board()
        if self._trackers:
            self._files[EVENTS].flush()  # they name the run's series by its first event
        for tracker in self._trackers:
            tracker.start()
        for name, row in rows:
            if row["step"] > last.get(name, -1):
                self.metrics(row) if name == METRICS else self.ledger(row)

    def metrics_rows(self) -> list[Row]:
        """Those of this run so far, from when `rewind` was called."""
        return self._files[METRICS].rows()

    def _open_board(self) -> None:
        """It only repeats metrics.jsonl: a full disk loses points until a later flush can open it."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, which only rank 0 needs

        try:
            # TensorBoard can only write to a disk: for a store it writes to a scratch folder, copied at each flush.
            if not self._run.local:
                self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="simclr_ray-board-")
            folder = self._scratch.name if self._scratch else (self._run / TENSORBOARD).path
            self._board = SummaryWriter(folder, purge_step=self._restored + 1 if self._restored else None)
        except OSError as error:
            if error.errno not in FULL:
                raise

    def _close_board(self) -> None:
        board, self._board = self._board, None
        if board:
            with contextlib.suppress(OSError):
                board.close()

    def metrics(self, row: Row) -> None:
        self._require_ours()
        self._files[METRICS].append(row)
        if self._board:
            with contextlib.suppress(OSError):
                for key, value in scalars(row).items():
                    self._board.add_scalar(key, value, row["step"])
        for tracker in self._trackers:
            tracker.log(row)
            if failure := tracker.take_failure():
                self.event("tracker_failed", row["step"], tracker=tracker.name, error=failure)

    def ledger(self, row: Row) -> None:
        """Logs the sample ids of a step, for debugging."""
        self._require_ours()
        if LEDGER not in self._files:
            self._files[LEDGER] = JsonLines(self._run / LEDGER, [])
        self._files[LEDGER].append(row)

    def event(self, kind: str, step: int, **fields: Any) -> None:
        self._require_ours()
        self._files[EVENTS].append({"event": kind, "time": round(time(), 3), "step": step} | fields)

    def flush(self, patience_s: float | None = 0) -> None:
        """Writes pending rows to an object store; on a disk they already are. `patience_s`: as for `with_retries`."""
        self._require_ours()
        for file in self._files.values():
            if not file.flush(patience_s):
                patience_s = 0  # the retry time has been spent on this file
        if self._board is None and METRICS in self._files:
            self._open_board()
        if self._board and self._scratch:
            with contextlib.suppress(OSError):  # copied whole at the next flush
                self._board.flush()
                for board in Path(self._scratch.name).iterdir():
                    (self._run / TENSORBOARD / board.name).write_bytes(board.read_bytes(), patience_s=0)

    def close(self) -> None:
        try:
            self.flush(patience_s=None)  # with all retries: there is no later flush
        finally:
            self._close_board()
            for tracker in self._trackers:
                tracker.close()


def note_giving_up(run: Location, cause: str) -> None:
    """Writes the event `gave_up`; the driver calls it when it will not retry a run, and no worker writes then."""
    events = read_rows(run / EVENTS)
    log = JsonLines(run / EVENTS, events)
    step = events[-1]["step"] if events else 0
    log.append({"event": "gave_up", "time": round(time(), 3), "step": step, "cause": cause})
    log.flush(patience_s=None)
