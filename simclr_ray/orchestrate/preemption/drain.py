"""Nodes that will be taken away, recorded in Ray as draining: each machine's watcher sets it, and rank 0 polls it.

A drain kills nothing: Ray schedules no new work on the node, and an idle node leaves at once.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from time import time
from typing import Any

import ray._private.services as services
import ray._private.state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.experimental import internal_kv

from simclr_ray.cloud_notice import NoAnswer

SAVE_KEY = "simclr_ray/save_requested_at"
TIMEOUT_S = 5.0


def draining() -> dict[str, float]:
    """Node id (hex) -> when it goes (unix seconds; inf: no time was given) of the living nodes that are drained.

    One round trip to the head, measured 0.2 ms: cheap enough to poll every second. Needs a process connected to Ray.
    """
    nodes = ray._private.state.state.get_draining_nodes()
    return {node: milliseconds / 1000 if milliseconds else math.inf for node, milliseconds in nodes.items()}


def staying(nodes: Iterable[dict[str, Any]], leaving: Container[str]) -> list[dict[str, Any]]:
    """Those of `ray.nodes()` that are alive and not `leaving`, the draining ones."""
    return [node for node in nodes if node["Alive"] and node["NodeID"] not in leaving]


def save_requested_at() -> float | None:
    """When a watcher last requested a save (unix seconds by its clock: only compare it with the previous value)."""
    value = internal_kv._internal_kv_get(SAVE_KEY)
    return float(value) if value else None


def request_save(address: str | None) -> None:
    """Requests a save of every run on the cluster. Raises NoAnswer."""
    with _gcs(address) as gcs:
        gcs.internal_kv_put(SAVE_KEY.encode(), str(time()).encode(), True, None, timeout=TIMEOUT_S)


def nodes_here(address: str | None, node_id: str | None) -> list[str]:
    """Ids (hex) of the living Ray nodes on this machine, or `node_id` alone. Raises NoAnswer if there is none."""
    with _gcs(address) as gcs:
        return _nodes_here(gcs, node_id)


def drain_here(address: str | None, node_id: str | None, reason: str, deadline: float) -> list[str]:
    """Drains `nodes_here` with a `deadline` (unix seconds) and returns their ids. Raises NoAnswer."""
    with _gcs(address) as gcs:
        nodes = _nodes_here(gcs, node_id)
        for node in nodes:
            why = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
            accepted, refusal = gcs.drain_node(node, why, reason, int(deadline * 1000), timeout=TIMEOUT_S)
            if not accepted:
                raise NoAnswer(f"Ray refuses to drain {node}: {refusal}")
    return nodes


def _nodes_here(gcs: GcsClient, node_id: str | None) -> list[str]:
    # Ray accepts a drain of an unknown node, and this machine may hold raylets of other clusters: so both are checked.
    infos = gcs.get_all_node_info(timeout=TIMEOUT_S).values()
    living = {info.node_id.hex() for info in infos if info.state == GcsNodeInfo.ALIVE}
    local = {node_id} if node_id else services.find_node_ids()
    if not living & local:
        raise NoAnswer(f"none of the cluster's {len(living)} nodes is {node_id or 'a raylet process on this machine'}")
    return sorted(living & local)


@contextmanager
def _gcs(address: str | None) -> Iterator[GcsClient]:
    """A client of the cluster at `address` (host:port), else RAY_ADDRESS, else of the one that this machine is in."""
    try:
        where = services.canonicalize_bootstrap_address_or_die(address or "auto")
        # Where nothing listens, GcsClient would wait for 40 seconds.
        socket.create_connection(services.extract_ip_port(where), timeout=TIMEOUT_S).close()
        yield GcsClient(address=where)
    except (OSError, RayError) as error:
        raise NoAnswer(f"Ray: {error}") from None
