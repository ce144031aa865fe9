"""The function that Ray Train runs on every worker of a group, at every attempt."""

from __future__ import annotations

from contextlib import suppress

import ray.train.torch

from simclr_ray import collective
from simclr_ray.membership.member import Address, Member
from simclr_ray.orchestrate.attempt import attempt
from simclr_ray.orchestrate.process_group import bind_gloo
from simclr_ray.orchestrate.reservation import note_reservation
from simclr_ray.orchestrate.task import Task
from simclr_ray.orchestrate.training import warm_up
from simclr_ray.orchestrate.worker import BETWEEN
from simclr_ray.train.control import Interrupted, Left


def train_fn(settings: dict[str, Task]) -> None:
    """Ray Train calls this with its `train_loop_config`."""
    task = settings["task"]
    if task.address:
        _train_as_member(task, task.address)
        return
    if collective.rank() == 0:
        note_reservation(task.run)
    try:
        attempt(task, ray.train.torch.get_device())
    except Interrupted:
        collective.end_default_group()
        raise
    collective.end_default_group()


def _train_as_member(task: Task, address: Address) -> None:
    """As one of several workers that go on without those that are lost."""
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        note_reservation(task.run)
    bind_gloo()
    warm_up()  # before it joins: the others would wait
    here = ray.get_runtime_context()
    member = Member(address, f"{here.get_node_id()}{BETWEEN}{here.get_worker_id()}", context.get_world_size())
    with suppress(Left):
        attempt(task, ray.train.torch.get_device(), member)
