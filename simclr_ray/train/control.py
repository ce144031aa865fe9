"""What rank 0 decides between two steps, and how all workers come to act on it at the same one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from time import monotonic, time

from simclr_ray.storage.run_folder import Row

LAST_SAVES_S = 1.0
REFUSED_TIMES = 6
"""Room that a resize did not get is tried again after so many times the usual interval."""


class Interrupted(Exception):
    """This group of workers ends here on purpose: its state is saved, and another group goes on from it."""


class Ended(Exception):
    """The run was asked to end before its last step: its state is saved, and nobody goes on for now."""


class Action(IntEnum):
    """The higher wins where several are due."""

    CONTINUE = 0
    SAVE = 1
    """Rank 0 saves and waits for it; the others meet it again in the next step."""
    RESIZE = 2
    """Save, and start again with the workers that now fit."""
    STOP = 3
    """Save, and leave the nodes that are about to be taken away."""
    END = 4
    """Save, and end."""


@dataclass(frozen=True)
class Signals:
    """What the cluster says to a worker. All optional: a process of its own has no cluster."""

    available_workers: int | None = None
    """Workers that would fit now; more than there are is a reason to grow. None: not known yet."""
    deadline: float | None = None
    """Unix time at which the first of this group's nodes is taken away; None: no notice."""
    nodes: tuple[str, ...] = ()
    """Those nodes."""
    save_asked_at: float | None = None
    """When a save was last asked for, by the asker's clock; a rebalance recommendation asks for one."""
    end_asked: bool = False
    """Whether the run shall end where it is, as a sweep asks of a trial that it gives up."""


class Control:
    """Rank 0's decisions over one attempt.

    A notice is answered with a save at once. Then training goes on until `stop_margin_s` (or twice the time of that
    save) and two steps before the deadline, where the group saves and stops: nothing is lost. Without a margin it saves
    every LAST_SAVES_S until the node is gone.

    Growth waits until `settle_s` after capacity for more workers was first seen, for more that comes with it, and until
    `resize_every_s` after the start; REFUSED_TIMES as long where the number is still the `refused_workers` which the
    last resize did not get, perhaps since another run has them.
    """

    def __init__(
        self, *, settle_s: float, resize_every_s: float, stop_margin_s: float | None, refused_workers: int | None = None
    ) -> None:
        self._settle_s, self._resize_every_s, self._stop_margin_s = settle_s, resize_every_s, stop_margin_s
        self._refused_workers = refused_workers
        self._started = monotonic()
        self._available_since: float | None = None
        self._noticed_save: float | None = None
        self._asked_at: float | None = None
        self._decided_at = time()

    def decide(self, signals: Signals, workers: int, save_seconds: float) -> Action:
        """`save_seconds`: how long the last save took. Asked once a step."""
        step_seconds, self._decided_at = time() - self._decided_at, time()
        if signals.end_asked:
            return Action.END
        if signals.deadline is not None:
            return self._before_the_end(signals.deadline, save_seconds, step_seconds)
        available = workers if signals.available_workers is None else signals.available_workers
        if signals.available_workers not in (None, self._refused_workers):
            self._refused_workers = None
        every_s = self._resize_every_s * (REFUSED_TIMES if available == self._refused_workers else 1)
        if self._growth_is_due(available > workers, every_s):
            return Action.RESIZE
        if signals.save_asked_at not in (None, self._asked_at):
            self._asked_at = signals.save_asked_at
            return Action.SAVE
        return Action.CONTINUE

    def _before_the_end(self, deadline: float, save_seconds: float, step_seconds: float) -> Action:
        now = time()
        if self._noticed_save is None:
            self._noticed_save = now
            return Action.SAVE
        if self._stop_margin_s is not None:
            margin = max(self._stop_margin_s, 2 * save_seconds) + 2 * step_seconds
            return Action.STOP if now >= deadline - margin else Action.CONTINUE
        if now - self._noticed_save < LAST_SAVES_S:
            return Action.CONTINUE
        self._noticed_save = now
        return Action.SAVE

    def _growth_is_due(self, possible: bool, every_s: float) -> bool:
        now = monotonic()
        if not possible:
            self._available_since = None
            return False
        if self._available_since is None:
            self._available_since = now
        return now - self._available_since >= self._settle_s and now - self._started >= every_s


def refused_workers(events: list[Row], workers: int) -> int | None:
    """The number of workers that the last attempt stopped for, if this one did not get it: another run has it."""
    before = [event for event in events if event["event"] != "attempt"][-1:]
    if before and before[0]["event"] == "resize" and before[0]["workers"]["to"] > workers:
        return before[0]["workers"]["to"]
    return None
