"""The logs of a run folder: metrics.jsonl, events.jsonl, ledger.jsonl and TensorBoard, on a disk or an object store."""

from __future__ import annotations

import contextlib
import errno
import json
import tempfile
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import EVENTS, LEDGER, METRICS, TENSORBOARD, Row, read_rows

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class JsonLines:
    """A file of JSON rows: appended to on a disk, written whole by `flush` on an object store.

    A full disk loses no row: those not yet written are kept, and tried again with the next.
    """

    def __init__(self, file: Location, keep: list[Row]) -> None:
        self._file = file
        self._lines = [json.dumps(row) + "\n" for row in keep]
        file.write_bytes("".join(self._lines).encode())
        self._unwritten = 0

    def append(self, row: Row) -> None:
        self._lines.append(json.dumps(row) + "\n")
        self._unwritten += 1
        if self._file.local:
            self.flush()

    def flush(self, patience_s: float | None = 0) -> bool:
        """Whether all is written. Training waits for this: by default a store that fails is tried again later."""
        if not self._unwritten:
            return True
        try:
            if self._file.local:
                self._append(self._file.local)
            else:
                self._file.write_bytes("".join(self._lines).encode(), patience_s=patience_s)
        except OSError:
            return False  # tried again by the next call
        self._unwritten = 0
        return True

    def _append(self, path: Path) -> None:
        content = "".join(self._lines[-self._unwritten :]).encode()
        with open(path, "ab", buffering=0) as stream:
            end = stream.tell()
            try:
                if stream.write(content) != len(content):
                    raise OSError(errno.ENOSPC, "a line was cut short", str(path))
            except OSError:
                stream.truncate(end)  # half a line would hide those after it
                raise
        self._lines.clear()  # a disk keeps them; an object store wants them all again


class RunLog:
    """The logs of a run folder, written by rank 0 alone. Metrics are rewound to the restored step, events never."""

    def __init__(self, run: Location) -> None:
        self._run = run
        self._files = {EVENTS: JsonLines(run / EVENTS, read_rows(run / EVENTS))}
        self._board: SummaryWriter | None = None

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps. Until it has been called, only events can be written."""
        from torch.utils.tensorboard import SummaryWriter  # a second to import: rank 0 alone pays it

        for name in (METRICS, LEDGER):
            rows = read_rows(self._run / name)
            if rows or name == METRICS:
                self._files[name] = JsonLines(self._run / name, [row for row in rows if row["step"] <= step])
        run = self._run
        # TensorBoard writes to a disk alone: for an object store to a scratch folder, copied at each flush.
        self._scratch = None if run.local else tempfile.TemporaryDirectory(prefix="simclr_ray-board-")
        self._board_folder = Path(self._scratch.name) if self._scratch else Path(run.path) / TENSORBOARD
        self._board = SummaryWriter(str(self._board_folder), purge_step=step + 1 if step else None)

    def metrics(self, row: Row) -> None:
        self._files[METRICS].append(row)
        assert self._board is not None
        with contextlib.suppress(OSError):  # TensorBoard only repeats metrics.jsonl: a full disk costs it a point
            for key, value in row.items():
                if isinstance(value, (int, float)) and key not in ("step", "time"):
                    self._board.add_scalar(key, value, row["step"])

    def ledger(self, row: Row) -> None:
        """The sample ids of a step, a debug option."""
        if LEDGER not in self._files:
            self._files[LEDGER] = JsonLines(self._run / LEDGER, [])
        self._files[LEDGER].append(row)

    def event(self, kind: str, step: int, **fields: Any) -> None:
        self._files[EVENTS].append({"event": kind, "time": round(time(), 3), "step": step} | fields)

    def flush(self, patience_s: float | None = 0) -> None:
        """Brings an object store up to date; on a disk everything already is. `patience_s`: as for `with_retries`."""
        for file in self._files.values():
            if not file.flush(patience_s):
                patience_s = 0  # it has been waited for
        if self._board and self._scratch:
            with contextlib.suppress(OSError):  # copied whole at the next flush
                self._board.flush()
                for board in self._board_folder.iterdir():
                    (self._run / TENSORBOARD / board.name).write_bytes(board.read_bytes(), patience_s=0)

    def close(self) -> None:
        self.flush(patience_s=None)  # the last rows are written now or never
        if self._board:
            with contextlib.suppress(OSError):
                self._board.close()


def start_log(run: Location, workers: int, last_failure: str | None) -> RunLog:
    """Opens the logs and notes that an attempt begins, and a failure that the attempt before could not note itself."""
    events, rows = read_rows(run / EVENTS), read_rows(run / METRICS)
    log = RunLog(run)
    log.event("attempt", events[-1]["step"] if events else 0, workers=workers)
    if events and events[-1]["event"] not in ("done", "resize", "stop", "gave_up"):
        signs = [events[-1], *rows[-1:]]
        log.event("failure", **{key: max(sign[key] for sign in signs) for key in ("step", "time")}, cause=last_failure)
    return log


def note_giving_up(run: Location, cause: str) -> None:
    """Writes the event `gave_up`, as the driver does when it will not try a run again: no worker writes then."""
    events = read_rows(run / EVENTS)
    log = JsonLines(run / EVENTS, events)
    step = events[-1]["step"] if events else 0
    log.append({"event": "gave_up", "time": round(time(), 3), "step": step, "cause": cause})
    log.flush(patience_s=None)
