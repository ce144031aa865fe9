"""The training loop: batches in; weights, metrics and checkpoints out.

Every worker runs it. The update of the weights at a step depends on the step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from simclr_ray.train.batch import Batch
from simclr_ray.train.check import Check
from simclr_ray.train.committed import Committed
from simclr_ray.train.control_word import ControlWord
from simclr_ray.train.state import TrainState
from simclr_ray.train.step import StepResult
from simclr_ray.train.step_log import StepLog


def train(
    state: TrainState,
    stream: Iterable[Batch],
    step: Callable[[Batch], StepResult],
    set_schedule: Callable[[int], float],
    log: StepLog,
    control: ControlWord,
    check: Check,
    committed: Committed,
    *,
    until: int,
) -> None:
    """Trains from `state.step` to the step `until`, or until `check` is exhausted. `stream` holds the batches between.
    `set_schedule` sets the optimizer's learning rate and weight decay of a step, and returns the former.

    An evaluation that `committed` has pending comes first: that of `state.step`, which another group did not finish.
    Raises Interrupted or Regroup when rank 0 decides that another group of workers shall go on, and Ended when the run
    shall end.
    """
    if committed.pending_row is not None:
        check.run(state, committed.pending_row)
        committed.pending_row = None
    if check.exhausted:
        return
    for batch in log.timed(stream):
        assert batch.step == state.step, f"the stream is at step {batch.step}, the state at {state.step}"
        lr = set_schedule(state.step)
        result = step(batch)
        state.step += 1
        last, check_is_due = state.step == until, check.is_due(state.step, until)
        row = log.after_step(state, batch, result, lr, row_is_due=last or check_is_due)
        if row is not None and not check_is_due:
            log.write(row)  # before the save: a resumed attempt neither trains nor logs the steps before a checkpoint
        control.after_step(state, batch, row if check_is_due else None, last=last)
        if row is not None and check_is_due:
            check.run(state, row)
            committed.pending_row = None
            if check.exhausted:
                return
    assert state.step == until, f"the stream ended at step {state.step} of {until}"
