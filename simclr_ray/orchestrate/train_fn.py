"""The function that Ray Train runs on every worker of a group, at every attempt."""

from __future__ import annotations

import ray.train.torch

from simclr_ray import collective
from simclr_ray.orchestrate.as_member import attempt_as_member
from simclr_ray.orchestrate.attempt import attempt
from simclr_ray.orchestrate.reservation import note_reservation
from simclr_ray.orchestrate.task import Task
from simclr_ray.train.control import Interrupted


def train_fn(settings: dict[str, Task]) -> None:
    """Ray Train calls this with its `train_loop_config`."""
    task = settings["task"]
    if task.address:
        _train_as_member(task)
        return
    if collective.rank() == 0:
        note_reservation(task.run)
    try:
        attempt(task, ray.train.torch.get_device())
    except Interrupted:
        collective.end_default_group()
        raise
    collective.end_default_group()


def _train_as_member(task: Task) -> None:
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        note_reservation(task.run)
    name = ray.get_runtime_context().get_worker_id()
    attempt_as_member(task, ray.train.torch.get_device(), name, context.get_world_size())
