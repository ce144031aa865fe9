"""The control word: what all workers agree on after each step, in one small all-reduce on the CPU.

Rank 0 decides when to save, to resize, to stop (`Control`); the word carries the decision to the others, so that all
act on it after the same step, and the GPU is not waited for. Plain saves need no word: the replicas are equal, so rank
0's copy is everybody's.
"""

from __future__ import annotations

from simclr_ray import collective
from simclr_ray.data.order import Order
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.bad_images import count_bad, new_bad
from simclr_ray.train.batch import Batch
from simclr_ray.train.control import Action, Ended, Interrupted
from simclr_ray.train.recorder import Recorder
from simclr_ray.train.state import TrainState
from simclr_ray.train.worker import Worker


class ControlWord:
    """Every worker has one; rank 0's has the recorder, which decides and saves."""

    def __init__(self, worker: Worker, recorder: Recorder | None, order: Order, max_bad_fraction: float) -> None:
        self._worker, self._recorder = worker, recorder
        self._order, self._max_bad_fraction = order, max_bad_fraction

    def after_step(self, state: TrainState, batch: Batch, pending_row: Row | None, *, last: bool) -> None:
        """Counts bad images, saves where that is due, and raises Interrupted or Ended where the group shall end.

        `pending_row`: the metrics row of this step, if an evaluation of it comes next. `last`: no step follows.
        """
        new = new_bad(batch, state.bad)
        decision = Action.CONTINUE
        if self._recorder and not last:
            decision = self._recorder.decide(self._worker, state.step)
        any_bad, word = collective.maximum_over_workers([len(new), int(decision)])
        if any_bad:
            count_bad(batch, new, state.bad, self._order, self._max_bad_fraction)
        action = Action(word)
        if self._recorder and (last or action or pending_row is not None or self._recorder.save_is_due(state.step)):
            self._save(self._recorder, state, action, pending_row, last=last)
        self._end_if_told(state, action)

    def during_evaluation(self, state: TrainState, pending_row: Row) -> None:
        """The same between two batches of an evaluation, which another group would begin again."""
        decision = self._recorder.decide(self._worker, state.step) if self._recorder else Action.CONTINUE
        (word,) = collective.maximum_over_workers([int(decision)])
        action = Action(word)
        if self._recorder and action:
            self._save(self._recorder, state, action, pending_row, last=False)
        self._end_if_told(state, action)

    def _save(self, recorder: Recorder, state: TrainState, action: Action, pending_row: Row | None, last: bool) -> None:
        wait = last or action != Action.CONTINUE
        recorder.save(state, wait=wait, insist=last or action >= Action.RESIZE, pending_row=pending_row)

    def _end_if_told(self, state: TrainState, action: Action) -> None:
        if action < Action.RESIZE:
            return
        if self._recorder:
            self._recorder.ends_on_purpose(action, state.step, self._worker)
        # Raising tears the group down, so nobody does before rank 0 has saved.
        collective.maximum_over_workers([0])
        raise (Ended if action == Action.END else Interrupted)(action.name)
