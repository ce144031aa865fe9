"""Rank 0's decisions between steps: whether to save, to resize, to stop for a preemption, or to end the run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from time import monotonic, time

from simclr_ray.storage.run_folder import Row

LAST_SAVES_S = 1.0
REFUSED_TIMES = 6
"""A resize that did not get its workers is tried again after so many times the usual interval."""


class Interrupted(Exception):
    """This group of workers stops on purpose: its state is saved, and another group resumes from it."""


class Regroup(Exception):
    """The workers go on as another group with the state that they have: one joins, or leaves before it is taken."""


class Left(Exception):
    """This worker will be taken away; the others go on without it."""


class Ended(Exception):
    """An end was requested before the last step: the state is saved, and the run waits for its next command."""


class Action(IntEnum):
    """What all workers do after a step. Where several are due, the highest value wins."""

    CONTINUE = 0
    SAVE = 1
    """Rank 0 saves; all wait until it is done."""
    REGROUP = 2
    """Without a save: let workers in that have come, or those go whose nodes are about to be taken away."""
    RESIZE = 3
    """Save, and start again with the workers that now fit."""
    STOP = 4
    """Save, and leave the nodes that are about to be taken away."""
    END = 5
    """Save, and end."""

    @property
    def saves(self) -> bool:
        """Whether rank 0 saves, and the others wait for it."""
        return self not in (Action.CONTINUE, Action.REGROUP)


@dataclass(frozen=True)
class ClusterSignals:
    """The state of the cluster as far as training must react to it. All optional: LocalWorker has no cluster."""

    available_workers: int | None = None
    """Workers that would fit now; more than there are is a reason to start again. None: not polled yet, or the group
    grows as it is."""
    deadline: float | None = None
    """Unix time at which the first of this group's nodes is taken away; None: no notice."""
    nodes: tuple[str, ...] = ()
    """Ids of this group's nodes that will be taken away."""
    save_requested_at: float | None = None
    """When a save was last requested, such as by a rebalance recommendation; by the requester's clock, so it is only
    compared with the previous value."""
    leaving: tuple[int, ...] = ()
    """Ranks of the workers on those nodes, where the others can go on without them."""
    joining: int = 0
    """Workers that have been started in the place of lost ones, or beside the group, and wait to join."""
    end_requested: bool = False
    """Whether the run shall save and end now, as a sweep requests of a trial that it stops."""


class Control:
    """Rank 0's decisions during one attempt. The timeline of a notice that a node is taken away at `deadline`:

    first step after the notice    SAVE at once, in case the node goes early
    until the margin               CONTINUE: training uses the time that is left
    deadline - margin              STOP: the group saves and ends, so that no step is lost
    deadline                       the node is gone; the next attempt resumes on the others

    Where other workers can go on without those on the node there is no save, and REGROUP in the place of STOP.

    margin = max(stop_margin_s, 2 x the last save's duration) + 2 x the last step's duration: the final save must end
    before the deadline, and decisions are made only between steps. Without a `stop_margin_s` the group saves every
    LAST_SAVES_S until the node is gone.

    Growth waits until `settle_s` after capacity for more workers was first seen, for more that comes with it, and until
    `resize_every_s` after the start, unless the run has had more places before (`most_workers`); REFUSED_TIMES as long
    where the number is still the `refused_workers` which the last resize did not get, perhaps since another run has
    them.
    """

    def __init__(
        self,
        *,
        settle_s: float,
        resize_every_s: float,
        stop_margin_s: float | None,
        refused_workers: int | None = None,
        most_workers: int = 0,
    ) -> None:
        self._settle_s, self._resize_every_s, self._stop_margin_s = settle_s, resize_every_s, stop_margin_s
        self._refused_workers, self._most_workers = refused_workers, most_workers
        self._started = monotonic()
        self._available_since: float | None = None
        self._noticed_save: float | None = None
        self._requested_at: float | None = None
        self._decided_at = time()

    def decide(self, signals: ClusterSignals, workers: int, save_seconds: float) -> Action:
        """The action after this step; called once a step. `save_seconds`: the duration of the last save."""
        step_seconds, self._decided_at = time() - self._decided_at, time()
        if signals.end_requested:
            return Action.END
        if signals.deadline is not None and not 0 < len(signals.leaving) < workers:
            return self._until_deadline(signals.deadline, save_seconds, step_seconds)
        if signals.joining or self._must_leave(signals.deadline, step_seconds):
            return Action.REGROUP
        available = workers if signals.available_workers is None else signals.available_workers
        if signals.available_workers not in (None, self._refused_workers):
            self._refused_workers = None
        every_s = 0.0 if workers < self._most_workers else self._resize_every_s
        if available == self._refused_workers:
            every_s = REFUSED_TIMES * self._resize_every_s
        if self._growth_is_due(available > workers, every_s):
            return Action.RESIZE
        if signals.save_requested_at not in (None, self._requested_at):
            self._requested_at = signals.save_requested_at
            return Action.SAVE
        return Action.CONTINUE

    def _until_deadline(self, deadline: float, save_seconds: float, step_seconds: float) -> Action:
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

    def _must_leave(self, deadline: float | None, step_seconds: float) -> bool:
        if deadline is None or self._stop_margin_s is None:  # without a margin they train until they are gone
            return False
        return time() >= deadline - self._stop_margin_s - 2 * step_seconds

    def _growth_is_due(self, possible: bool, every_s: float) -> bool:
        now = monotonic()
        if not possible:
            self._available_since = None
            return False
        if self._available_since is None:
            self._available_since = now
        return now - self._available_since >= self._settle_s and now - self._started >= every_s


def most_workers(events: list[Row]) -> int:
    """The most workers that an attempt at the run has started with."""
    return max((event["workers"] for event in events if event["event"] in ("start", "restore")), default=0)


def refused_workers(events: list[Row], workers: int) -> int | None:
    """The number of workers that the last attempt stopped to grow to, if this one has fewer; else None."""
    before = [event for event in events if event["event"] != "attempt"][-1:]
    if before and before[0]["event"] == "resize" and before[0]["workers"]["to"] > workers:
        return before[0]["workers"]["to"]
    return None
