"""Watches over one machine of the cluster: when its cloud or a SIGTERM announces its end, its Ray node is drained.

    python -m simclr_ray.orchestrate.preemption --cloud aws

It runs beside `ray start` on every machine. The machine's Ray node is drained (see notice), so that training saves
before the deadline. A failed request is repeated; nothing but a signal or the deadline ends the watch.
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
"""The same in all three clouds, and answered by the machine's own host."""
RETRY_S = 1.0
LEAVE_BEFORE_S = 1.0
"""Time to end in, where the watcher is a container's main process and its end is the container's."""
TERMINATED = "SIGTERM"

SignalQueue = queue.SimpleQueue
"""The numbers of those that have come. No other queue may be filled by a signal handler."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    cloud: Literal["aws", "gcp", "azure", "none"]
    """Whose metadata server is polled; none: SIGTERM alone is watched for."""
    metadata: str = METADATA
    """Base URL of the metadata server."""
    poll_s: float = 2.0
    """Seconds between two questions."""
    grace_s: float = 30.0
    """Seconds from SIGTERM to the end, such as Kubernetes' terminationGracePeriodSeconds."""
    address: str | None = None
    """host:port of the cluster; None: RAY_ADDRESS, else the cluster of the Ray on this machine."""
    node_id: str | None = None
    """The one Ray node to drain (hex); None: all whose raylet runs here, for they go with the machine."""


def main(arguments: Arguments) -> int:
    signals = _caught()
    try:
        nodes = nodes_here(arguments.address, arguments.node_id)
        _log(f"watching {arguments.cloud} for Ray node {', '.join(nodes)}")
    except NoAnswer as error:
        _log(f"watching {arguments.cloud}; at the notice a Ray node will be looked for again: {error}")
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
    """Waits for the notice that this machine goes, drains it, and returns shortly before the deadline.

    A SIGTERM is such a notice; after a cloud's it may bring the deadline forward (Kubernetes evicts the pods of a
    machine that goes). A second one, or SIGINT, ends the watch at once. `drain` takes the reason and the deadline and
    gives the nodes; it and `save` raise NoAnswer to be tried again.
    """
    notice = _first_notice(poll, save, signals, poll_s, grace_s)
    while notice is not None:
        received = _leave(drain, notice, signals)
        sooner = received == signal.SIGTERM and notice.reason != TERMINATED
        notice = Notice(TERMINATED, min(time() + grace_s, notice.deadline)) if sooner else None


def _first_notice(
    poll: Poll, save: Callable[[], None], signals: SignalQueue[int], poll_s: float, grace_s: float
) -> Notice | None:
    """The cloud's notice or SIGTERM, whichever comes first; None at SIGINT. Each risk on the way asks for one save."""
    saved: set[Risk] = set()
    answering = True
    while True:
        try:
            answer = poll()
            if isinstance(answer, Notice):
                return answer
            if answer is not None and answer not in saved:
                save()
                saved.add(answer)
                _log(f"{answer.reason}: save requested")
            if not answering:
                _log("answered again")
            answering = True
        except NoAnswer as error:
            if answering:
                _log(f"no answer, asking on: {error}")
            answering = False
        received = _received(signals, poll_s)
        if received is not None:
            return Notice(TERMINATED, time() + grace_s) if received == signal.SIGTERM else None


def _leave(drain: Callable[[str, float], list[str]], notice: Notice, signals: SignalQueue[int]) -> int | None:
    """Drains, then waits until shortly before the deadline. The signal that came first, or None."""
    _log(f"{notice.reason}: {notice.deadline - time():.1f} s left")
    drained, received = False, None
    while received is None:
        if not drained:
            drained = _tried(drain, notice)
        left = notice.deadline - LEAVE_BEFORE_S - time()
        if left <= 0:
            break
        received = _received(signals, left if drained else min(left, RETRY_S))
    cause = signal.Signals(received).name if received else "the deadline"
    _log(f"{cause} ends the wait, {'' if drained else 'not '}drained")
    return received


def _tried(drain: Callable[[str, float], list[str]], notice: Notice) -> bool:
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


def _caught() -> SignalQueue[int]:
    signals: SignalQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: signals.put(received))
    return signals


def _received(signals: SignalQueue[int], seconds: float) -> int | None:
    try:
        return signals.get(timeout=seconds)
    except queue.Empty:
        return None


def _log(line: str) -> None:
    one_line = " ".join(line.split())  # Ray's errors have several
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} preemption: {one_line}", file=sys.stderr, flush=True)
