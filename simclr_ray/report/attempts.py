"""The attempts at a run, out of its events: when each began, was ready, reached its steps, ended, and why."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from simclr_ray.storage.run_folder import Row

READY = ("start", "restore")
SAVES = ("save", "save_failed")
ENDS = ("resize", "stop", "failure", "gave_up", "done")
# A notice is none of these: its step is that of the last save.
PROGRESS = ("first_step", "metrics", "evaluate", *SAVES, *ENDS)
DRIVER_GONE = "driver gone"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One group of workers, from its start to its last record; unix times by its own clock."""

    begin: float
    ready: float
    """When model and optimizer were restored or drawn; infinite if they never were."""
    end: float
    """Its last record."""
    cause: str | None
    """What ended it: failure, resize, the reason of a stop, done, or DRIVER_GONE; None if no record says it."""
    sizes: list[tuple[float, int]]
    """(from when, workers): it loses and gains workers without an end."""
    from_step: int
    reached: list[tuple[int, float]]
    """(step, time) of every record of a step of its own, ascending."""
    evaluations: list[tuple[int, float]]
    """(step, seconds)"""
    stalls: list[tuple[int, float]]
    """(step, seconds) of training held up by each save."""

    @property
    def workers(self) -> int:
        """At its end."""
        return self.sizes[-1][1]

    def seconds_by_workers(self, begin: float, end: float) -> dict[int, float]:
        """The time between the two by the number of workers."""
        found: dict[int, float] = {}
        starts = [begin, *(min(max(time, begin), end) for time, _ in self.sizes[1:]), end]
        for (_, workers), start, following in zip(self.sizes, starts[:-1], starts[1:], strict=True):
            found[workers] = found.get(workers, 0.0) + following - start
        return found

    @property
    def last_step(self) -> int:
        return self.reached[-1][0] if self.reached else self.from_step

    def time_reached(self, step: int) -> float:
        """When `step` was done: in proportion to steps between the nearest two records.

        Infinite if no later step is recorded, minus infinite if no earlier one is.
        """
        before = max((record for record in self.reached if record[0] <= step), default=None)
        after = min((record for record in self.reached if record[0] > step), default=None)
        if after is None or before is None:
            return inf if after is None else -inf
        done = (step - before[0]) / (after[0] - before[0])
        return before[1] + (after[1] - before[1]) * done


def attempts_of(events: Sequence[Row], rows: Sequence[Row]) -> list[Attempt]:
    """In order. A failure is recorded by the attempt after the one it ended; a metrics row is placed by its time."""
    groups: list[list[Row]] = []
    for event in events:
        kind = event["event"]
        if kind == "failure":
            if len(groups) < 2:  # the dead attempt left nothing else
                groups.insert(0, [])
            groups[max(0, len(groups) - 2)].append(event)
        elif not groups or kind == "attempt" or (kind in READY and any(e["event"] in READY for e in groups[-1])):
            groups.append([event])
        else:
            groups[-1].append(event)
    begins = list(accumulate((group[0]["time"] for group in groups), max))
    for row in rows:
        groups[max(0, bisect_right(begins, row["time"]) - 1)].append(row | {"event": "metrics"})
    return [_attempt(group) for group in groups]


def _attempt(group: list[Row]) -> Attempt:
    ready = next((event for event in group if event["event"] in READY), None)
    from_step = ready["step"] if ready else 0
    ends = [event for event in group if event["event"] in ENDS]
    saves = [event for event in group if event["event"] in SAVES]
    return Attempt(
        begin=group[0]["time"],
        ready=ready["time"] if ready else inf,
        end=max(event["time"] for event in group),
        cause=_cause(ends[-1]) if ends else None,
        sizes=_sizes(group),
        from_step=from_step,
        reached=sorted(
            (event["step"], _time_of_step(event))
            for event in group
            if ready and event["event"] in PROGRESS and event["step"] > from_step
        ),
        evaluations=[(event["step"], event["seconds"]) for event in group if event["event"] == "evaluate"],
        stalls=[(save["step"], save["stall_s"]) for save in saves],
    )


def _sizes(group: list[Row]) -> list[tuple[float, int]]:
    first = next((event["workers"] for event in group if event["event"] in ("attempt", *READY)), 0)
    later = [(event["time"], event["workers"]["to"]) for event in group if event["event"] == "regroup"]
    return [(group[0]["time"], first), *later]


def _time_of_step(event: Row) -> float:
    """A save is noted when it has been written; its step was done before that."""
    return event["time"] - event["seconds"] if event["event"] in SAVES else event["time"]


def _cause(end: Row) -> str:
    if end["event"] in ("failure", "gave_up"):
        return "failure" if end["cause"] else DRIVER_GONE
    return end["reason"] if end["event"] == "stop" else end["event"]
