"""One attempt at a run by one group of workers: from the newest checkpoint to the end, or until it is interrupted.

Without Ray. The first attempt and every later one run the same code: an attempt without a checkpoint starts at step 0.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext
from functools import partial

import numpy as np

from simclr_ray import collective
from simclr_ray.config import BadInput, Config
from simclr_ray.data.bridge import Block
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.order import Order, last_step, order_of
from simclr_ray.methods.method import Method, Progress
from simclr_ray.model.initial import read_initial
from simclr_ray.optim.schedule import rate_at
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import EVENTS, METRICS, Row, read_rows
from simclr_ray.train import checkpoint
from simclr_ray.train.batch import Batch, batches, on_device
from simclr_ray.train.check import Check, Evaluate, objective_of
from simclr_ray.train.checkpoint import Saver
from simclr_ray.train.control import Control, refused_workers
from simclr_ray.train.control_word import ControlWord
from simclr_ray.train.loop import train
from simclr_ray.train.memory import naming_too_little_memory
from simclr_ray.train.recorder import Recorder
from simclr_ray.train.run_log import RunLog, start_log
from simclr_ray.train.state import TrainState, initial_state, restore
from simclr_ray.train.step import StepResult, forward_of, training_step
from simclr_ray.train.step_log import StepLog
from simclr_ray.train.worker import Worker

Blocks = Callable[[np.ndarray], Iterable[Block]]
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
    last_failure: str | None = None,
) -> TrainState:
    """Trains to the end, writes checkpoints and logs to `run`, and returns the final state.

    `still_ours` is called before each save; False: another driver has taken the run over. `save_best`: see `Check`.
    `last_failure`: what ended the previous attempt, for events.jsonl. Raises Interrupted when rank 0 has saved so that
    another group of workers can resume, and Ended when it has saved because an end of the run was requested.
    """
    order = order_of(config, dataset)
    log = start_log(run, worker.size, last_failure) if worker.rank == 0 else None
    try:
        state = initial_state(config, worker.device, read_initial(run, config.model.init_sha256))
        pending_row, skipped = _resume(state, config, dataset, run)
        recorder = None
        if log:
            refused = refused_workers(read_rows(run / EVENTS), worker.size)
            recorder = _recorder(log, config, dataset, order, run, still_ours, refused)
            recorder.restored(state.step, worker.size, skipped)
        with recorder or nullcontext():
            check = _checks(config, order, evaluate, save_best, read_rows(run / METRICS) if recorder else [])
            _train(config, order, state, worker, blocks, recorder, check, pending_row)
    finally:
        if log:
            log.close()
    return state


def _train(
    config: Config,
    order: Order,
    state: TrainState,
    worker: Worker,
    blocks: Blocks,
    recorder: Recorder | None,
    new_check: Callable[[StepLog, ControlWord], Check],
    pending_row: Row | None,
) -> None:
    until, logging = max(state.step, last_step(config, order)), config.logging
    log = StepLog(worker, recorder, order, every_steps=logging.every_steps, ledger=logging.ledger)
    control = ControlWord(worker, recorder, order, config.data.max_bad_fraction)
    check = new_check(log, control)
    step = _step_of(config, order, state, worker)

    def lr_at(step: int) -> float:
        return rate_at(config, step, order.steps_per_epoch)

    fits = naming_too_little_memory(order, worker.size, worker.device)  # the step, the copies to the device, the logs
    with fits, closing(_stream(order, worker, blocks, state.step, until)) as stream:
        train(state, stream, step, lr_at, log, control, check, until=until, pending_row=pending_row)
    state.done = check.exhausted or state.step == config.train.epochs * order.steps_per_epoch
    if recorder and state.done:
        recorder.wait_for_save()  # `done` is the last event
        recorder.event("done", state.step, **{"reason": "evaluate.patience"} if check.exhausted else {})
    elif recorder:
        recorder.event("stop", state.step, reason="saving.stop_after_epochs")


def _checks(
    config: Config,
    order: Order,
    evaluate: Evaluate | None,
    save_best: Callable[[Method], None] | None,
    rows: list[Row],
) -> Callable[[StepLog, ControlWord], Check]:
    settings = config.evaluate
    return partial(
        Check,
        evaluate,
        settings.every_epochs * order.steps_per_epoch,
        objective=objective_of(config),
        rows=rows,
        patience=settings.patience,
        save_best=save_best if settings.keep_best else None,
    )


def _stream(order: Order, worker: Worker, blocks: Blocks, first: int, until: int) -> Generator[Batch]:
    """This worker's batches of the steps from `first` to `until`, on its device."""
    positions = order.worker_positions(first, until, worker.rank, worker.size)
    rows_per_step = order.rows_per_pass(worker.size)[worker.rank] * (order.global_batch // order.pass_size)
    pin = worker.device.type == "cuda"
    return on_device(batches(blocks(positions), rows_per_step, first, pin=pin), worker.device)


def _step_of(config: Config, order: Order, state: TrainState, worker: Worker) -> Callable[[Batch], StepResult]:
    """The step as a function of this worker's batch alone."""
    data, compiled = config.data, config.resources.compiles(on_gpu=worker.device.type == "cuda")
    forward = forward_of(state.model, data.mean, data.std, config.train.precision, worker.device, compiled=compiled)
    rows, passes = order.rows_per_pass(worker.size), order.global_batch // order.pass_size
    total = config.train.epochs * order.steps_per_epoch

    def step(batch: Batch) -> StepResult:
        return training_step(
            state.model,
            forward,
            state.optimizer,
            batch.views,
            passes=passes,
            rows_per_worker=rows,
            local=batch.local,
            labels=batch.labels,
            progress=Progress(state.step / total, state.step / order.steps_per_epoch),
        )

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
    log: RunLog,
    config: Config,
    dataset: Dataset,
    order: Order,
    run: Location,
    still_ours: Callable[[], bool],
    refused: int | None,
) -> Recorder:
    saving, elasticity = config.saving, config.elasticity
    saver = Saver(
        run,
        keep_last=saving.keep_last,
        steps_between_kept=saving.keep_every_epochs and saving.keep_every_epochs * order.steps_per_epoch,
        still_ours=still_ours,
        patience_s=saving.patience_s,
    )
    control = Control(
        settle_s=elasticity.settle_s,
        resize_every_s=elasticity.resize_every_s,
        stop_margin_s=elasticity.stop_margin_s,
        refused_workers=refused,
    )
    return Recorder(log, saver, control, saving, _identity(config, dataset))
