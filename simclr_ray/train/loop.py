"""The training loop: batches in, weights, metrics and checkpoints out.

Every worker runs it; rank 0 alone holds a `Recorder`. What happens to the weights at a step depends on the step alone.
When to save or to stop is rank 0's to decide: a control word, all-reduced on the CPU after each step, tells the others.
Plain saves need no word: the replicas are equal, so rank 0's copy is everybody's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic, time

import torch

from simclr_ray import collective
from simclr_ray.config import BadInput, Config
from simclr_ray.data.order import Order
from simclr_ray.methods.network import SimCLR
from simclr_ray.optim.schedule import rate_at
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.bad_images import count_bad, new_bad
from simclr_ray.train.batch import Batch
from simclr_ray.train.control import Action, Ended, Interrupted
from simclr_ray.train.metrics import Meter, collapse_signals
from simclr_ray.train.recorder import Recorder
from simclr_ray.train.state import TrainState
from simclr_ray.train.step import Project, StepResult, training_step
from simclr_ray.train.worker import Worker

Evaluate = Callable[[SimCLR, int, Callable[[], None]], dict[str, float]]
"""From model and step to what joins the metrics row. All workers call the function given, equally often, between two
batches or two epochs of a classifier: there the control word is looked at."""


class TooLittleMemory(BadInput):
    """A pass does not fit into an accelerator."""


class Diverged(RuntimeError):
    """The loss is no longer a number. Trying again would end the same way."""


def train(
    config: Config,
    order: Order,
    state: TrainState,
    worker: Worker,
    stream: Iterable[Batch],
    project: Project,
    recorder: Recorder | None,
    *,
    until: int,
    evaluate: Evaluate | None = None,
    pending_row: Row | None = None,
) -> None:
    """Trains from `state.step` to the step `until`. `stream` holds the batches between them.

    `pending_row` is the metrics row of `state.step` whose evaluation the interrupted attempt did not finish. Raises
    Interrupted when rank 0 decides that another group of workers shall go on, and Ended when nobody shall.
    """
    rows, passes = order.rows_per_pass(worker.size), order.global_batch // order.pass_size
    after = _AfterStep(config, order, worker, recorder, evaluate, until)
    if pending_row is not None:
        after.evaluate(state, pending_row)
    for batch in after.timed(stream):
        assert batch.step == state.step, f"the stream is at step {batch.step}, the state at {state.step}"
        lr = rate_at(config, state.step, order.steps_per_epoch)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        with _too_little_memory_named(order, worker):
            result = training_step(
                state.model,
                project,
                state.optimizer,
                batch.views,
                temperature=config.method.temperature,
                passes=passes,
                rows_per_worker=rows,
            )
        state.step += 1
        after.step(state, batch, result, lr, [n * passes for n in rows])
    assert state.step == until, f"the stream ended at step {state.step} of {until}"


@contextmanager
def _too_little_memory_named(order: Order, worker: Worker) -> Iterator[None]:
    """Turns the accelerator's error into one that says which setting helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TooLittleMemory(
            f"a pass of {order.pass_size} images over {worker.size} workers does not fit into the memory of "
            f"{worker.device} ({str(error).splitlines()[0]}): set resources.min_workers to a number that fits, or "
            f"train.pass_size to a smaller divisor of {order.global_batch} under another --name"
        ) from None


class _AfterStep:
    """What follows a step: the account of bad images, a metrics row, an evaluation, a save, the control word."""

    def __init__(
        self,
        config: Config,
        order: Order,
        worker: Worker,
        recorder: Recorder | None,
        evaluate: Evaluate | None,
        until: int,
    ) -> None:
        self._config, self._order, self._worker = config, order, worker
        self._recorder, self._evaluate, self._until = recorder, evaluate, until
        self._meter = Meter()

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

    def step(self, state: TrainState, batch: Batch, result: StepResult, lr: float, batch_rows: list[int]) -> None:
        self._meter.trained(self._order.global_batch)
        evaluating, last = self._evaluation_due(state.step), state.step == self._until
        row = None
        if state.step % self._config.logging.every_steps == 0 or evaluating or last:
            row = self._row(state, result, lr, batch_rows)
        if self._recorder:
            self._recorder.first_step_done(state.step)
        if self._config.logging.ledger:
            self._note_ids(state.step, batch)
        pending_row = row if evaluating else None
        if row is not None and pending_row is None:
            self._write(row)  # before the save: what a checkpoint has passed is never trained, nor written, again
        self._follow_control_word(state, batch, pending_row, last)
        if pending_row is not None:
            self.evaluate(state, pending_row)

    def evaluate(self, state: TrainState, row: Row) -> None:
        assert self._evaluate is not None
        start = monotonic()
        found = self._evaluate(state.model, state.step, lambda: self._look_up(state, row))
        self._write(row | found)
        if self._recorder:
            self._recorder.event("evaluate", state.step, seconds=round(monotonic() - start, 3))
        self._meter.read()  # the next row's images per second are training's alone

    def _follow_control_word(self, state: TrainState, batch: Batch, pending_row: Row | None, last: bool) -> None:
        """One all-reduce of two numbers: are there new bad images anywhere, and what has rank 0 decided."""
        new = new_bad(batch, state.bad)
        decision = Action.CONTINUE
        if self._recorder and not last:
            decision = self._recorder.decide(self._worker, state.step)
        any_bad, action = collective.maximum_over_workers([len(new), int(decision)])
        if any_bad:
            count_bad(batch, new, state.bad, self._order, self._config.data.max_bad_fraction)
        if self._recorder and (last or action or pending_row is not None or self._recorder.save_is_due(state.step)):
            self._save(state, Action(action), pending_row, last)
        self._end_here(state, Action(action))

    def _look_up(self, state: TrainState, pending_row: Row) -> None:
        """The control word between two batches of an evaluation; another group begins that evaluation again."""
        decision = self._recorder.decide(self._worker, state.step) if self._recorder else Action.CONTINUE
        (action,) = collective.maximum_over_workers([int(decision)])
        if self._recorder and action:
            self._save(state, Action(action), pending_row, last=False)
        self._end_here(state, Action(action))

    def _save(self, state: TrainState, action: Action, pending_row: Row | None, last: bool) -> None:
        assert self._recorder is not None
        wait = last or action != Action.CONTINUE
        self._recorder.save(state, wait=wait, insist=last or action >= Action.RESIZE, pending_row=pending_row)

    def _end_here(self, state: TrainState, action: Action) -> None:
        if action < Action.RESIZE:
            return
        if self._recorder:
            self._recorder.ends_on_purpose(action, state.step, self._worker)
        # Raising tears the group down, so nobody does before rank 0 has saved.
        collective.maximum_over_workers([0])
        raise (Ended if action == Action.END else Interrupted)(action.name)

    def _evaluation_due(self, step: int) -> bool:
        every = self._config.evaluate.every_epochs * self._order.steps_per_epoch
        return self._evaluate is not None and every > 0 and (step % every == 0 or step == self._until)

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
            "time": round(time(), 3),
        }

    def _write(self, row: Row) -> None:
        if self._recorder:
            self._recorder.metrics(row)
            self._worker.report(row | {"save_error": self._recorder.save_error})

    def _note_ids(self, step: int, batch: Batch) -> None:
        gathered = collective.gather_objects(batch.ids.tolist())
        if self._recorder:
            self._recorder.ledger({"step": step, "ids": sorted(sample for ids in gathered for sample in ids)})
