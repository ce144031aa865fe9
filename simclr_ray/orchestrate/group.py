"""Trains a run on a group of workers under Ray Train, which restarts the group after failures and resizes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from time import monotonic, sleep

import ray.train
import ray.train.torch
from ray.train.torch import TorchConfig
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig  # ray.train's own names are typed as V1

from simclr_ray.membership.coordinator import Coordinator
from simclr_ray.orchestrate.cluster import rank_0_selector
from simclr_ray.orchestrate.failure import FailedAttempts
from simclr_ray.orchestrate.group_failure import StopOnFailure, cause_of, lost_while_starting
from simclr_ray.orchestrate.interrupt import saved_at_interrupt
from simclr_ray.orchestrate.newcomers import newcomers
from simclr_ray.orchestrate.placement import CorrectedPlacement, unrestricted_selector
from simclr_ray.orchestrate.process_group import ProcessGroupConfig
from simclr_ray.orchestrate.reservation import drop_reservation
from simclr_ray.orchestrate.survivors import (
    MEMBERS_POLL_S,
    OthersTrain,
    ReplaceLost,
    RunEnded,
    SurvivorsConfig,
    coordinated,
)
from simclr_ray.orchestrate.task import Task
from simclr_ray.orchestrate.train_fn import train_fn
from simclr_ray.planning.shares import Share
from simclr_ray.storage.object_store import with_retries

NEVER_S = 1e9
"""Interval that turns Ray's own resize monitor off, because it would lose the steps since the last save."""
GRACE_S = 60.0
"""After the end of training, for Ray's controller to notice it."""


def train_in_group(task: Task) -> None:
    """Runs Ray Train to the end of the run; runs it again if a node was lost while a group was starting.

    On CPUs the workers of a group survive each other. On GPUs they do not yet: NCCL's groups cannot be left so.
    """
    if task.share.gpus or task.share.max_workers == 1:
        return _train(task, lambda: _trainer(task).fit())
    with coordinated(task.driver, task.share, task.config.elasticity.wait_s) as (address, coordinator):
        _train_with_survivors(replace(task, address=address), coordinator)


def _train(task: Task, fit: Callable[[], object], over: Callable[[], bool] | None = None) -> None:
    def until_started() -> None:
        failed = FailedAttempts(task.run)
        while True:
            try:
                fit()
                return
            except ray.train.TrainingFailedError as error:
                if failed.one_too_many() or not lost_while_starting(error):
                    raise cause_of(error) from None

    saved_at_interrupt(until_started, task.run, over)  # a Ctrl-C before a failure counts after it


def _train_with_survivors(task: Task, coordinator: Coordinator) -> None:
    over = _over_for(coordinator, GRACE_S)
    with newcomers(task, coordinator) if _is_elastic(task.share) else nullcontext() as joining:
        _train(
            task,
            lambda: _fit_until_finished(task, coordinator),
            lambda: over() or (joining is not None and joining.failure is not None),
        )
        if joining and joining.failure:
            raise joining.failure


def _fit_until_finished(task: Task, coordinator: Coordinator) -> None:
    """Runs Ray Train again where its own workers have left before the end: others may train on without them."""
    while not coordinator.members.finished:
        try:
            _trainer(task).fit()
        except ray.train.TrainingFailedError as error:
            if not isinstance(cause_of(error), RunEnded):
                raise
        sleep(MEMBERS_POLL_S)  # the coordinator hears of an end


def _is_elastic(share: Share) -> bool:
    return share.min_workers < share.max_workers


def _over_for(coordinator: Coordinator, seconds: float) -> Callable[[], bool]:
    """Whether the run has been trained to its end for so long: then its controller hangs in a replacement."""
    since: list[float] = []

    def over() -> bool:
        if coordinator.members.finished and not since:
            since.append(monotonic())
        return bool(since) and monotonic() - since[0] > seconds

    return over


def _trainer(task: Task) -> ray.train.torch.TorchTrainer:
    """A TorchTrainer without Ray checkpoints: those are train/checkpoint.py's."""
    share, run = task.share, task.run
    drop_reservation(run)
    elastic = _is_elastic(share)
    selector = rank_0_selector(share)
    callbacks: list[RayTrainCallback] = [StopOnFailure(run, task.driver, share.max_workers)]
    if elastic:
        callbacks.append(CorrectedPlacement(share, OthersTrain(task.driver) if task.address else None))
        selector = selector or unrestricted_selector(share)
    if task.address:
        callbacks.append(ReplaceLost(task.driver))
    run_config = RunConfig(
        name="ray",
        storage_path=run.path,
        storage_filesystem=run.filesystem,
        failure_config=FailureConfig(max_failures=-1),
        callbacks=callbacks,  # type: ignore[arg-type]  # typed as UserCallbacks, checked as any of Ray's
    )
    if run.local is None:
        with_retries(run.uri, lambda: run_config.storage_context)  # Ray accesses its storage here, without retries
    resources = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
    return ray.train.torch.TorchTrainer(
        train_fn,
        train_loop_config={"task": task},
        torch_config=_process_group(task),
        scaling_config=ScalingConfig(
            num_workers=(share.min_workers, share.max_workers) if elastic else share.max_workers,
            use_gpu=share.gpus > 0,
            resources_per_worker=resources,
            label_selector=selector,
            elastic_resize_monitor_interval_s=NEVER_S,
        ),
        run_config=run_config,  # type: ignore[arg-type]
    )


def _process_group(task: Task) -> TorchConfig:
    if task.address:
        return SurvivorsConfig(backend="gloo")
    return ProcessGroupConfig(
        backend="cpu:gloo,cuda:nccl" if task.share.gpus else "gloo",
        # Gloo's: the others wait in a collective on the CPU while rank 0 retries its last save.
        timeout_s=int(task.config.saving.patience_s) + 1800,
    )
