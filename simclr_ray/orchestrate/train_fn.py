"""The function that Ray Train runs on every worker of a group, at every attempt."""

from __future__ import annotations

import ray.train.torch

from simclr_ray import collective
from simclr_ray.orchestrate.attempt import attempt
from simclr_ray.orchestrate.reservation import note_reservation
from simclr_ray.orchestrate.task import Task
from simclr_ray.train.control import Interrupted


def train_fn(settings: dict[str, Task]) -> None:
    """Ray Train calls this with its `train_loop_config`."""
    task = settings["task"]
    if collective.rank() == 0:
        note_reservation(task.run)
    try:
        attempt(task, ray.train.torch.get_device())
    except Interrupted:
        collective.leave_group()
        raise
    collective.leave_group()
