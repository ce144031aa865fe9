"""A group under Ray Train whose workers survive each other: only lost ones are replaced, the others train on.

Ray calls this replica groups, and made it for torchft: with such a backend its controller leaves the train functions of
the surviving workers alone, and starts one for each lost worker in its place. The workers' process group, and who is in
it, are ours (membership/, group/).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util import placement_group_table

from simclr_ray.membership.coordinator import Coordinator, Members
from simclr_ray.membership.member import Address
from simclr_ray.orchestrate.failure import unwrapped
from simclr_ray.orchestrate.placement import LOOKUP_ERRORS, usable_nodes
from simclr_ray.orchestrate.preemption.drain import draining
from simclr_ray.orchestrate.task import restart_key
from simclr_ray.periodic import repeating
from simclr_ray.planning.shares import Share
from simclr_ray.train.control import Interrupted

PUBLISH_S = 0.2
PLACE_POLL_S = 0.2
PLACE_S = 8.0
"""Less than the 12 to 15 s in which Ray's head notices that a node is lost, and begins to look for another place."""


class RunEnded(Exception):
    """Raised in Ray Train's controller when the survivors have trained to the end: nobody need be replaced any more."""


class SurvivorsConfig(TorchConfig):
    """TorchConfig without a process group of Ray's."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Survivors


class _Survivors(Backend):
    has_replica_groups = True


@contextmanager
def coordinated(driver: str, share: Share, wait_s: float) -> Iterator[tuple[Address, Coordinator]]:
    """Runs the coordinator of a group's workers in this process, and the store by which they find each other."""
    host = ray.util.get_node_ip_address()
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    coordinator = Coordinator(min_workers=share.min_workers, wait_s=wait_s)
    published = Members()

    def publish() -> None:
        nonlocal published
        members = coordinator.members
        if members != published:
            value = json.dumps({"training": members.training, "finished": members.finished})
            try:
                internal_kv._internal_kv_put(_key(driver), value, overwrite=True)
                published = members
            except RayError:
                pass  # the head is busy: again at the next call

    internal_kv._internal_kv_del(_key(driver))
    address = Address(host=host, port=coordinator.port, token=coordinator.token, store=f"{host}:{store.port}")
    try:
        with repeating(publish, PUBLISH_S):
            yield address, coordinator
    finally:
        coordinator.close()


def members_of(driver: str) -> Members:
    """The workers of a driver's group, as it last published them."""
    value = internal_kv._internal_kv_get(_key(driver))
    return Members(**json.loads(value)) if value else Members()


class ReplaceLost(ControllerCallback, WorkerGroupCallback):
    """Lets Ray replace lost workers in their places, once something can start there, and restart the group only if it
    has stopped as a whole. Runs in Ray Train's controller; to be called after `CorrectedPlacement`.

    Without it the controller would wait for a machine inside Ray, where it sees neither the run's end nor the loss of
    another worker. If no place is to be had within PLACE_S, the survivors save and the group starts again without it:
    Ray's head (2.60) tries to place the rest of a group again and again without a pause, at the cost of two cores.
    """

    def __init__(self, driver: str, share: Share) -> None:
        self._driver, self._share = driver, share
        self._group: Any = None
        self._lost: set[int] = set()

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        internal_kv._internal_kv_del(restart_key(self._driver))

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._group = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._group = None

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """A planned end is that of all, though some may not have reported it yet: else Ray would replace the others."""
        statuses, errors = worker_group_status.worker_statuses, worker_group_status.errors
        self._lost = set(errors)
        for rank, error in errors.items():
            if isinstance(unwrapped(error), Interrupted):
                planned = statuses[rank].error
                for other, status in statuses.items():
                    statuses[other] = replace(status, running=False, error=status.error or planned)
                self._lost = set(statuses)
                return

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        if self._group is None:
            return
        workers = len(self._group.get_workers())
        if len(self._lost) == workers:
            return
        since, asked = monotonic(), False
        internal_kv._internal_kv_del(restart_key(self._driver))
        while asked or not self._can_be_placed():
            members = members_of(self._driver)
            if members.finished:
                raise RunEnded
            if not members.training:
                return
            if not asked and members.training >= self._share.min_workers and monotonic() - since > PLACE_S:
                internal_kv._internal_kv_put(restart_key(self._driver), "", overwrite=True)
                asked = True  # they save before they end, so they must not be ended here
            sleep(PLACE_POLL_S)
        resize_decision.num_workers = workers

    def _can_be_placed(self) -> bool:
        """Whether the places of the lost workers are on nodes that are there, and are to stay."""
        try:
            group = self._group.get_worker_group_state().placement_group_handle.placement_group
            table = placement_group_table(group)
            places = table["bundles_to_node_id"]
            nodes = {places[self._group.get_workers()[rank].placement_group_bundle_index] for rank in self._lost}
            known = [node for node in ray.nodes() if node["NodeID"] in nodes]
            return table["state"] == "CREATED" and nodes == set(usable_nodes(known, draining()))
        except LOOKUP_ERRORS:
            logging.getLogger(__name__).warning("Ray's own view of the places stands", exc_info=True)
            return True


def _key(driver: str) -> str:
    return f"simclr_ray/members/{driver}"
