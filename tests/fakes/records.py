"""Records of fictitious runs: written by hand, or simulated with a known goodput."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from simclr_ray.report.goodput import EVALUATION, FIRST_BATCH, LOST, SETUP, STALLS, TRAINING
from simclr_ray.storage.run_folder import Row


def event(kind: str, time: float, step: int, **fields: Any) -> Row:
    return {"event": kind, "time": time, "step": step, **fields}


def begun(time: float, step: int, workers: int = 2) -> list[Row]:
    """Two seconds of set-up, three for the first batch."""
    return [
        event("attempt", time, step, workers=workers),
        event("restore" if step else "start", time + 2, step, workers=workers),
        event("first_step", time + 5, step + 1),
    ]


def save(time: float, step: int, stall_s: float = 0.5) -> Row:
    """A save event; its step was done, and the copy made, a second before."""
    return event("save", time, step, seconds=1.0, stall_s=stall_s)


@dataclass
class Simulator:
    """A run with attempts of random length and end; `truth`: seconds by category."""

    random: random.Random
    skew_s: float = 0.0
    events: list[Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    truth: dict[str, float] = field(default_factory=dict)
    time: float = 1000.0
    saved: int = 0
    steps_lost: int = 0

    def passes(self, category: str, seconds: float) -> None:
        self.truth[category] = self.truth.get(category, 0.0) + seconds
        self.time += seconds

    def attempt(self, died: Row | None) -> Row | None:
        """Steps of a second, saved every 10, a metrics row every 2; returns the failure event for the next attempt."""
        clock = self.random.uniform(-self.skew_s, self.skew_s)
        workers, step = self.random.choice([1, 2, 3]), self.saved
        self.rows = [row for row in self.rows if row["step"] <= step]

        def note(kind: str, **fields: Any) -> None:
            self.events.append(event(kind, self.time + clock, step, **fields))

        note("attempt", workers=workers)
        if died:
            self.events.append(died)
        self.passes(SETUP, self.random.uniform(0, 5))
        note("restore" if step else "start", workers=workers)
        end = step + self.random.randrange(40)
        seen = dict(self.truth)
        while step < end:
            first = step == self.saved and self.events[-1]["event"] in ("start", "restore")
            self.passes(FIRST_BATCH if first else TRAINING, 1.0)
            step += 1
            if first:
                note("first_step")
            if step % 2 == 0:
                self.rows.append({"step": step, "time": self.time + clock})
            if step % 10 == 0:
                self.passes(STALLS, 0.25)
                note("save", seconds=0.0, stall_s=0.25)
                self.saved = step
            if step % 15 == 0:
                self.passes(EVALUATION, 4.0)
                note("evaluate", seconds=4.0)
            if step == self.saved:
                seen = dict(self.truth)
        return self.ends(note, step, clock, seen)

    def ends(self, note: Any, step: int, clock: float, seen: dict[str, float]) -> Row | None:
        if self.random.random() < 0.4:
            self.saved = step
            note("stop", reason="preemption")
            self.passes("waiting after preemption", self.random.uniform(0.1, 20))
            return None
        # All time since the last save is lost, except set-up and first batch, which keep their categories.
        for name in (TRAINING, STALLS, EVALUATION):
            wasted = self.truth.get(name, 0.0) - seen.get(name, 0.0)
            self.truth[name] = seen.get(name, 0.0)
            self.truth[LOST] = self.truth.get(LOST, 0.0) + wasted
        self.steps_lost += step - self.saved
        died = event("failure", self.time + clock, step, cause="killed")
        self.passes("waiting after failure", self.random.uniform(0.1, 20))
        return died


def simulated(seed: int, skew_s: float = 0.0) -> Simulator:
    run, died = Simulator(random.Random(seed), skew_s), None
    for _ in range(run.random.randint(2, 8)):
        died = run.attempt(died)
    run.events.append(event("attempt", run.time, run.saved, workers=1))
    run.events += [died] if died else []
    run.events.append(event("restore", run.time, run.saved, workers=1))
    return run
