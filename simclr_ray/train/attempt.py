"""One attempt at a run by one group of workers: from the newest checkpoint to the end, or until it is interrupted.

Nothing here knows Ray. The first attempt and the fortieth are the same code: an attempt without a checkpoint starts at
step 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext

import numpy as np

from simclr_ray import collective
from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.order import Order, last_step, order_of
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import Row, read_rows
from simclr_ray.train import checkpoint
from simclr_ray.train.batch import Block, batches, on_device
from simclr_ray.train.checkpoint import Saver
from simclr_ray.train.control import Control
from simclr_ray.train.loop import Evaluate, train
from simclr_ray.train.metrics import RunLog
from simclr_ray.train.recorder import Recorder
from simclr_ray.train.state import TrainState, initial_state, restore
from simclr_ray.train.step import projector
from simclr_ray.train.worker import Worker

Blocks = Callable[[np.ndarray], Iterable[Block]]
"""From this worker's positions in the order to their blocks (see SliceLoader)."""


def run_attempt(
    config: Config,
    dataset: Dataset,
    run: Location,
    worker: Worker,
    blocks: Blocks,
    *,
    still_ours: Callable[[], bool] = lambda: True,
    evaluate: Evaluate | None = None,
    last_failure: str | None = None,
) -> TrainState:
    """Trains to the end, leaves checkpoints and records in `run`, and gives the final state.

    `still_ours` is asked before each save whether another driver has taken the run over. `last_failure` is what ended
    the attempt before this one, for the records. Raises Interrupted when rank 0 has saved for another group, Ended
    when it has saved because the run was asked to end.
    """
    order = order_of(config, dataset)
    log = _log_start(run, worker, last_failure) if worker.rank == 0 else None
    try:
        state = initial_state(config, worker.device)
        pending_row, skipped = _resume(state, config, dataset, run)
        recorder = None
        if log:
            refused = _refused_workers(read_rows(run / "events.jsonl"), worker.size)
            recorder = _recorder(log, config, dataset, order, run, still_ours, refused)
            recorder.restored(state.step, worker.size, skipped)
        with recorder or nullcontext():
            _train(config, order, state, worker, blocks, recorder, evaluate, pending_row)
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
    evaluate: Evaluate | None,
    pending_row: Row | None,
) -> None:
    on_gpu, until = worker.device.type == "cuda", max(state.step, last_step(config, order))
    compiled = on_gpu if config.resources.compile is None else config.resources.compile
    project = projector(
        state.model, config.data.mean, config.data.std, config.train.precision, worker.device, compiled=compiled
    )
    positions = order.worker_positions(state.step, until, worker.rank, worker.size)
    rows_per_step = order.rows_per_pass(worker.size)[worker.rank] * (order.global_batch // order.pass_size)
    source = batches(blocks(positions), rows_per_step, state.step, pin=on_gpu)
    with closing(on_device(source, worker.device)) as stream:
        train(
            config,
            order,
            state,
            worker,
            stream,
            project,
            recorder,
            until=until,
            evaluate=evaluate,
            pending_row=pending_row,
        )
    if recorder and state.step == config.train.epochs * order.steps_per_epoch:
        recorder.event("done", state.step)
    elif recorder:
        recorder.event("stop", state.step, reason="saving.stop_after_epochs")


def _resume(state: TrainState, config: Config, dataset: Dataset, run: Location) -> tuple[Row | None, list[str]]:
    """Restores the newest valid checkpoint, the same on every worker; its pending row and what was skipped."""
    saved, skipped = checkpoint.newest_valid(run) if collective.rank() == 0 else (None, [])
    step = collective.from_rank_0(saved.step if saved else None)
    if step is None:
        return None, skipped
    saved = saved or checkpoint.read(run, step)
    for key, now in _identity(config, dataset).items():
        if saved.state[key] != now:
            raise BadInput(f"{run} was trained on another {key} ({saved.state[key]}, now {now}): use another --name")
    restore(state, saved)
    written = saved.state.get("pending_evaluation_row", saved.state.get("owed"))  # as the last release called it
    if written is not None and any(row["step"] == step for row in read_rows(run / "metrics.jsonl")):
        written = None
    return collective.from_rank_0(written), skipped


def _identity(config: Config, dataset: Dataset) -> dict[str, object]:
    return {"seed": config.train.seed, "fingerprint": dataset.fingerprint}


def _log_start(run: Location, worker: Worker, last_failure: str | None) -> RunLog:
    """Opens the records with this attempt's beginning, and the end of one before it that could not say how it ended."""
    events, rows = read_rows(run / "events.jsonl"), read_rows(run / "metrics.jsonl")
    log = RunLog(run)
    log.event("attempt", events[-1]["step"] if events else 0, workers=worker.size)
    if events and events[-1]["event"] not in ("done", "resize", "stop", "gave_up"):
        signs = [events[-1], *rows[-1:]]
        log.event("failure", **{key: max(sign[key] for sign in signs) for key in ("step", "time")}, cause=last_failure)
    return log


def _refused_workers(events: list[Row], workers: int) -> int | None:
    """The number of workers that the last attempt stopped for, if this one did not get it: another run has it."""
    before = [event for event in events if event["event"] != "attempt"][-1:]
    if before and before[0]["event"] == "resize" and before[0]["workers"]["to"] > workers:
        return before[0]["workers"]["to"]
    return None


def _recorder(
    log: RunLog,
    config: Config,
    dataset: Dataset,
    order: Order,
    run: Location,
    still_ours: Callable[[], bool],
    refused_workers: int | None,
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
        refused_workers=refused_workers,
    )
    return Recorder(log, saver, control, saving, _identity(config, dataset))
