"""The function that Ray Train runs on every worker of a group, at every attempt."""

from __future__ import annotations

import ray.train.torch
import torch.distributed as dist

from simclr_ray import collective
from simclr_ray.orchestrate.attempt import attempt
from simclr_ray.orchestrate.reservation import note_reservation
from simclr_ray.orchestrate.task import Task


def train_fn(settings: dict[str, Task]) -> None:
    """Ray Train calls this with its `train_loop_config`."""
    task = settings["task"]
    if collective.rank() == 0:
        note_reservation(task.run)
    try:
        attempt(task, ray.train.torch.get_device())
    finally:
        # Otherwise the process group would keep its ports and threads into the next attempt.
        if dist.is_initialized():
            dist.destroy_process_group()
