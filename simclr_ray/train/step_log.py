"""Logs each step. Every worker has a `StepLog`, whose sums are collective; rank 0's writes the rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from simclr_ray import collective
from simclr_ray.data.order import Order
from simclr_ray.storage.run_folder import LEDGER, METRICS, Row
from simclr_ray.train.batch import Batch
from simclr_ray.train.committed import Committed
from simclr_ray.train.metrics import Meter, metrics_row
from simclr_ray.train.recorder import Recorder
from simclr_ray.train.state import TrainState
from simclr_ray.train.step import StepResult
from simclr_ray.train.worker import Worker


class StepLog:
    """`every_steps`: steps between two metrics rows. `ledger`: also log the sample ids of every step."""

    def __init__(
        self,
        worker: Worker,
        recorder: Recorder | None,
        order: Order,
        committed: Committed,
        *,
        every_steps: int,
        ledger: bool,
    ) -> None:
        self._worker, self._recorder, self._order, self._committed = worker, recorder, order, committed
        self._every_steps, self._ledger = every_steps, ledger
        self._meter = Meter(worker.device)

    def timed(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """The stream, with the time spent waiting for its batches measured."""
        return self._meter.timed(stream)

    def after_step(
        self, state: TrainState, batch: Batch, result: StepResult, lr: float, *, row_is_due: bool
    ) -> Row | None:
        """The metrics row of the step just done, every `every_steps` or if it is due; it is not yet written."""
        self._meter.trained(self._order.global_batch)
        row = None
        if row_is_due or state.step % self._every_steps == 0:
            row = metrics_row(state, result, self._order, self._worker.size, lr, self._meter)
        if self._recorder:
            self._recorder.first_step_done(state.step)
        if self._ledger:
            self._log_ids(state.step, batch)
        return row

    def write(self, row: Row) -> None:
        self._committed.log(METRICS, row)
        if self._recorder:
            self._recorder.metrics(row)
            self._worker.report(row | {"save_error": self._recorder.save_error})

    def evaluated(self, step: int, seconds: float) -> None:
        if self._recorder:
            self._recorder.event("evaluate", step, seconds=round(seconds, 3))
            self._recorder.flush(patience_s=0)  # its row decides what is best, and what a sweep goes on with
        self._meter.read()  # resets it: the next row's images per second exclude the evaluation

    def _log_ids(self, step: int, batch: Batch) -> None:
        gathered = collective.gather_objects(batch.ids.tolist())
        row = {"step": step, "ids": sorted(sample for ids in gathered for sample in ids)}
        self._committed.log(LEDGER, row)
        if self._recorder:
            self._recorder.ledger(row)
