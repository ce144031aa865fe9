"""Rank 0's logging and checkpointing, and its decisions when to save or to stop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, sleep, time
from typing import Any

import torch

from simclr_ray.config import SavingConfig
from simclr_ray.membership.member import Fenced
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.checkpoint import Saver, SaveResult
from simclr_ray.train.control import Action, Control
from simclr_ray.train.run_log import RunLog
from simclr_ray.train.state import TrainState, snapshot
from simclr_ray.train.worker import Worker

RETRY_S = 5.0
FAILED_RETRY_S = 60.0
"""After a failed save the next one is due at the latest after so long, even where saving.every_s is longer."""


class Recorder:
    """Rank 0's logging and checkpointing of one attempt. `identity` (seed, fingerprint) joins every checkpoint."""

    def __init__(
        self, log: RunLog, saver: Saver, control: Control, saving: SavingConfig, identity: dict[str, Any]
    ) -> None:
        self._log, self._saver, self._control = log, saver, control
        self._saving, self._identity = saving, identity
        self._last_save, self._save_seconds = monotonic(), 0.0
        self._stall_s: dict[int, float] = {}
        self._first_step_done = False
        self._noticed: set[str] = set()
        self.leaving: tuple[int, ...] = ()
        """Ranks of the workers that the last decision sends away, if it does."""
        self.save_error: str | None = None
        """Why the newest save failed; None once one has succeeded."""
        self.metrics, self.ledger, self.event, self.begin = log.metrics, log.ledger, log.event, log.begin
        self.metrics_rows = log.metrics_rows

    @property
    def saved_step(self) -> int:
        """That of the newest complete checkpoint; 0 if there is none."""
        return self._saver.complete_step or 0

    def restored(self, step: int, workers: int, skipped: list[str]) -> None:
        """Records the step at which this attempt begins, and rewinds the metrics to it."""
        self._log.rewind(step)
        self._saver.complete_step = step or None
        for reason in skipped:
            self.event("skipped_checkpoint", step, reason=reason)
        self.event("restore" if step else "start", step, workers=workers, torch=torch.__version__)

    def regrouped(self, step: int, rows: Sequence[tuple[str, Row]], **fields: Any) -> None:
        """Records that another group of workers goes on after `step`. `rows`: (file, row) of the newest log rows, of
        which those are written that are not yet."""
        self._log.rewind(step, rows)
        self.event("regroup", step, **fields)

    def first_step_done(self, step: int) -> None:
        """Records when the first step, with its wait for data and any compilation, was done."""
        if not self._first_step_done:
            self._first_step_done = True
            self.event("first_step", step)

    def decide(self, worker: Worker, step: int) -> Action:
        self._note(self._saver.collect(wait=False))
        signals = worker.poll_signals()
        action = self._control.decide(signals, worker.size, self._save_seconds)
        self.leaving = signals.leaving
        if signals.deadline is not None and not self._noticed.issuperset(signals.nodes):
            self._noticed.update(signals.nodes)
            left = round(signals.deadline - time(), 3)
            self.event("notice", step, deadline_s=left, nodes=list(signals.nodes))
        return action

    def save_is_due(self, step: int) -> bool:
        every = self._saving.every_steps
        by_step = every is not None and step % every == 0
        every_s = self._saving.every_s if self.save_error is None else FAILED_RETRY_S
        by_clock = monotonic() - self._last_save >= min(every_s, self._saving.every_s)
        # A store slower than the interval delays the next save; it never stops training.
        return (by_step or by_clock) and not self._saver.busy

    def save(self, state: TrainState, *, wait: bool, must_succeed: bool, pending_row: Row | None = None) -> None:
        """Copies the state and writes it in the background; with `wait`, before it returns.

        `must_succeed`: the attempt ends after this save, so it is retried until it succeeds or patience_s is over.
        """
        start = monotonic()
        self._log.flush()  # first: rows before a checkpoint are not logged again after a restore
        copy = snapshot(state, **self._identity, pending_evaluation_row=pending_row)
        ended = self._saver.save(copy, wait=wait)
        while must_succeed and self._saver.complete_step != state.step:
            sleep(RETRY_S)
            ended += self._saver.save(copy, wait=True)
        self._last_save = monotonic()
        self._stall_s[state.step] = round(self._last_save - start, 4)
        self._note(ended)

    def flush(self, patience_s: float | None = None) -> None:
        """Writes what is logged so far to an object store. `patience_s`: as for `with_retries`."""
        self._log.flush(patience_s)

    def record_end(self, action: Action, step: int, worker: Worker) -> None:
        """Writes the event of a planned end: `resize` or `stop`."""
        if action == Action.RESIZE:
            self.event("resize", step, workers={"from": worker.size, "to": worker.poll_signals().available_workers})
        else:
            self.event("stop", step, reason="preemption" if action == Action.STOP else "asked to end")
        self._log.flush(patience_s=None)  # before the others end and take this process with them

    def wait_for_save(self) -> None:
        """Until the save under way, if any, has ended and is recorded."""
        self._note(self._saver.collect(wait=True))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever ended the attempt; nothing is written if the other workers have gone on without this one."""
        try:
            with suppress(Fenced):
                self.wait_for_save()
        finally:
            with suppress(Fenced):
                self._log.close()

    def _note(self, ended: list[SaveResult]) -> None:
        for save in ended:
            self.save_error = save.error
            stall = self._stall_s.pop(save.step, 0.0)  # a retry of the same step makes no second copy
            if save.error is None:
                self._save_seconds = save.seconds
                self.event("save", save.step, seconds=round(save.seconds, 3), stall_s=stall)
            else:
                self.event("save_failed", save.step, error=save.error, seconds=round(save.seconds, 3), stall_s=stall)
