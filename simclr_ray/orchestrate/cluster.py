"""Joins a Ray cluster or starts a local one, and selects the node of rank 0."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray._common.network_utils import parse_address
from ray._private.utils import read_ray_address
from ray.exceptions import RayTaskError

from simclr_ray.config import BadInput
from simclr_ray.planning.shares import Share, TooSmall, workers_that_fit

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""Ray Train and Tune train in a thread, and glibc returns the memory that a thread frees to the system, despite
`keep_freed_memory`: 45,000 page faults a step of a small ResNet-18, and 3 to 8 % of its time."""

WITHOUT_BF16 = re.compile(r"accelerator_type:(K\d|M\d|P\d|V100|T4|TITAN-V|GeForce-GTX-|GeForce-RTX-20)")
"""GPUs, as Ray calls them."""

ASK_EVERY_S = 2.0
"""Between two looks at a cluster that is too small as yet."""

MARKET, ON_DEMAND = "ray.io/market-type", "on-demand"


def join_or_start() -> None:
    """Joins the cluster that this process belongs to (a job, RAY_ADDRESS, one on this host), or starts a local one."""
    if ray.is_initialized():
        return
    # Train workers import this package from the driver's path; their output is in Ray's logs, errors are returned.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # Unused processes, each with seconds of imports: our own watcher handles notices, and workers that Ray prestarts
    # have another environment than those that it then needs.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    ray.init(
        address="local" if recorded_cluster_ended() else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
        include_dashboard=False,
        runtime_env={"env_vars": ONE_ARENA},
    )


def recorded_cluster_ended() -> bool:
    """Whether the cluster that `ray start` recorded on this host accepts no connections any more.

    Only `ray stop` removes the record. Where the head was killed, ray.init would try its address for a quarter of an
    hour and fail. An address that the user gave (RAY_ADDRESS) is not ours to doubt.
    """
    recorded = None if os.environ.get("RAY_ADDRESS") else read_ray_address()
    parsed = parse_address(recorded) if recorded else None
    if parsed is None:
        return False
    host, port = parsed
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return True
    return False


@contextmanager
def bad_input_unwrapped() -> Iterator[None]:
    """Raises the BadInput of a task as it is, in one line; Ray wraps it and adds lines about its retries."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BadInput):
            raise BadInput(str(error.cause).splitlines()[0]) from None
        raise


def started_here() -> bool:
    """Whether this process started the cluster that it is connected to, which is then local and ends with it."""
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


def once_large_enough(share: Callable[[], Share], wait_s: float) -> Share:
    """What `share` returns, asked again for `wait_s` while it raises TooSmall: machines may still boot.

    Raises TooSmall after that, and at once in a cluster that this process has started, which does not grow.
    """
    end, told = time.monotonic() + (0.0 if started_here() else wait_s), False
    while True:
        try:
            return share()
        except TooSmall as lack:
            if time.monotonic() >= end:
                raise
            if not told:
                print(f"waiting up to {wait_s:.0f} s for machines (elasticity.start_wait_s): {lack}", flush=True)
                told = True
        time.sleep(min(ASK_EVERY_S, wait_s))


def rank_0_selector(share: Share) -> list[dict[str, str]] | None:
    """Node labels for each worker: the first, which is rank 0, goes to an on-demand node, which is not preempted.

    None if no node with the label that clusters/ gives can hold a worker. A run that began with such a node waits for
    one at each later attempt.
    """
    for node in ray.nodes():
        stays = node["Alive"] and node["Labels"].get(MARKET) == ON_DEMAND
        if stays and workers_that_fit(share, [node["Resources"]]):
            return [{MARKET: ON_DEMAND}] + [{} for _ in range(share.max_workers - 1)]
    return None


def gpus_have_bf16() -> bool:
    """Whether no node has GPUs of a kind without bf16, as Ray names them."""
    return not any(map(WITHOUT_BF16.match, ray.cluster_resources()))
