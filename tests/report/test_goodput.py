"""Every second of a run is accounted for, under the category that it was spent on."""

from __future__ import annotations

import pytest

from records import begun, event, save, simulated
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
from simclr_ray.storage.run_folder import Row


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


def test_a_run_of_one_step_is_all_start_and_its_last_save_no_multiple_of_its_training() -> None:
    events = [*begun(100, 0), save(107.5, 1, stall_s=2.25), event("done", 107.5, 1)]
    found = account(events, [row(105, 1)])
    assert spent(found) == {SETUP: 2, FIRST_BATCH: 3, TRAINING: 0.25, STALLS: 2.25}
    assert found.held_up_fraction == pytest.approx(2.25 / 2.5)
    assert "training waited for them 90.00% of its time" in table(found)


def test_what_follows_the_save_of_a_killed_attempt_is_lost_up_to_its_last_record() -> None:
    # Steps of a second: step s is done at 104 + s. Saved 11, dead after 31 at 135, the next attempt at 155.
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


def test_a_save_without_a_record_is_placed_between_the_records_around_it() -> None:
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


def test_a_pending_evaluation_is_no_wait_for_the_first_batch() -> None:
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


def test_the_table_shows_every_category_in_seconds_and_percent() -> None:
    events = [*begun(100, 0), save(116, 11), event("stop", 120, 16, reason="preemption"), *begun(180, 16)]
    found = account(events, [])
    lines = table(found).splitlines()
    for name, seconds in found.seconds.items():
        expected = f"{name:<30}{seconds:>12,.1f}{100 * seconds / found.total_s:>9.2f}"
        assert expected in lines
    assert any(line.startswith("restarts  1 (1 after preemption)") for line in lines)
