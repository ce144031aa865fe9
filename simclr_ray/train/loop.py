"""The training loop: batches in, weights, metrics and checkpoints out.

Every worker runs it; rank 0 alone holds a `Recorder`. What happens at a step depends on the step alone, except saves by
the clock, which rank 0 makes by itself: the replicas are equal, so its copy is everybody's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

from simclr_ray.config import BadInput, Config
from simclr_ray.data.order import Order
from simclr_ray.model.simclr import SimCLR
from simclr_ray.train import collective
from simclr_ray.train.batch import Batch
from simclr_ray.train.checkpoint import Saver
from simclr_ray.train.metrics import Meter, Row, RunLog, collapse_signals
from simclr_ray.train.schedule import rate_at
from simclr_ray.train.state import TrainState, snapshot
from simclr_ray.train.step import Project, StepResult, training_step
from simclr_ray.train.worker import Worker

Evaluate = Callable[[SimCLR, int], dict[str, float]]


class Diverged(RuntimeError):
    """The loss is no longer a number. Trying again would end the same way."""


@dataclass(frozen=True)
class Recorder:
    """Rank 0's hands: the records and the checkpoints of the run folder."""

    log: RunLog
    saver: Saver
    identity: dict[str, Any]
    """What every checkpoint carries besides the state: seed and fingerprint."""


def train(
    config: Config,
    order: Order,
    state: TrainState,
    worker: Worker,
    stream: Iterable[Batch],
    project: Project,
    recorder: Recorder | None,
    *,
    evaluate: Evaluate | None = None,
    owed: Row | None = None,
) -> None:
    """Trains from `state.step` to the end of the run. `stream` starts at that step.

    `owed` is the metrics row of `state.step` whose evaluation the interrupted attempt did not finish.
    """
    total = config.train.epochs * order.steps_per_epoch
    rows, passes = order.rows_per_pass(worker.size), order.global_batch // order.pass_size
    run = _Records(config, order, worker, recorder, evaluate, total)
    if owed is not None:
        run.evaluate(state, owed)
    for batch in run.timed(stream):
        assert batch.step == state.step, f"the stream is at step {batch.step}, the state at {state.step}"
        lr = rate_at(config, state.step, order.steps_per_epoch)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        result = training_step(
            state.model,
            project,
            state.optimizer,
            batch.views,
            temperature=config.optim.temperature,
            passes=passes,
            rows_per_worker=rows,
        )
        state.step += 1
        note_bad(state, batch, order, config.data.max_bad_fraction)
        run.after_step(state, result, lr, [n * passes for n in rows])
    assert state.step == total, f"the stream ended at step {state.step} of {total}"


def note_bad(state: TrainState, batch: Batch, order: Order, max_fraction: float) -> None:
    """Counts pictures that could not be decoded, by distinct id over all workers. Raises BadInput beyond the limit."""
    new = set(batch.ids[batch.bad].tolist()) - state.bad
    if not collective.maximum_over_workers([len(new)])[0]:
        return
    lost = batch.bad.reshape(-1, order.slice_rows).all(axis=1)
    gathered = collective.gather_objects((new, (batch.ids[:: order.slice_rows][lost] // order.slice_rows).tolist()))
    for ids, _ in gathered:
        state.bad |= ids
    whole = sorted({g for _, slices in gathered for g in slices})
    limit = max(10, int(max_fraction * order.rows))
    if whole or len(state.bad) > limit:
        listed = ", ".join(map(str, sorted(state.bad)[:20])) + (", ..." if len(state.bad) > 20 else "")
        why = f"no picture of slice {whole[0]} can be decoded" if whole else f"more than {limit} allowed"
        raise BadInput(
            f"{len(state.bad)} pictures of the dataset cannot be decoded ({why}): rows {listed}; prepare it again, "
            "or raise data.max_bad_fraction"
        )


class _Records:
    """What follows a step: a metrics row, an evaluation, a save, where each is due."""

    def __init__(
        self,
        config: Config,
        order: Order,
        worker: Worker,
        recorder: Recorder | None,
        evaluate: Evaluate | None,
        total: int,
    ) -> None:
        self._config, self._order, self._worker = config, order, worker
        self._recorder, self._evaluate, self._total = recorder, evaluate, total
        self._meter, self._last_save, self._saved_step = Meter(), monotonic(), -1

    def timed(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """The stream, with the time that each batch was waited for."""
        iterator = iter(stream)
        while True:
            start = monotonic()
            batch = next(iterator, None)
            if batch is None:
                return
            self._meter.waited(monotonic() - start)
            yield batch

    def after_step(self, state: TrainState, result: StepResult, lr: float, batch_rows: list[int]) -> None:
        self._meter.trained(self._order.global_batch)
        evaluating = self._evaluation_due(state.step)
        last = state.step == self._total
        row = None
        if state.step % self._config.machine.log_every_steps == 0 or evaluating or last:
            row = self._row(state, result, lr, batch_rows)
        if evaluating and row is not None:
            self._save(state, wait=False, owed=row)
            self.evaluate(state, row)
        elif row is not None:
            self._write(row)
        if last or self._save_due(state.step):
            self._save(state, wait=last)
        elif self._recorder:
            self._note_saves(self._recorder.saver.collect(wait=False))

    def evaluate(self, state: TrainState, row: Row) -> None:
        assert self._evaluate is not None
        self._write(row | self._evaluate(state.model, state.step))
        self._meter.read()  # the next row's images per second are training's alone

    def _evaluation_due(self, step: int) -> bool:
        every = self._config.evaluate.every_epochs * self._order.steps_per_epoch
        return self._evaluate is not None and every > 0 and (step % every == 0 or step == self._total)

    def _save_due(self, step: int) -> bool:
        machine = self._config.machine
        by_step = machine.save_every_steps is not None and step % machine.save_every_steps == 0
        by_clock = monotonic() - self._last_save >= machine.save_every_s
        # A store slower than the interval delays the next save; it never stops training.
        return (by_step or by_clock) and self._recorder is not None and not self._recorder.saver.busy

    def _row(self, state: TrainState, result: StepResult, lr: float, batch_rows: list[int]) -> Row:
        loss = float(collective.sum_over_workers(result.loss.clone()))
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {state.step}: lower optim.lr_per_256, or warm up for longer")
        view_a = collective.gather_rows(result.view_a.contiguous(), batch_rows)
        view_b = collective.gather_rows(result.view_b.contiguous(), batch_rows)
        return {
            "step": state.step,
            "epoch": round(state.step / self._order.steps_per_epoch, 4),
            "samples": state.step * self._order.global_batch,
            "loss": loss,
            "lr": lr,
            **collapse_signals(view_a, view_b),
            **self._meter.read(),
            "workers": self._worker.size,
            "bad": len(state.bad),
        }

    def _write(self, row: Row) -> None:
        if self._recorder:
            self._recorder.log.metrics(row)
            self._worker.report(row)

    def _save(self, state: TrainState, *, wait: bool, owed: Row | None = None) -> None:
        if not self._recorder:
            return
        saver = self._recorder.saver
        if state.step != self._saved_step:  # an evaluation has saved this step before
            self._note_saves(saver.save(snapshot(state, **self._recorder.identity, owed=owed), wait=wait))
            self._last_save, self._saved_step = monotonic(), state.step
        self._note_saves(saver.collect(wait=wait))
        self._recorder.log.flush()

    def _note_saves(self, ended: list[Any]) -> None:
        assert self._recorder is not None
        for save in ended:
            kind = "save" if save.error is None else "save_failed"
            detail = {} if save.error is None else {"error": save.error}
            self._recorder.log.event(kind, save.step, seconds=round(save.seconds, 3), **detail)
