"""A group under Ray Train whose workers survive each other: only lost ones are replaced, the others train on.

Ray calls this replica groups, and made it for torchft: with such a backend its controller leaves the train functions of
the surviving workers alone, and starts one for each lost worker in its place. The workers' process group, and who is in
it, are ours (membership/, group/), so others may join it where Ray has no place for them (newcomers.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import sleep
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
from simclr_ray.orchestrate.failure import is_final, unwrapped
from simclr_ray.orchestrate.placement import LOOKUP_ERRORS, usable_nodes
from simclr_ray.orchestrate.preemption.drain import draining
from simclr_ray.periodic import repeating
from simclr_ray.planning.shares import Share
from simclr_ray.train.control import Interrupted

PUBLISH_S = 0.2
MEMBERS_POLL_S = 0.2


class RunEnded(Exception):
    """Raised in Ray Train's controller, which has nobody to replace any more; the driver sees what follows."""


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
    coordinator = Coordinator(min_workers=share.min_workers, max_workers=share.max_workers, wait_s=wait_s)
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
        publish()  # for a controller that is still there


def members_of(driver: str) -> Members:
    """The workers of a driver's group, as it last published them. While Ray's head does not answer, one that trains:
    an error here would end the run.
    """
    try:
        value = internal_kv._internal_kv_get(_key(driver))
    except RayError:
        return Members(training=1)
    return Members(**json.loads(value)) if value else Members()


@dataclass(frozen=True)
class OthersTrain:
    """Whether workers of a driver's group train now; asked in Ray Train's controller."""

    driver: str

    def __call__(self) -> bool:
        return members_of(self.driver).training > 0


class ReplaceLost(ControllerCallback, WorkerGroupCallback):
    """Lets Ray replace workers that died on nodes that are still there, and start the group again only once all of its
    own are lost. Runs in Ray Train's controller; to be called after `CorrectedPlacement`.

    A worker whose place is gone is no failure to the controller, which would wait for another place inside Ray, where
    it sees neither the run's end nor the loss of others: it counts as one that trains, until the others have ended.
    """

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._group: Any = None
        self._lost: set[int] = set()
        self._all_lost = False

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._group = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._group = None

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Called before the controller reads it."""
        statuses, errors = worker_group_status.worker_statuses, worker_group_status.errors
        causes = {rank: unwrapped(error) for rank, error in errors.items()}
        planned = next((rank for rank, cause in causes.items() if isinstance(cause, Interrupted)), None)
        if planned is not None:  # that of all, though some may not have reported it yet: else Ray would replace them
            for rank, status in statuses.items():
                statuses[rank] = replace(status, running=False, error=status.error or statuses[planned].error)
        self._lost = set(errors)
        self._all_lost = planned is not None or len(errors) == len(statuses)
        if self._all_lost:
            return
        others_train = any(status.running for rank, status in statuses.items() if rank not in errors)
        for rank, cause in causes.items():
            if not is_final(cause) and not (others_train and self._can_be_replaced(rank)):
                statuses[rank] = replace(statuses[rank], running=others_train, error=None)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        if members_of(self._driver).finished:
            raise RunEnded
        if self._group is None or self._all_lost:
            return
        self._wait_for_places(self._group.get_latest_poll_status().errors)
        for rank in self._lost:  # Ray asks all that have not been shut down, and the dead ones fail to answer
            replica = self._group.get_replica_groups()[rank]
            if replica.is_active():
                replica.shutdown()
        resize_decision.num_workers = len(self._group.get_workers())  # another number is a restart

    def _wait_for_places(self, ranks: Iterable[int]) -> None:
        """Where a replacement has failed Ray tries again without a look at the group, and then for ever."""
        while not all(self._can_be_replaced(rank) for rank in ranks):
            members = members_of(self._driver)
            if members.finished or not members.training:
                raise RunEnded
            sleep(MEMBERS_POLL_S)

    def _can_be_replaced(self, rank: int) -> bool:
        """Whether the place of a lost worker is on a node that is there, and is to stay."""
        try:
            group = self._group.get_worker_group_state().placement_group_handle.placement_group
            place = self._group.get_workers()[rank].placement_group_bundle_index
            node = placement_group_table(group)["bundles_to_node_id"][place]
            return bool(usable_nodes([each for each in ray.nodes() if each["NodeID"] == node], draining()))
        except LOOKUP_ERRORS:
            return False  # the head is busy, and is asked again


def _key(driver: str) -> str:
    return f"simclr_ray/members/{driver}"
