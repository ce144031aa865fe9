"""Trains as one of several workers that go on without those that are lost, and with those that join."""

from __future__ import annotations

from contextlib import suppress

import ray
import torch

from simclr_ray.membership.member import Member
from simclr_ray.orchestrate.attempt import attempt
from simclr_ray.orchestrate.interface import bind_gloo
from simclr_ray.orchestrate.task import Task, member_name
from simclr_ray.orchestrate.training import warm_up
from simclr_ray.train.control import Left


def attempt_as_member(task: Task, device: torch.device, name: str, slots: int) -> None:
    """Joins the workers of `task` (it has an address) under a `name` of its own on this node; `slots`: see Member."""
    assert task.address
    bind_gloo()
    warm_up()  # before it joins: the others would wait
    node = ray.get_runtime_context().get_node_id()
    with suppress(Left):
        attempt(task, device, Member(task.address, member_name(node, name), slots))
