"""Workers that join a group beside those of Ray Train: where there is room for more than it was started with.

Ray Train has no place for them, and would end the group to start a larger one; nor does it look for another place for
a worker whose node is gone. But who is in the group is ours (membership/), so an actor that trains as its workers do
joins them after a step, as one that Ray has replaced does.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any

import ray
import torch
from ray._private.state import available_resources_per_node
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from simclr_ray.membership.coordinator import Coordinator, Members
from simclr_ray.membership.member import Fenced
from simclr_ray.orchestrate.as_member import attempt_as_member
from simclr_ray.orchestrate.failure import ATTEMPTS, described, is_final, note_failure
from simclr_ray.orchestrate.placement import LOOKUP_ERRORS, usable_nodes
from simclr_ray.orchestrate.preemption.drain import draining
from simclr_ray.orchestrate.reservation import NodeResources, reserved_for_run
from simclr_ray.orchestrate.task import Task, member_name, node_of
from simclr_ray.periodic import repeating
from simclr_ray.planning.shares import Share, workers_that_fit
from simclr_ray.train.control import Interrupted

NAME = "newcomer-"
POLL_S = 1.0
REPORTED_S = 5.0
"""After so long a node's free resources are without those of an actor that was started on it."""
JOIN_S = 180.0
"""An actor that has not joined by then never will: its resources were taken by another, or its process hangs."""
PAUSE_S = 60.0
"""After ATTEMPTS newcomers that failed."""
REPLACED_S = 20.0
"""Ray replaces a worker that died on a node which is still there: that takes a poll of 2 s, and its imports."""
FLUSH_S = 60.0
"""At the end of the run, for a newcomer that is rank 0 to write what is left."""


@ray.remote(max_restarts=0)
class JoiningWorker:
    """Its name is what users see of it: ray::JoiningWorker.train."""

    def train(self, task: Task, name: str, slots: int) -> None:
        attempt_as_member(task, torch.device("cpu"), name, slots)


@dataclass
class _Newcomer:
    actor: Any
    name: str
    started: float = field(default_factory=monotonic)
    joined: bool = False


@contextmanager
def newcomers(task: Task, coordinator: Coordinator) -> Iterator[Newcomers]:
    """Starts workers wherever there is room for them, as long as the block runs."""
    found = Newcomers(task, coordinator)
    try:
        with repeating(found.refresh, POLL_S):
            yield found
    finally:
        if coordinator.members.finished:
            found.wait()
        found.end()


class Newcomers:
    """The actors of a group, in the driver. `failure`: what ends the run, if one of them has met it."""

    def __init__(self, task: Task, coordinator: Coordinator) -> None:
        self._task, self._coordinator = task, coordinator
        self._running: dict[Any, _Newcomer] = {}
        self._numbers = count()
        self._failed, self._not_before = 0, 0.0
        self._before: set[str] = set()
        self._lost: dict[str, float] = {}
        """When workers of Ray Train's were seen to be gone that it may replace."""
        self.failure: BaseException | None = None

    def refresh(self) -> None:
        """Takes leave of those that have ended, and starts as many as there is room for."""
        members = self._coordinator.members
        try:
            self._collect(members)
            if not members.training and not members.finished:
                self.end()  # Ray Train starts another group, which needs the room
                self._before, self._lost = set(), {}  # of those that group replaces none
            elif not members.finished and monotonic() >= self._not_before:
                self._end_spares(members)
                self._fill(members)
        except Exception as error:  # whatever it is, the run goes on with the workers that it has
            level = logging.DEBUG if isinstance(error, LOOKUP_ERRORS) else logging.WARNING
            logging.getLogger(__name__).log(level, "could not see where others may join", exc_info=True)

    def wait(self) -> None:
        """Until those that have trained to the end have written what they had to."""
        running = list(self._running)
        if running:
            ray.wait(running, num_returns=len(running), timeout=FLUSH_S)

    def _fill(self, members: Members) -> None:
        theirs = {name for name in members.names if f"/{NAME}" not in name}
        present = {*members.names, *(each.name for each in self._running.values()), *self._to_be_replaced(theirs)}
        missing = self._task.share.max_workers - len(present)
        if missing > 0:
            for place, node in enumerate(self._room(present)[:missing], start=1):
                self._start(node, len(present) + place)

    def _to_be_replaced(self, theirs: set[str]) -> set[str]:
        """Lost workers of Ray Train's on nodes that are there."""
        now = monotonic()
        self._lost |= dict.fromkeys(self._before - theirs, now)
        self._before = theirs
        self._lost = {name: at for name, at in self._lost.items() if now - at < REPLACED_S}
        if not self._lost:
            return set()
        nodes = set(map(node_of, self._lost))
        usable = usable_nodes([node for node in ray.nodes() if node["NodeID"] in nodes], draining())
        return {name for name in self._lost if node_of(name) in usable}

    def _end_spares(self, members: Members) -> None:
        """Where Ray Train has replaced a worker after all."""
        surplus = len(members.names) - self._task.share.max_workers
        for training, newcomer in list(self._running.items()):
            if surplus > 0 and newcomer.name in members.idle:
                ray.kill(newcomer.actor)
                del self._running[training]
                surplus -= 1

    def end(self) -> None:
        for newcomer in self._running.values():
            ray.kill(newcomer.actor)
        self._running = {}

    def _start(self, node: str, slots: int) -> None:
        name, where = f"{NAME}{next(self._numbers)}", NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": self._task.share.cpus, "scheduling_strategy": where}
        actor = JoiningWorker.options(**options).remote()  # type: ignore[attr-defined]
        training = actor.train.remote(self._task, name, slots)
        self._running[training] = _Newcomer(actor, member_name(node, name))

    def _room(self, present: set[str]) -> list[str]:
        """The nodes that can hold another worker now, each as often as it can."""
        share, free, there = self._task.share, available_resources_per_node(), Counter(map(node_of, present))
        now = monotonic()
        just_started = Counter(node_of(each.name) for each in self._running.values() if now - each.started < REPORTED_S)
        fits = {node: workers_that_fit(share, [has]) - just_started[node] for node, has in free.items()}
        if max(fits.values(), default=0) <= 0:
            return []
        reserved = reserved_for_run(self._task.run)
        nodes = [node for node in ray.nodes() if fits.get(node["NodeID"], 0) > 0 or node["NodeID"] in reserved]
        usable = usable_nodes(nodes, draining())
        return room({node: fits.get(node, 0) for node in usable}, share, reserved, there)

    def _collect(self, members: Members) -> None:
        for newcomer in self._running.values():
            newcomer.joined = newcomer.joined or newcomer.name in members.names
        running = list(self._running)
        ended, _ = ray.wait(running, num_returns=len(running), timeout=0) if running else ([], [])
        late = [each for each in running if self._is_late(self._running[each]) and each not in ended]
        for training in [*ended, *late]:
            newcomer = self._running.pop(training)
            cause = self._cause(training, newcomer)
            if cause is not None:
                logging.getLogger(__name__).warning("a worker that was to join the run has failed: %s", cause)
                self._failed += 1
        if self._failed >= ATTEMPTS:
            self._failed, self._not_before = 0, monotonic() + PAUSE_S

    def _is_late(self, newcomer: _Newcomer) -> bool:
        return not newcomer.joined and monotonic() - newcomer.started > JOIN_S

    def _cause(self, training: Any, newcomer: _Newcomer) -> str | None:
        """Why another would fail as this one has; None if it was lost after it had joined, or ended as planned."""
        if self._is_late(newcomer):
            ray.kill(newcomer.actor)
            return f"it has not joined for {JOIN_S:.0f} s"
        try:
            ray.get(training)
        except RayTaskError as error:
            if isinstance(error.cause, (Interrupted, Fenced)):
                return None
            note_failure(self._task.driver, error.cause)
            if is_final(error.cause):
                self.failure = error.cause
            return described(error.cause)
        except RayError as error:
            return None if newcomer.joined and isinstance(error, RayActorError) else described(error)
        return None


def room(fits: dict[str, int], share: Share, reserved: NodeResources, there: Counter[str]) -> list[str]:
    """Nodes that the run may start another worker on, each as often as it may.

    `fits`: usable node -> workers that its free resources hold; `there`: node -> workers of the run. Nothing reserved:
    all that is free. Else what the run has reserved on each node, and in the place of what it has on nodes that are
    gone, any other: Ray's coordinator counts a node that was killed for about 15 s more.
    """
    if not reserved:
        return [node for node in fits for _ in range(fits[node])]
    lost = workers_that_fit(share, [reserved[node] for node in reserved if node not in fits])
    elsewhere = lost - sum(there[node] for node in fits if node not in reserved)
    found = []
    for node, free in fits.items():
        allowed = workers_that_fit(share, [reserved[node]]) - there[node] if node in reserved else elsewhere
        taken = max(0, min(free, allowed))
        elsewhere -= 0 if node in reserved else taken
        found += [node] * taken
    return found
