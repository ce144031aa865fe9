"""Every second of a run is accounted for, under the category that it was spent on."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from simclr_ray.config import BadInput
from simclr_ray.report.goodput import (
    CATEGORIES,
    EVALUATION,
    FIRST_BATCH,
    LOST,
    SETUP,
    STALLS,
    TRAINING,
    Goodput,
    account,
    table,
)
from simclr_ray.report.run import read_run, summary

Row = dict[str, Any]
SCRIPT = Path(__file__).parent.parent / "experiments" / "report.py"


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
    """Its step was done, and the copy made, a second before it is noted."""
    return event("save", time, step, seconds=1.0, stall_s=stall_s)


def row(time: float, step: int) -> Row:
    return {"time": time, "step": step}


def spent(goodput: Goodput) -> dict[str, float]:
    """What is not zero."""
    return {name: round(seconds, 6) for name, seconds in goodput.seconds.items() if abs(seconds) > 1e-9}


def test_an_undisturbed_run_trains_but_for_set_up_first_batch_saves_and_evaluation() -> None:
    events = [*begun(100, 0), save(116, 11), event("evaluate", 150, 40, seconds=10.0), event("done", 160, 50)]
    found = account(events, [row(140, 40)])
    assert spent(found) == {SETUP: 2, FIRST_BATCH: 3, TRAINING: 44.5, STALLS: 0.5, EVALUATION: 10}
    assert found.total_s == 60
    assert found.fraction == pytest.approx(44.5 / 60)
    assert (found.restarts, found.step, found.steps_lost, found.save_seconds) == ({}, 50, 0, [1.0])


def test_what_follows_the_save_of_a_killed_attempt_is_lost_until_its_last_sign_of_life() -> None:
    # Steps of a second: step s is done at 104 + s. Saved 11, dead after 31 at 135, nobody there until 155.
    events = [
        *begun(100, 0),
        save(116, 11),
        event("attempt", 155, 11, workers=1),
        event("failure", 135, 31, cause="a worker died"),
        *begun(155, 11, workers=1)[1:],
        event("done", 170, 22),
    ]
    found = account(events, [])
    assert spent(found) == {
        SETUP: 4,
        FIRST_BATCH: 6,
        TRAINING: 9.5 + 10,
        STALLS: 0.5,
        LOST: 20,
        "waiting after failure": 20,
    }
    assert (found.restarts, found.steps_lost, found.step) == ({"failure": 1}, 20, 22)
    assert found.seconds_by_workers == {2: 35, 1: 15}
    assert found.mean_workers == pytest.approx((2 * 35 + 15) / 50)


def test_a_save_that_nobody_noted_is_placed_between_the_records_around_it() -> None:
    # Killed before it could note its save of step 21; records are of steps 1 at 105 and 31 at 135.
    events = [*begun(100, 0), event("attempt", 140, 21, workers=2), event("failure", 135, 31, cause=None)]
    found = account([*events, *begun(140, 21)[1:]], [])
    assert spent(found)[LOST] == 10
    assert spent(found)["waiting after driver gone"] == 5
    assert found.steps_lost == 10


def test_evaluations_and_saves_of_lost_steps_are_lost_with_them() -> None:
    events = [
        *begun(100, 0),
        save(116, 11),
        event("evaluate", 130, 16, seconds=10.0),
        event("save_failed", 133, 17, error="no store", seconds=1.0, stall_s=0.5),
        event("attempt", 140, 11, workers=2),
        event("failure", 135, 19, cause="killed"),
        *begun(140, 11)[1:],
    ]
    found = account(events, [])
    assert spent(found)[LOST] == 20
    assert EVALUATION not in spent(found)
    assert found.seconds[STALLS] == 0.5
    assert found.saves_failed == 1


def test_an_evaluation_that_was_owed_is_no_wait_for_the_first_batch() -> None:
    events = [
        event("attempt", 100, 10, workers=1),
        event("restore", 102, 10, workers=1),
        event("evaluate", 109, 10, seconds=6.0),
        event("first_step", 112, 11),
    ]
    assert spent(account(events, [])) == {SETUP: 2, EVALUATION: 6, FIRST_BATCH: 4}


def test_a_resize_loses_nothing() -> None:
    resize = event("resize", 120, 16, workers={"from": 2, "to": 3})
    events = [*begun(100, 0), save(119, 16), resize, *begun(127, 16, workers=3), event("done", 140, 24)]
    found = account(events, [])
    assert found.seconds[LOST] == 0
    assert found.seconds["waiting after resize"] == 7
    assert (found.restarts, found.steps_lost, found.seconds_by_workers) == ({"resize": 1}, 0, {2: 20, 3: 13})


def test_a_notice_and_a_stop_lose_nothing() -> None:
    notice = event("notice", 110, -1, deadline_s=30.0, nodes=["n"])
    stop = event("stop", 120, 16, reason="preemption")
    found = account([*begun(100, 0), notice, save(112, 6), stop, *begun(180, 16), event("done", 200, 31)], [])
    assert found.seconds[LOST] == 0
    assert found.seconds["waiting after preemption"] == 60
    assert (found.restarts, found.notices, found.steps_lost) == ({"preemption": 1}, 1, 0)


def test_two_failures_in_a_row_without_progress() -> None:
    events = [
        *begun(100, 0),
        save(116, 11),
        event("attempt", 140, 11, workers=2),
        event("failure", 135, 31, cause="killed"),
        event("restore", 142, 11, workers=2),  # and dead before its first step, seen last at 142
        event("attempt", 150, 11, workers=2),
        event("failure", 142, 11, cause="killed"),
        *begun(150, 11)[1:],
    ]
    found = account(events, [])
    assert spent(found) == {
        SETUP: 2 + 2 + 2,
        FIRST_BATCH: 3 + 3,
        TRAINING: 9.5,
        STALLS: 0.5,
        LOST: 20,
        "waiting after failure": 5 + 8,
    }
    assert (found.restarts, found.steps_lost) == ({"failure": 2}, 20)


def test_a_damaged_checkpoint_loses_the_steps_of_every_attempt_since_the_one_used() -> None:
    stop = event("stop", 120, 16, reason="preemption")
    damaged = event("skipped_checkpoint", 151, 11, reason="not what was written")
    last = [event("attempt", 150, 11, workers=2), event("failure", 145, 36, cause="killed"), damaged]
    found = account([*begun(100, 0), save(116, 11), stop, *begun(120, 16), *last, *begun(150, 11)[1:]], [])
    assert found.steps_lost == (16 - 11) + (36 - 16)
    assert found.seconds[LOST] == 5 + 20
    assert found.checkpoints_skipped == 1


def test_a_run_still_going_is_accounted_for_until_now() -> None:
    assert account(begun(100, 0), [], now=165).seconds[TRAINING] == 60
    waiting = [*begun(100, 0), event("resize", 120, 16, workers={"from": 2, "to": 3})]
    assert account(waiting, [], now=165).seconds["waiting after resize"] == 45
    assert account(begun(100, 0)[:1], [], now=165).seconds[SETUP] == 65


def test_a_killed_run_ends_with_its_last_metrics_row() -> None:
    found = account(begun(100, 0), [row(125, 21), row(135, 31)])
    assert (found.total_s, found.seconds[TRAINING], found.step) == (35, 30, 31)


def test_a_clock_slightly_behind_shortens_its_own_attempt() -> None:
    """The second host is three seconds behind: it seems to begin before the first one ended."""
    stop = event("stop", 120, 16, reason="preemption")
    found = account([*begun(100, 0), stop, *begun(117, 16), event("done", 127, 22)], [])
    assert found.total_s == 27
    assert "waiting after preemption" not in found.seconds
    assert found.seconds[FIRST_BATCH] == 3 + 2
    assert min(found.seconds.values()) >= 0


@dataclass
class Simulator:
    """A run over attempts of random length and end; `truth` is where its time went."""

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
        """Steps of a second, saved every 10, a metrics row every 2; gives the failure that the next one tells."""
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
        # All since the last save is lost, but set-up and first batch, which are counted as such.
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


@pytest.mark.parametrize("seed", range(100))
def test_the_account_of_a_simulated_run_is_its_truth(seed: int) -> None:
    run = simulated(seed)
    found = account(run.events, run.rows)
    assert found.steps_lost == run.steps_lost
    for name in {*found.seconds, *run.truth}:
        assert found.seconds.get(name, 0.0) == pytest.approx(run.truth.get(name, 0.0), abs=1e-6), name


@pytest.mark.parametrize("seed", range(200))
def test_categories_are_never_negative_and_sum_to_the_total(seed: int) -> None:
    """Whatever clocks say, and wherever a run is cut off."""
    run = simulated(seed, skew_s=10.0)
    cut = run.events[: run.random.randint(1, len(run.events))]
    now = run.random.choice([None, cut[-1]["time"] + 5])
    rows = run.rows if run.random.random() < 0.5 else []
    found = account(cut, rows, now=now)
    assert min(found.seconds.values()) >= 0
    last = max(entry["time"] for entry in [*cut, *rows, {"time": now or 0.0}])
    assert found.total_s == pytest.approx(last - cut[0]["time"])
    assert sum(found.seconds_by_workers.values()) == pytest.approx(sum(found.seconds[name] for name in CATEGORIES))


def written(folder: Path, events: list[Row], rows: list[Row]) -> Path:
    folder.mkdir()
    (folder / "events.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in events))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return folder


def full_row(time: float, step: int, **fields: float) -> Row:
    return {"step": step, "time": time, "epoch": step / 10, "loss": 5.25, "images_per_s": 123.4, "workers": 2, **fields}


def test_a_run_says_how_far_it_is(tmp_path: Path) -> None:
    rows = [full_row(115, 11, knn_top1=42.0), full_row(125, 21)]
    run = written(tmp_path / "r", [*begun(100, 0), save(116, 11)], rows)
    found = read_run(str(run), now=1000.0)
    assert found.state == "interrupted"
    for words in ("interrupted", "step       21", "loss       5.2500", "42.00 % top-1 at step 11", "save  step 11"):
        assert words in summary(found)
    (run / "driver.json").write_text(json.dumps({"driver": "d", "time": 990.0}))
    assert read_run(str(run), now=1000.0).state == "running"
    assert read_run(str(run), now=2000.0).state == "interrupted"


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    run = written(tmp_path / "r", [*begun(100, 0), event("done", 125, 21)], [])
    whole = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(whole[:-5])
    found = read_run(str(run), now=1000.0)
    assert account(found.events, found.rows).total_s == 5


def test_what_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no run"):
        read_run(str(tmp_path / "none"), now=0.0)
    with pytest.raises(BadInput, match="has no events"):
        read_run(str(tmp_path), now=0.0)


def test_the_table_shows_every_category_in_seconds_and_percent() -> None:
    events = [*begun(100, 0), save(116, 11), event("stop", 120, 16, reason="preemption"), *begun(180, 16)]
    found = account(events, [])
    lines = table(found).splitlines()
    for name, seconds in found.seconds.items():
        expected = f"{name:<30}{seconds:>12,.1f}{100 * seconds / found.total_s:>9.2f}"
        assert expected in lines
    assert any(line.startswith("restarts  1 (1 after preemption)") for line in lines)


def test_the_command(tmp_path: Path) -> None:
    run = written(tmp_path / "r", [*begun(100, 0), event("done", 125, 21)], [full_row(125, 21)])
    code = "import sys; sys.argv[0] = 'report.py'; sys.path.insert(0, {folder!r}); import report; "
    code += "assert not {{'torch', 'ray'}} & set(sys.modules); report.run_command(report.main)"
    line = [sys.executable, "-c", code.format(folder=str(SCRIPT.parent))]
    done = subprocess.run([*line, str(run), "--goodput"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "goodput 80.00%: 0:00:20 of training in 0:00:25")
    missing = subprocess.run([*line, str(tmp_path / "none")], capture_output=True, text=True, timeout=60)
    assert missing.returncode == 2
    assert len(missing.stderr.strip().splitlines()) == 1
