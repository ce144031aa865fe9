"""What an elastic run has reserved on the cluster. That of a dead driver, which Ray keeps for minutes, is cancelled.

Ray's coordinator of elastic runs and data streams drops a reservation when a run ends normally, and 180 s after the
last renewal if its driver was killed. A run restarted in between would wait for its own reservation.
"""

from __future__ import annotations

import contextlib

import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.train.v2._internal.execution.context import get_train_context

from simclr_ray.storage.location import Location

COORDINATOR = "AutoscalingCoordinator"
TIMEOUT_S = 10.0

NodeResources = dict[str, dict[str, float]]
"""Node id (hex) -> what a node has, or what of it is reserved."""


def note_reservation(run: Location) -> None:
    """Stores the name of this attempt's reservation; called on a worker of Ray Train."""
    internal_kv._internal_kv_put(_key(run), f"train-{get_train_context().train_run_context.run_id}", overwrite=True)


def reserved_resources(name: str) -> NodeResources:
    """What Ray's coordinator of elastic runs now holds under this name; it looks at the cluster again for it."""
    coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
    answer: ray.ObjectRef[NodeResources] = coordinator.get_reserved_resources.remote(name, recompute=True)
    return ray.get(answer, timeout=TIMEOUT_S)


def reserved_for_run(run: Location) -> NodeResources:
    """The same for the attempt at a run that trains on this cluster; nothing where none has reserved anything."""
    name = internal_kv._internal_kv_get(_key(run))
    return reserved_resources(name.decode()) if name else {}


def drop_reservation(run: Location) -> None:
    """Cancels the reservation that an earlier driver of the run left on this cluster."""
    name = internal_kv._internal_kv_get(_key(run))
    if name:
        with contextlib.suppress(ValueError, RayError):  # no coordinator (any more): no reservation
            coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
            ray.get(coordinator.cancel_request.remote(name.decode()), timeout=TIMEOUT_S)
        internal_kv._internal_kv_del(_key(run))


def _key(run: Location) -> str:
    return f"simclr_ray/reservation/{run.uri}"
