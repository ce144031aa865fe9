"""Where a run's wall time went: every second from its first event to its last record, by cause.

How it is counted:
- An attempt ends with its last record, an event or a metrics row. What it did after that is waiting, not lost
  work: each failure may have lost a log interval more than is shown.
- The first step of an attempt counts as first batch: its training cannot be told apart from the compilation. So a run
  of one step has no training time to speak of.
- Work is lost when a later attempt resumed from an earlier step: all that followed that step, with its saves and
  evaluations. When the step was done is estimated from the records around it (`Attempt.time_reached`).
- What no later attempt has trained again counts as training, even if the run was killed and may yet be resumed.
- The order of the file holds, not the clocks: a time before the one already reached is taken as that one. So clocks
  that differ between hosts move seconds between neighbouring categories, and these still sum to the total.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from math import inf
from statistics import median

from simclr_ray.report.attempts import DRIVER_GONE, Attempt, attempts_of
from simclr_ray.storage.run_folder import Row

TRAINING, LOST, STALLS, EVALUATION = "training", "lost, trained again", "held up by saves", "evaluation"
SETUP, FIRST_BATCH = "set-up", "first batch, compilation"
CATEGORIES = (TRAINING, LOST, STALLS, EVALUATION, SETUP, FIRST_BATCH)
"""Of an attempt. The time between two attempts is "waiting after ..." what ended the first."""
NEVER = sys.maxsize
"""A step that no run reaches."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """The account of a run."""

    seconds: dict[str, float]
    """By category: all CATEGORIES, and "waiting after ..." for each cause of waiting."""
    seconds_by_workers: dict[int, float]
    """Of the attempts, without the waiting between them."""
    restarts: dict[str, int]
    """By what ended the attempt before: failure, resize, the reason of a stop, DRIVER_GONE where no record says it."""
    step: int
    """Reached at the end."""
    steps_lost: int
    pauses: list[float]
    """Seconds from the end of each group of workers to the next group, where no restart was needed."""
    workers_lost: int
    """Survived by others, notices included."""
    workers_joined: int
    notices: int
    save_seconds: list[float]
    """How long each save took to write."""
    saves_failed: int
    checkpoints_skipped: int

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def fraction(self) -> float:
        """Training / total, the goodput itself."""
        return _part(self.seconds[TRAINING], self.total_s)

    @property
    def held_up_fraction(self) -> float:
        """The part of the time after first batches, evaluations apart, in which a save held training up."""
        stalls = self.seconds[STALLS]
        return _part(stalls, self.seconds[TRAINING] + stalls)

    @property
    def mean_workers(self) -> float:
        """Over the time of the attempts."""
        weighted = sum(workers * seconds for workers, seconds in self.seconds_by_workers.items())
        return _part(weighted, sum(self.seconds_by_workers.values()))


def account(events: Sequence[Row], rows: Sequence[Row], *, now: float | None = None) -> Goodput:
    """From events.jsonl (at least one event) and metrics.jsonl. `now`: unix time, for a run that goes on."""
    attempts = attempts_of(events, rows)
    seconds, by_workers = dict.fromkeys(CATEGORIES, 0.0), Counter[int]()
    resumed, steps_lost = _resumed(attempts), 0
    clock = attempts[0].begin
    for attempt, step, following in zip(attempts, resumed, [*attempts[1:], None], strict=True):
        until = following.begin if following else now or attempt.end
        end = max(clock, attempt.end)
        if following is None and attempt.cause is None:  # it goes on
            end = max(end, until)
        for category, spent in _spent(attempt, step, clock, end).items():
            seconds[category] += spent
        by_workers.update(attempt.seconds_by_workers(clock, end))
        steps_lost += max(0, attempt.last_step - max(step, attempt.from_step))
        clock = max(end, until)
        if clock > end:
            waiting = f"waiting after {attempt.cause or DRIVER_GONE}"
            seconds[waiting] = seconds.get(waiting, 0.0) + clock - end
    kinds = Counter(event["event"] for event in events)
    regroups = [event for event in events if event["event"] == "regroup"]
    return Goodput(
        seconds=seconds,
        seconds_by_workers=dict(by_workers),
        restarts=dict(Counter(attempt.cause or DRIVER_GONE for attempt in attempts[:-1])),
        step=attempts[-1].last_step,
        steps_lost=steps_lost,
        pauses=[event["pause_s"] for event in regroups],
        workers_lost=sum(event["lost"] for event in regroups),
        workers_joined=sum(event["joined"] for event in regroups),
        notices=kinds["notice"],
        save_seconds=[event["seconds"] for event in events if event["event"] == "save"],
        saves_failed=kinds["save_failed"],
        checkpoints_skipped=kinds["skipped_checkpoint"],
    )


def _resumed(attempts: list[Attempt]) -> list[int]:
    """For each attempt the lowest step from which a later one went on, NEVER if none did."""
    starts = [attempt.from_step if attempt.ready < inf else NEVER for attempt in attempts[:0:-1]]
    return list(accumulate(starts, min, initial=NEVER))[::-1]


def _spent(attempt: Attempt, resumed: int, begin: float, end: float) -> dict[str, float]:
    """The seconds from `begin` to `end` by category: cut into set-up, first batch, kept and lost, in this order."""
    ready = min(max(attempt.ready, begin), end)
    first = min(max(attempt.reached[0][1], ready), end) if attempt.reached else end
    cut = min(max(attempt.time_reached(resumed), first), end)
    # An evaluation that the attempt before could not finish comes before the first batch.
    pending = sum(seconds for step, seconds in attempt.evaluations if step <= attempt.from_step)
    pending = min(pending, first - ready)
    evaluation = sum(seconds for step, seconds in attempt.evaluations if attempt.from_step < step <= resumed)
    evaluation = min(evaluation, cut - first)
    stalls = min(sum(seconds for step, seconds in attempt.stalls if step <= resumed), cut - first - evaluation)
    return {
        TRAINING: cut - first - evaluation - stalls,
        LOST: end - cut,
        STALLS: stalls,
        EVALUATION: pending + evaluation,
        SETUP: ready - begin,
        FIRST_BATCH: first - ready - pending,
    }


def table(goodput: Goodput) -> str:
    """The account for a terminal: what the time went into, and the counts behind it."""
    total, training = goodput.total_s, goodput.seconds[TRAINING]
    alive = sum(goodput.seconds_by_workers.values())
    workers = ", ".join(f"{n} for {_part(s, alive):.1%}" for n, s in sorted(goodput.seconds_by_workers.items()))
    restarts = ", ".join(f"{count} after {cause}" for cause, count in goodput.restarts.items())
    typical = f", {median(goodput.save_seconds):.2f} s each (median)" if goodput.save_seconds else ""
    pauses = f", {median(goodput.pauses):.2f} s each (median)" if goodput.pauses else ""
    rows = [*goodput.seconds.items(), ("total", total)]
    return "\n".join(
        [
            f"goodput {goodput.fraction:.2%}: {_clock(training)} of training in {_clock(total)}",
            "",
            f"{'':<30}{'seconds':>12}{'%':>9}",
            *(f"{name:<30}{seconds:>12,.1f}{100 * _part(seconds, total):>9.2f}" for name, seconds in rows),
            "",
            f"restarts  {sum(goodput.restarts.values())}" + (f" ({restarts})" if restarts else ""),
            f"survived  {goodput.workers_lost} workers lost, {goodput.workers_joined} joined{pauses}",
            f"steps     {goodput.step:,} reached, {goodput.steps_lost:,} lost and trained again",
            f"notices   {goodput.notices}",
            f"saves     {len(goodput.save_seconds)}{typical}, {goodput.saves_failed} failed; training waited for "
            f"them {goodput.held_up_fraction:.2%} of its time",
            f"damaged   {goodput.checkpoints_skipped} checkpoints passed over",
            f"workers   {goodput.mean_workers:.2f} on average ({workers})",
        ]
    )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _part(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
