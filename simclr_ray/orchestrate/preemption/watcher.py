"""Watches one machine of the cluster for a preemption notice of its cloud or a SIGTERM, and then drains its Ray node.

    python -m simclr_ray.orchestrate.preemption --cloud aws

It runs beside `ray start` on every machine. Training polls for draining nodes and saves before the deadline. Requests
that fail are retried; only a signal or the deadline ends the watch.
"""

from __future__ import annotations

import queue
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from time import time
from typing import Literal

from simclr_ray.cloud_notice import Aws, NoAnswer, Notice, Poll, Risk, poll_azure, poll_gcp
from simclr_ray.orchestrate.preemption.drain import drain_here, nodes_here, request_save

METADATA = "http://169.254.169.254"
"""The same address in all three clouds; the machine's own host serves it."""
RETRY_S = 1.0
LEAVE_BEFORE_S = 1.0
"""The watcher ends so long before the deadline: where it is a container's main process, its end is the container's."""
TERMINATED = "SIGTERM"

SignalQueue = queue.SimpleQueue
"""Numbers of the received POSIX signals. SimpleQueue.put is reentrant, so a signal handler may call it."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    cloud: Literal["aws", "gcp", "azure", "none"]
    """The cloud whose metadata server is polled; none: only SIGTERM is watched for."""
    metadata: str = METADATA
    """Base URL of the metadata server."""
    poll_s: float = 2.0
    """Seconds between two polls."""
    grace_s: float = 30.0
    """Seconds from SIGTERM to the end, such as Kubernetes' terminationGracePeriodSeconds."""
    address: str | None = None
    """host:port of the cluster; None: RAY_ADDRESS, else the cluster of the Ray on this machine."""
    node_id: str | None = None
    """The one Ray node to drain (hex); None: all whose raylet runs on this machine."""


def main(arguments: Arguments) -> int:
    signals = _signal_queue()
    try:
        nodes = nodes_here(arguments.address, arguments.node_id)
        _log(f"watching {arguments.cloud} for Ray node {', '.join(nodes)}")
    except NoAnswer as error:
        _log(f"watching {arguments.cloud}; will look for a Ray node again at the notice: {error}")
    except ValueError as error:
        print(f"error: --address {arguments.address}: {error}", file=sys.stderr)
        return 2
    watch(
        _poll_of(arguments.cloud, arguments.metadata),
        partial(drain_here, arguments.address, arguments.node_id),
        partial(request_save, arguments.address),
        signals,
        poll_s=arguments.poll_s,
        grace_s=arguments.grace_s,
    )
    return 0


def watch(
    poll: Poll,
    drain: Callable[[str, float], list[str]],
    save: Callable[[], None],
    signals: SignalQueue[int],
    *,
    poll_s: float,
    grace_s: float,
) -> None:
    """Waits for the notice that this machine is taken away, drains it, and returns shortly before the deadline.

    A SIGTERM is such a notice; after a cloud's it may bring the deadline forward (Kubernetes evicts the pods of a
    preempted machine). A second SIGTERM, or SIGINT, ends the watch at once. `drain` takes the reason and the deadline
    and returns the nodes; `drain` and `save` raise NoAnswer to be retried.
    """
    notice = _first_notice(poll, save, signals, poll_s, grace_s)
    while notice is not None:
        received = _drain_and_wait(drain, notice, signals)
        sooner = received == signal.SIGTERM and notice.reason != TERMINATED
        notice = Notice(TERMINATED, min(time() + grace_s, notice.deadline)) if sooner else None


def _first_notice(
    poll: Poll, save: Callable[[], None], signals: SignalQueue[int], poll_s: float, grace_s: float
) -> Notice | None:
    """The cloud's notice or SIGTERM, whichever comes first; None at SIGINT. Each risk before it requests one save."""
    saved: set[Risk] = set()
    answering = True
    while True:
        try:
            found = poll()
            if isinstance(found, Notice):
                return found
            if found is not None and found not in saved:
                save()
                saved.add(found)
                _log(f"{found.reason}: requested a save")
            if not answering:
                _log("requests succeed again")
            answering = True
        except NoAnswer as error:
            if answering:
                _log(f"request failed, retrying: {error}")
            answering = False
        received = _next_signal(signals, poll_s)
        if received is not None:
            return Notice(TERMINATED, time() + grace_s) if received == signal.SIGTERM else None


def _drain_and_wait(drain: Callable[[str, float], list[str]], notice: Notice, signals: SignalQueue[int]) -> int | None:
    """Drains, then waits until shortly before the deadline. Returns the signal that ended the wait, or None."""
    _log(f"{notice.reason}: {notice.deadline - time():.1f} s left")
    drained, received = False, None
    while received is None:
        if not drained:
            drained = _try_to_drain(drain, notice)
        left = notice.deadline - LEAVE_BEFORE_S - time()
        if left <= 0:
            break
        received = _next_signal(signals, left if drained else min(left, RETRY_S))
    end = signal.Signals(received).name if received else "the deadline"
    _log(f"{end} ends the wait, {'' if drained else 'not '}drained")
    return received


def _try_to_drain(drain: Callable[[str, float], list[str]], notice: Notice) -> bool:
    try:
        _log(f"drained {', '.join(drain(notice.reason, notice.deadline))}")
    except NoAnswer as error:
        _log(f"not drained yet: {error}")
        return False
    return True


def _poll_of(cloud: str, metadata: str) -> Poll:
    polls: dict[str, Poll] = {
        "aws": Aws(metadata).poll,
        "gcp": partial(poll_gcp, metadata),
        "azure": partial(poll_azure, metadata),
        "none": lambda: None,
    }
    return polls[cloud]


def _signal_queue() -> SignalQueue[int]:
    """A queue that SIGTERM and SIGINT are put into from now on."""
    signals: SignalQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: signals.put(received))
    return signals


def _next_signal(signals: SignalQueue[int], seconds: float) -> int | None:
    try:
        return signals.get(timeout=seconds)
    except queue.Empty:
        return None


def _log(line: str) -> None:
    one_line = " ".join(line.split())  # Ray's errors have several
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} preemption: {one_line}", file=sys.stderr, flush=True)
