"""One attempt at a run by one group of workers: from the newest checkpoint to the end, or until it is interrupted.

Without Ray. The first attempt and every later one run the same code: an attempt without a checkpoint starts at step 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from functools import cached_property, partial
from time import time
from typing import NamedTuple

import torch
from torch import Tensor

from simclr_ray import collective
from simclr_ray.config import LABELLED, BadInput, Config
from simclr_ray.data.bridge import Block
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.order import Order, Positions, last_step, order_of
from simclr_ray.membership.generation import Generation
from simclr_ray.membership.member import Fenced
from simclr_ray.methods.method import Method, progress_at
from simclr_ray.methods.teacher import read_teacher
from simclr_ray.model.initial import read_initial
from simclr_ray.optim.build import set_schedule
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import EVENTS, METRICS, Row, read_rows
from simclr_ray.train import checkpoint
from simclr_ray.train.batch import Batch, batches, on_device
from simclr_ray.train.branches import kept_of
from simclr_ray.train.check import Check, Evaluate
from simclr_ray.train.checkpoint import Saver
from simclr_ray.train.committed import Committed
from simclr_ray.train.control import Control, most_workers, refused_workers
from simclr_ray.train.control_word import ControlWord
from simclr_ray.train.generations import Change, closing_aside, over_generations
from simclr_ray.train.loop import train
from simclr_ray.train.memory import naming_too_little_memory
from simclr_ray.train.probe import probe_of
from simclr_ray.train.recorder import Recorder
from simclr_ray.train.run_log import RunLog
from simclr_ray.train.state import TrainState, initial_state, restore
from simclr_ray.train.step import Forward, StepResult, forward_of, training_step
from simclr_ray.train.step_log import StepLog
from simclr_ray.train.tracking.build import trackers_of
from simclr_ray.train.worker import Worker

Blocks = Callable[[Positions], Iterable[Block]]
"""Loads the blocks of this worker's positions in the order (see SliceLoader)."""


def run_attempt(
    config: Config,
    dataset: Dataset,
    run: Location,
    worker: Worker,
    blocks: Blocks,
    *,
    still_ours: Callable[[], bool] = lambda: True,
    evaluate: Evaluate | None = None,
    save_best: Callable[[Method], None] | None = None,
    on_done: Callable[[Method], object] | None = None,
    last_failure: str | None = None,
) -> TrainState:
    """Trains to the end, writes checkpoints and logs to `run`, and returns the final state.

    `still_ours` is called before each save; False: another driver has taken the run over. `save_best`: see `Check`.
    `last_failure`: what ended the previous attempt, for events.jsonl. `on_done` gets the model on rank 0 when no step
    follows. Raises Interrupted when rank 0 has saved so that another group of workers can resume, Ended when it has
    saved because an end of the run was requested, and Left when the others go on without this worker.
    """
    with ExitStack() as until_the_end:
        calls = _Calls(still_ours, evaluate, save_best, on_done)
        return _Attempt(config, dataset, run, worker, blocks, calls, last_failure, until_the_end).train()


class _Calls(NamedTuple):
    """See `run_attempt`."""

    still_ours: Callable[[], bool]
    evaluate: Evaluate | None
    save_best: Callable[[Method], None] | None
    on_done: Callable[[Method], object] | None


class _Attempt:
    """What lasts for one worker as long as its process trains, over all generations of the group."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        run: Location,
        worker: Worker,
        blocks: Blocks,
        calls: _Calls,
        last_failure: str | None,
        until_the_end: ExitStack,
    ) -> None:
        self._config, self._dataset, self._run, self._worker, self._blocks = config, dataset, run, worker, blocks
        self._calls, self._last_failure, self._until_the_end = calls, last_failure, until_the_end
        self._order, self._began, self._begin_recorded = order_of(config, dataset), time(), False
        if worker.member:
            until_the_end.callback(worker.member.close)
        elif worker.rank == 0:
            self._record_begin()  # before what may fail
        given = read_initial(run, config.model.init_sha256), read_teacher(run, config.method)
        self._state = initial_state(config, worker.device, *given)
        self._committed = Committed(self._state, recoverable=worker.member is not None)
        self._forward = _forward_of(config, self._state, worker.device)

    def train(self) -> TrainState:
        """Until the end, or as a worker of one generation after the other."""
        if self._worker.member is None:
            self._train_as(None, None)
            return self._state
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401 (a second that no change shall wait for)

        # The others wait in a collective while rank 0 retries its last save.
        timeout_s = self._config.saving.patience_s + 1800
        over_generations(self._worker.member, self._committed, timeout_s, self._train_as)
        return self._state

    @cached_property
    def _recorder(self) -> Recorder:
        """Rank 0's: once it is, it stays it."""
        new = _recorder(self._config, self._dataset, self._order, self._run, self._worker, self._calls.still_ours)
        return self._until_the_end.enter_context(new)

    def _record_begin(self) -> None:
        if not self._begin_recorded:
            self._recorder.begin(self._began, self._worker.size, self._last_failure)
            self._begin_recorded = True

    def _train_as(self, generation: Generation | None, change: Change | None) -> None:
        """Until the end, or until a worker is lost, leaves or joins."""
        worker, state = self._worker, self._state
        worker.begin_generation()
        recorder = self._recorder if worker.rank == 0 else None
        if generation is None or change is None or generation.most_advanced is None:
            self._resume_or_start(recorder)
        else:
            self._committed.share(generation)
            if recorder:
                recorder.regrouped(state.step, self._committed.rows, **change.fields(generation))
        if worker.member:
            worker.member.trained(self._committed.progress)
        self._train_on(recorder)
        if recorder and state.done and self._calls.on_done:
            self._calls.on_done(state.model)

    def _resume_or_start(self, recorder: Recorder | None) -> None:
        state = self._state
        if recorder:
            self._record_begin()
        pending_row, skipped = _resume(state, self._config, self._dataset, self._run)
        if recorder:
            recorder.restored(state.step, self._worker.size, skipped)
        self._committed.commit(pending_row)

    def _train_on(self, recorder: Recorder | None) -> None:
        config, order, state = self._config, self._order, self._state
        worker, committed = self._worker, self._committed
        until, logging = max(state.step, last_step(config, order)), config.logging
        log = StepLog(worker, recorder, order, committed, every_steps=logging.every_steps, ledger=logging.ledger)
        control = ControlWord(worker, recorder, order, config.data.max_bad_fraction, committed)
        rows = recorder.metrics_rows() if recorder else []
        check = Check(config, order, log, control, self._calls.evaluate, self._calls.save_best, rows)
        step = _step_of(config, order, state, worker, self._forward)

        schedule = partial(set_schedule, state.optimizer, config, steps_per_epoch=order.steps_per_epoch)
        part = min(1.0, config.resources.gpus_per_worker or 1.0)
        fits = naming_too_little_memory(order, worker.size, worker.device, part)  # the step, its data, the logs
        with fits, closing_aside(_stream(order, worker, self._blocks, state.step, until)) as stream:
            train(state, stream, step, schedule, log, control, check, committed, until=until)
        state.done = check.exhausted or state.step == config.train.epochs * order.steps_per_epoch
        if recorder and state.done:
            recorder.wait_for_save()  # `done` is the last event
            if recorder.save_error is not None:  # of the step that evaluate.patience has made the last
                recorder.save(state, wait=True, must_succeed=True)
            recorder.event("done", state.step, **{"reason": "evaluate.patience"} if check.exhausted else {})
        elif recorder:
            recorder.event("stop", state.step, reason="saving.stop_after_epochs")


def _stream(order: Order, worker: Worker, blocks: Blocks, first: int, until: int) -> Generator[Batch]:
    """This worker's batches of the steps from `first` to `until`, on its device."""
    positions = order.worker_positions(first, until, worker.rank, worker.size)
    rows, passes = order.rows_per_pass(worker.size)[worker.rank], order.global_batch // order.pass_size
    staged_rows = None if worker.device.type == "cpu" else rows
    cut = batches(blocks(positions), rows * passes, first, worker.device, staged_rows=staged_rows)
    return on_device(cut, worker.device)


def _forward_of(config: Config, state: TrainState, device: torch.device) -> Forward:
    data, compiled = config.data, config.resources.compiles(on_gpu=device.type == "cuda")
    return forward_of(state.model, data.mean, data.std, config.train.precision, device, compiled=compiled)


def _step_of(
    config: Config, order: Order, state: TrainState, worker: Worker, forward: Forward
) -> Callable[[Batch], StepResult]:
    """The step as a function of this worker's batch alone."""
    rows, passes = order.rows_per_pass(worker.size), order.global_batch // order.pass_size
    trains_on_labels, probe = isinstance(config.method, LABELLED), probe_of(state.model)

    def step(batch: Batch) -> StepResult:
        features: deque[Tensor] = deque(maxlen=passes)  # some are seen twice, the last ones in the order of passes
        result = training_step(
            state.model,
            probe.watching(forward, features) if probe else forward,
            state.optimizer,
            batch.views,
            passes=passes,
            rows_per_worker=rows,
            local=batch.local,
            labels=batch.labels if trains_on_labels else None,
            kept=kept_of(state.model, batch, order.seed, state.step // order.steps_per_epoch),
            progress=progress_at(state.step, config.train.epochs, order.steps_per_epoch),
            clip_grad_norm=config.optim.clip_grad_norm,
        )
        if probe:
            assert batch.labels is not None
            probe.train_on(features, batch.labels.chunk(passes))
        return result

    return step


def _resume(state: TrainState, config: Config, dataset: Dataset, run: Location) -> tuple[Row | None, list[str]]:
    """Restores the newest valid checkpoint on every worker; returns its pending row and why newer ones were skipped."""
    # Rank 0 alone looks for the newest: a store's listings may differ between nodes, and one may read a file damaged,
    # so workers that each chose could start from different steps. The others read the step that it names, and fail if
    # they cannot.
    saved, skipped = checkpoint.newest_valid(run) if collective.rank() == 0 else (None, [])
    step = collective.from_rank_0(saved.step if saved else None)
    if step is None:
        return None, skipped
    saved = saved or checkpoint.read(run, step)
    for key, now in _identity(config, dataset).items():
        if saved.state[key] != now:
            raise BadInput(f"{run} was trained on another {key} ({saved.state[key]}, now {now}): use another --name")
    restore(state, saved)
    # A checkpoint is saved before the evaluation of its step and holds the metrics row that the results were to join.
    # If the attempt ended before that row was written, the evaluation is done again now. The key was once "owed".
    pending_row = saved.state.get("pending_evaluation_row", saved.state.get("owed"))
    if pending_row is not None and any(row["step"] == step for row in read_rows(run / METRICS)):
        pending_row = None
    return collective.from_rank_0(pending_row), skipped


def _identity(config: Config, dataset: Dataset) -> dict[str, object]:
    return {"seed": config.train.seed, "fingerprint": dataset.fingerprint}


def _recorder(
    config: Config, dataset: Dataset, order: Order, run: Location, worker: Worker, still_ours: Callable[[], bool]
) -> Recorder:
    saving, elasticity, member = config.saving, config.elasticity, worker.member

    def require_ours() -> None:
        if member and not member.holds():
            raise Fenced(f"the other workers have gone on without rank {worker.rank}: it does not write")

    def ours() -> bool:
        require_ours()
        return still_ours()

    saver = Saver(
        run,
        keep_last=saving.keep_last,
        steps_between_kept=saving.keep_every_epochs and saving.keep_every_epochs * order.steps_per_epoch,
        still_ours=ours,
        patience_s=saving.patience_s,
    )
    events = read_rows(run / EVENTS)
    control = Control(
        settle_s=elasticity.settle_s,
        resize_every_s=elasticity.resize_every_s,
        stop_margin_s=elasticity.stop_margin_s,
        refused_workers=refused_workers(events, worker.size),
        most_workers=most_workers(events),
    )
    log = RunLog(run, require_ours, trackers_of(config, run))
    return Recorder(log, saver, control, saving, _identity(config, dataset))
