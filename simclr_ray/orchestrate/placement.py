"""How many workers an elastic group starts with, and on which nodes: Ray Train's decision held against the cluster.

Ray counts on a view of the cluster that is up to 20 s old, and takes a node that was killed for alive for about 15 s
more. A group that is too large for the nodes that are left waits out Ray's start timeout, 60 s.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from simclr_ray.orchestrate.failure import unwrapped
from simclr_ray.orchestrate.preemption.drain import draining, staying
from simclr_ray.orchestrate.reservation import NodeResources, reserved_resources
from simclr_ray.planning.shares import Share, workers_that_fit
from simclr_ray.train.memory import too_few_workers

NODE_ID = "ray.io/node-id"
CONNECT_S = 2.0
"""A connection request that the network lost is sent again after 1 s."""
Labels = Mapping[str, str]
LOOKUP_ERRORS = (RayError, OSError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
"""Ray does not answer, or its internals are not those of 2.60."""


def unrestricted_selector(share: Share) -> list[dict[str, str]]:
    """A label selector for each worker that allows every node; `CorrectedPlacement` can only add to one that exists."""
    return [{} for _ in range(share.max_workers)]


class CorrectedPlacement(ControllerCallback, WorkerGroupCallback):
    """Starts a group of as many workers as fit on the nodes that are there, and keeps it off the others.

    A node counts if it is alive, not draining, and its raylet accepts a connection. Runs in Ray Train's controller,
    whose decision stands wherever the cluster cannot be looked up: an error raised here would be the run's failure.
    After a group whose share of a pass did not fit into its GPUs' memory the next one has more workers, or waits for
    them as for `min_workers`.

    `others_train`: given where the workers survive each other. Then each is bound to its node: the place of one whose
    node is lost would be looked for again, which Ray's head (2.60) tries without a pause, at the cost of two cores, as
    long as some node has the resources in all, though not free. While others train that have joined beside the group, a
    group of one is started beside them: wherever that fits, as they have what CorrectedPlacement would count.
    """

    def __init__(self, share: Share, others_train: Callable[[], bool] | None = None) -> None:
        self._share, self._others_train = share, others_train
        self._starting = False
        self._run_context: Any = None
        self._avoided: list[str] = []
        self._places: list[tuple[str, Labels]] = []

    def after_controller_start(self, train_run_context: Any) -> None:
        self._run_context = train_run_context

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Called before the controller decides what follows an error."""
        errors = worker_group_status.errors.values()
        enough = 1 + max((too_few_workers(unwrapped(error)) for error in errors), default=0)
        if self._share.min_workers < enough <= self._share.max_workers:
            self._share = replace(self._share, min_workers=enough)
            logging.getLogger(__name__).warning(
                "a pass does not fit into the memory of %d workers: the run goes on with %d or more", enough - 1, enough
            )

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """The controller reads the decision after this call."""
        self._avoided, self._places = [], []
        beside = self._others_train is not None and self._others_train()
        if beside:
            resize_decision.num_workers = 1
        try:
            reserved = reserved_resources(f"train-{self._run_context.run_id}")
            nodes = [node for node in ray.nodes() if workers_that_fit(self._share, [node["Resources"]])]
            usable = usable_nodes(nodes, draining())
            workers = corrected_workers(self._share, usable, reserved)
            self._avoided = [node["NodeID"] for node in nodes if node["Alive"] and node["NodeID"] not in usable]
            if workers is not None and not beside:
                resize_decision.num_workers = workers
                labels = {node["NodeID"]: node.get("Labels", {}) for node in nodes}
                self._places = [(node, labels[node]) for node in places(self._share, usable, reserved)]
        except LOOKUP_ERRORS:
            logging.getLogger(__name__).warning("Ray's own count of workers stands", exc_info=True)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Otherwise the head places workers on a killed node until it has noticed."""
        selectors = getattr(worker_group_context, "label_selector", None) or []
        avoid(self._avoided, selectors)
        if self._others_train is not None and not self._starting:  # else the last start has failed, perhaps by this
            pin(self._places, selectors)
        self._starting = True

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._starting = False


def usable_nodes(nodes: Iterable[dict[str, Any]], leaving: Container[str]) -> NodeResources:
    """Node id -> resources of those of `ray.nodes()` that a worker can start on."""
    left = staying(nodes, leaving)
    with ThreadPoolExecutor(max_workers=32) as pool:
        answers = list(pool.map(_answers, left))
    return {node["NodeID"]: node["Resources"] for node, answer in zip(left, answers, strict=True) if answer}


def _answers(node: dict[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def corrected_workers(share: Share, usable: NodeResources, reserved: NodeResources) -> int | None:
    """Workers to start, of what the run has reserved on each node; None: nothing is known that Ray does not know.

    What was reserved on a node that is gone may be had on another, if one is left that nothing is reserved on. It may
    be another run's: then the group waits out the start timeout, as it would without us. With fewer nodes than
    `min_workers` need, it waits for one.
    """
    if not usable or not reserved:
        return None
    kept = workers_that_fit(share, [reserved[node] for node in reserved if node in usable])
    lost = workers_that_fit(share, reserved.values()) - kept
    spare = workers_that_fit(share, [usable[node] for node in usable if node not in reserved])
    return max(share.min_workers, kept + min(lost, spare))


def places(share: Share, usable: NodeResources, reserved: NodeResources) -> list[str]:
    """The nodes that workers can start on, each as often as it holds one: those that the run has reserved first."""
    held = [node for node in usable if node in reserved for _ in range(workers_that_fit(share, [reserved[node]]))]
    others = [node for node in usable if node not in reserved for _ in range(workers_that_fit(share, [usable[node]]))]
    return held + others


def pin(places: list[tuple[str, Labels]], selectors: list[dict[str, str]]) -> None:
    """Adds to the label selectors, in place, the first node left that has the labels which a worker asks for already.

    With fewer places than workers, which then wait for a node, the last ones are not bound.
    """
    left = list(places)
    for selector in selectors:
        wanted = {label: value for label, value in selector.items() if label != NODE_ID}.items()
        place = next((place for place in left if wanted <= place[1].items()), None)
        if place:
            left.remove(place)
            selector[NODE_ID] = place[0]


def avoid(nodes: list[str], selectors: list[dict[str, str]]) -> None:
    """Sets in each worker's label selector, in place, that it shall not be on these nodes."""
    for selector in selectors:
        selector.pop(NODE_ID, None)
        if nodes:
            selector[NODE_ID] = f"!in({', '.join(sorted(nodes))})"
