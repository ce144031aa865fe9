"""The control word: rank 0's decision after each step, sent to all workers by one small all-reduce on the CPU.

Rank 0 decides when to save, to resize, to stop (`Control`); the word carries the decision to the others, so that all
act on it after the same step, without waiting for the GPU. Periodic saves need no word: the replicas are equal, so rank
0 saves its own.
"""

from __future__ import annotations

from simclr_ray import collective
from simclr_ray.data.order import Order
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.bad_images import add_bad_ids, new_bad_ids
from simclr_ray.train.batch import Batch
from simclr_ray.train.committed import Committed
from simclr_ray.train.control import Action, Ended, Interrupted, Left, Regroup
from simclr_ray.train.recorder import Recorder
from simclr_ray.train.state import TrainState
from simclr_ray.train.worker import Worker


class ControlWord:
    """Applies the control word on every worker. Only rank 0 has a `recorder`, which decides and saves."""

    def __init__(
        self,
        worker: Worker,
        recorder: Recorder | None,
        order: Order,
        max_bad_fraction: float,
        committed: Committed,
    ) -> None:
        self._worker, self._recorder, self._committed = worker, recorder, committed
        self._order, self._max_bad_fraction = order, max_bad_fraction

    def after_step(self, state: TrainState, batch: Batch, pending_row: Row | None, *, last: bool) -> None:
        """Counts bad images, saves if that is due; raises Interrupted, Ended, Regroup or Left if the group shall end.

        `pending_row`: the metrics row of this step, if its evaluation comes next. `last`: no step follows. The step is
        done once all workers have come so far: before that, the loss of one undoes it.
        """
        new = new_bad_ids(batch, state.bad_ids)
        decision = Action.CONTINUE
        if self._recorder and not last:
            decision = self._recorder.decide(self._worker, state.step)
        saved = self._recorder.saved_step if self._recorder else 0
        any_bad, word, saved = collective.maximum_over_workers([len(new), int(decision), saved])
        if any_bad:
            add_bad_ids(batch, new, state.bad_ids, self._order, self._max_bad_fraction)
        action = Action(word)
        self._committed.commit(pending_row, saved)
        if self._recorder and (
            last or action.saves or pending_row is not None or self._recorder.save_is_due(state.step)
        ):
            self._save(self._recorder, state, action, pending_row, last=last)
        self._wait_for_save(state, action)

    def during_evaluation(self, state: TrainState, pending_row: Row) -> None:
        """The same between two batches of an evaluation; the next attempt starts that evaluation again."""
        decision = self._recorder.decide(self._worker, state.step) if self._recorder else Action.CONTINUE
        (word,) = collective.maximum_over_workers([int(decision)])
        action = Action(word)
        if self._recorder and action.saves:
            self._save(self._recorder, state, action, pending_row, last=False)
        self._wait_for_save(state, action)

    def _regroup(self) -> None:
        leaving = collective.from_rank_0(self._recorder.leaving if self._recorder else ())
        leaves = self._worker.rank in leaving
        if leaves and self._recorder:
            self._recorder.flush()  # another worker's recorder writes from now on
        raise (Left if leaves else Regroup)(Action.REGROUP.name)

    def _save(self, recorder: Recorder, state: TrainState, action: Action, pending_row: Row | None, last: bool) -> None:
        wait = last or action.saves
        recorder.save(state, wait=wait, must_succeed=last or action >= Action.RESIZE, pending_row=pending_row)

    def _wait_for_save(self, state: TrainState, action: Action) -> None:
        """On every worker, after rank 0 has saved; raises Interrupted or Ended if the group shall end."""
        if action == Action.CONTINUE:
            return
        if action == Action.REGROUP:
            self._regroup()
        if self._recorder and action >= Action.RESIZE:
            self._recorder.record_end(action, state.step, self._worker)
        # An exception on any worker tears the group down, so none is raised before rank 0 has saved. Without an end the
        # others would wait in the next step's collective, on the accelerator.
        collective.wait_for_all()
        if action >= Action.RESIZE:
            raise (Ended if action == Action.END else Interrupted)(action.name)
