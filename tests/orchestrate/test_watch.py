"""The progress line, the lease, shares of the cluster and rank 0's decisions, without a cluster."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from threading import Timer
from time import time
from typing import Any

import pytest

from simclr_ray.config import BadInput, ResourcesConfig
from simclr_ray.orchestrate.sweep.tune import TRIAL_CPUS
from simclr_ray.orchestrate.watch import render_line
from simclr_ray.planning.shares import Share, data_cpus, share_of, training_threads, workers_that_fit
from simclr_ray.storage import lease as lease_module
from simclr_ray.storage import run_folder
from simclr_ray.storage.lease import holds, lease, require_free
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.control import Action, ClusterSignals, Control, most_workers, refused_workers

ROW = {
    "step": 50, "epoch": 1.25, "loss": 4.2, "images_per_s": 100.0, "data_wait_fraction": 0.03, "workers": 2,
    "save_error": None, "checked": None,
}  # fmt: skip


def test_the_progress_line_shows_step_speed_and_time_left() -> None:
    line = render_line(ROW, total_steps=200, global_batch=10)
    assert line == (
        "[#####               ]  25%  epoch 1.25  step 50/200  loss 4.200  100 images/s  data wait 3%  2 workers  "
        "0:00:15 left"
    )
    assert "kNN 40.5 %" in render_line(ROW | {"checked": {"knn_top1": 40.5, "rankme": 9.0}}, 200, 10)
    assert "rankme 9.0" in render_line(ROW | {"checked": {"rankme": 9.0}}, 200, 10)
    assert "saving fails: disk full" in render_line(ROW | {"save_error": "disk full"}, 200, 10)


def test_one_driver_holds_the_lease_and_releases_it(tmp_path: Path) -> None:
    run = open_location(str(tmp_path))
    with lease(run) as driver:
        assert holds(run, driver)
        assert not holds(run, "another")
    assert not (tmp_path / run_folder.DRIVER).exists()


def test_the_lease_of_a_dead_driver_on_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    dead = {"driver": "dead", "host": lease_module._host(), "pid": pid, "time": 0.0}
    (tmp_path / run_folder.DRIVER).write_text(json.dumps(dead))
    with lease(open_location(str(tmp_path))) as driver:
        assert driver != "dead"


@pytest.mark.parametrize(("renewed_s_ago", "other", "refused"), [(1, True, True), (30, True, False), (1, False, False)])
def test_a_run_whose_driver_lives_on_this_machine_is_refused_soon(
    renewed_s_ago: int, other: bool, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that was not renewed may be of a process that hangs, or whose id another one has by now."""
    monkeypatch.setattr(lease_module, "ENDING_S", 0.3)
    hold(tmp_path, os.getppid() if other else os.getpid(), time() - renewed_s_ago)
    expected = pytest.raises(BadInput, match="being trained by another driver") if refused else nullcontext()
    with expected:
        require_free(open_location(str(tmp_path)))


def test_a_driver_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    hold(tmp_path, os.getppid(), time())
    Timer(0.5, (tmp_path / run_folder.DRIVER).unlink).start()
    require_free(open_location(str(tmp_path)))
    assert not (tmp_path / run_folder.DRIVER).exists()


def hold(run: Path, pid: int, renewed: float) -> None:
    held = {"driver": "it", "host": lease_module._host(), "pid": pid, "time": renewed}
    (run / run_folder.DRIVER).write_text(json.dumps(held))


def test_a_lease_that_a_remote_driver_does_not_renew_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "PATIENCE_S", 2.0)
    elsewhere = {"driver": "old", "host": "another-host", "pid": 1, "time": 0.0}
    (tmp_path / run_folder.DRIVER).write_text(json.dumps(elsewhere))
    with lease(open_location(str(tmp_path))) as driver:
        assert holds(open_location(str(tmp_path)), driver)


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "workers"),
    [
        ({}, 8, 0, 1),
        ({}, 16, 4, 4),
        ({"max_workers": 2}, 16, 4, 2),
        ({"gpus_per_worker": 0.5}, 16, 1, 1),
        ({"max_workers": 3, "cpus_per_worker": 2.0}, 8, 0, 3),
    ],
)
def test_open_settings_are_resolved_from_the_cluster(resources: dict, cpus: float, gpus: float, workers: int) -> None:
    share = share_of(ResourcesConfig(**resources), cpus, gpus)
    assert workers_that_fit(share, [{"CPU": cpus, "GPU": gpus}]) == workers


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "message"),
    [
        ({"max_workers": 2}, 2, 0, "leave 0 of 2 CPUs"),
        ({"min_workers": 3, "max_workers": 3}, 2, 0, "min_workers 3 need 3 CPUs"),
        ({"gpus_per_worker": 1.0}, 8, 0, "lower resources.min_workers"),
        ({"data_cpus": 4.0}, 4, 0, "resources.data_cpus"),
        ({"gpus_per_worker": 0.5, "max_workers": 2}, 16, 1, "a GPU for each worker"),
    ],
)
def test_too_few_resources_are_bad_input(resources: dict, cpus: float, gpus: float, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        share_of(ResourcesConfig(**resources), cpus, gpus)


def test_workers_are_counted_per_node_and_data_workers_share_the_remaining_cpus() -> None:
    share = share_of(ResourcesConfig(max_workers=8, cpus_per_worker=2.0), 100, 0)
    assert workers_that_fit(share, [{"CPU": 3.0}, {"CPU": 5.0}, {}]) == 3
    resources = ResourcesConfig(cpus_per_worker=2.0)
    assert [data_cpus(resources, 2, cpus, on_gpu=True) for cpus in (10, 5, 4, 3)] == [3, 0.5, 0.0, 0.0]
    assert data_cpus(ResourcesConfig(data_cpus=1.5), 1, 9, on_gpu=True) == 1
    left_for_the_executor = [data_cpus(ResourcesConfig(), 1, cpus, on_gpu=True) for cpus in (4, 5, 6, 16)]
    assert left_for_the_executor == [3, 4, 4, 14]


def test_a_cpu_worker_trains_with_all_cpus_of_its_share_and_loads_with_an_eighth() -> None:
    def threads(workers: int, cpus: float, on_gpu: bool = False, **resources: Any) -> int:
        return training_threads(ResourcesConfig(**resources), workers, cpus, node_cpus=16, on_gpu=on_gpu)

    parts = [(1, 2), (1, 16), (2, 16), (3, 16), (1, 64), (4, 2)]
    assert [threads(*part) for part in parts] == [2, 16, 8, 5, 16, 1], "no more than a node has, at least one"
    assert [threads(1, 2 - TRIAL_CPUS), threads(1, 1.5)] == [2, 1], "a trial of a sweep trains with the last core too"
    assert threads(1, 16, threads=3) == 3
    assert threads(1, 16, on_gpu=True, cpus_per_worker=4.0) == 4
    loading = [
        data_cpus(ResourcesConfig(), workers, cpus, on_gpu=False) for workers, cpus in ((1, 2), (1, 16), (1, 64))
    ]
    assert loading == [1, 2, 8]


def test_rank_0_saves_at_a_notice_trains_on_and_stops_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("simclr_ray.train.control.time", lambda: now)
    control = Control(settle_s=0, resize_every_s=0, stop_margin_s=3)
    leaving = ClusterSignals(deadline=1020.0, available_workers=5)
    assert control.decide(ClusterSignals(available_workers=1), 1, 0.1) == Action.CONTINUE
    decided = []
    for now in (1001.0, 1002.0, 1014.0, 1014.5, 1015.0, 1016.0):  # noqa: B007 (read by the clock)
        decided.append(control.decide(leaving, 1, 0.1).name)
    assert decided == ["SAVE", "CONTINUE", "STOP", "CONTINUE", "CONTINUE", "STOP"], "3 s and twice the last step"
    assert control.decide(leaving, 1, 0.1) == Action.CONTINUE
    assert control.decide(leaving, 1, 2.0) == Action.STOP, "twice the time of a save before the deadline"


def test_without_a_margin_rank_0_saves_every_second_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("simclr_ray.train.control.time", lambda: now)
    control = Control(settle_s=0, resize_every_s=0, stop_margin_s=None)
    decided = []
    for now in (1000.0, 1000.5, 1001.0, 1001.5, 1002.5, 1020.0):  # noqa: B007 (read by the clock)
        decided.append(control.decide(ClusterSignals(deadline=1010.0), 1, 0.1))
    assert [action.name for action in decided] == ["SAVE", "CONTINUE", "SAVE", "CONTINUE", "SAVE", "SAVE"]


def test_rank_0_grows_once_capacity_has_lasted_and_saves_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("simclr_ray.train.control.monotonic", lambda: now)
    control = Control(settle_s=22, resize_every_s=60, stop_margin_s=3)
    decided = []
    for now, available in ((1, 1), (30, 2), (40, 1), (50, 2), (59, 2), (71, 2), (72, 2)):  # noqa: B007 (read by the clock)
        decided.append(control.decide(ClusterSignals(available_workers=available), 1, 0.1))
    assert decided == [Action.CONTINUE] * 6 + [Action.RESIZE]
    assert control.decide(ClusterSignals(save_requested_at=5.0), 2, 0.1) == Action.SAVE
    assert control.decide(ClusterSignals(save_requested_at=5.0), 2, 0.1) == Action.CONTINUE


def test_a_refused_resize_is_retried_much_later_or_when_capacity_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two elastic runs each count the other's resources as available."""
    now = 0.0
    monkeypatch.setattr("simclr_ray.train.control.monotonic", lambda: now)
    control, other = (Control(settle_s=0, resize_every_s=60, stop_margin_s=3, refused_workers=4) for _ in range(2))
    now = 61.0
    assert control.decide(ClusterSignals(), 2, 0.0) == Action.CONTINUE, "not polled yet"
    assert control.decide(ClusterSignals(available_workers=4), 2, 0.0) == Action.CONTINUE
    now = 361.0
    assert control.decide(ClusterSignals(available_workers=4), 2, 0.0) == Action.RESIZE
    now = 61.0
    assert other.decide(ClusterSignals(available_workers=3), 2, 0.0) == Action.RESIZE
    assert other.decide(ClusterSignals(available_workers=4), 2, 0.0) == Action.RESIZE


def test_a_run_that_lost_workers_takes_others_as_soon_as_they_are_there() -> None:
    def decided(workers: int, events: list[Row], **signals: int) -> Action:
        control = Control(settle_s=0, resize_every_s=60, stop_margin_s=3, most_workers=most_workers(events))
        return control.decide(ClusterSignals(**signals), workers, 0.0)

    events: list[Row] = [{"event": "start", "workers": 3}, {"event": "regroup"}, {"event": "attempt"}]
    assert decided(2, events, available_workers=3) == Action.RESIZE
    assert decided(3, events, available_workers=4) == Action.CONTINUE, "it has all that it had"
    events.append({"event": "restore", "workers": 2})
    assert decided(2, events, available_workers=3) == Action.RESIZE, "by another recorder of the same attempt, too"
    assert decided(1, [{"event": "attempt"}], available_workers=2) == Action.CONTINUE, "the first attempt"


def test_only_a_growth_that_was_refused_delays_the_next() -> None:
    def refused(to: int) -> int | None:
        return refused_workers([{"event": "resize", "workers": {"from": 1, "to": to}}, {"event": "attempt"}], 2)

    assert refused(3) == 3
    assert refused(2) is None


def test_a_requested_end_has_priority() -> None:
    control = Control(settle_s=0, resize_every_s=0, stop_margin_s=3)
    assert control.decide(ClusterSignals(available_workers=9, deadline=0.0, end_requested=True), 2, 0.0) == Action.END


def test_a_tenth_of_a_gpu_fits_ten_times() -> None:
    share = Share(min_workers=1, max_workers=20, cpus=0.1, gpus=0.1)
    assert workers_that_fit(share, [{"CPU": 64, "GPU": 1.0}, {"CPU": 0.3, "GPU": 1.0}]) == 13
