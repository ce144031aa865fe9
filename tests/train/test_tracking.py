"""Trackers repeat each row of metrics.jsonl once, whatever happens to the run, and never stop or slow it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest

from fake_trackers import Service, hanging, install_mlflow, install_wandb
from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.orchestrate.pretrain import pretrain
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import EVENTS, METRICS, Row, read_rows
from simclr_ray.train.run_log import RunLog
from simclr_ray.train.tracking import tracker
from simclr_ray.train.tracking.build import trackers_of
from small_runs import TINY, Killed, attempt, synthetic_dataset

Install = Callable[[pytest.MonkeyPatch], Service]
BOTH = {"logging.wandb": "ours", "logging.mlflow": "ours"}
OURS = {install_wandb: {"logging.wandb": "ours"}, install_mlflow: {"logging.mlflow": "ours"}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 96)


def written(folder: Path, file: str = METRICS) -> list[Row]:
    return read_rows(open_location(str(folder)) / file)


def losses(rows: list[Row]) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows}


def tracked(service: Service) -> dict[int, float]:
    return {step: row["loss"] for step, row in service.rows().items()}


def log(folder: Path, config: Config, steps: range, restored: int = 0, pause_s: float = 0) -> list[Row]:
    """An attempt's log, from the step `restored` on; its rows."""
    run = RunLog(open_location(str(folder)), trackers=trackers_of(config, open_location(str(folder))))
    run.begin(monotonic(), 1, None)
    run.rewind(restored)
    rows = [{"step": step, "loss": 1 / step, "time": float(step), "bad": 0} for step in steps]
    for row in rows:
        run.metrics(row)
        sleep(pause_s)
    run.close()
    return rows


def test_a_killed_run_goes_on_with_its_series_and_logs_each_row_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = [install_wandb(monkeypatch), install_mlflow(monkeypatch)]
    config = TINY.with_overrides(BOTH | {"saving.every_steps": 3, "logging.every_steps": 1, "train.epochs": 4})
    with pytest.raises(Killed):
        attempt(config, dataset, tmp_path / "run", die_after_step=5)
    attempt(config.with_overrides({"logging.every_steps": 2}), dataset, tmp_path / "run")
    events = [event["step"] for event in written(tmp_path / "run", EVENTS) if event["event"] == "restore"]
    assert events == [3], "steps 4 and 5 were done twice"
    rows = written(tmp_path / "run")
    for service in services:
        found = service.rows()
        assert sorted(found) == [1, 2, 3, 4, 5, 6, 8]
        assert {step: found[step]["loss"] for step in losses(rows)} == losses(rows)
        assert found[8].keys() >= {"lr", "uniformity", "images_per_s", "workers"}
        assert list(service.names.values()) == ["run"]
        assert service.closed == 2
        (configs,) = service.configs.values()
        logged = [(key, str(value)) for config in configs for key, value in config.items()]
        assert sorted(logged) == sorted((key, str(value)) for key, value in config.flat().items())


@pytest.mark.parametrize("install", OURS)
def test_rows_lost_by_an_outage_come_with_the_next_start(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service, config = install(monkeypatch), Config().with_overrides(OURS[install])
    rows = log(tmp_path, config, range(1, 4))

    def refuse() -> None:
        raise ConnectionError("no\nroute")

    service.on_request = refuse
    monkeypatch.setattr(tracker, "CLOSE_S", 0.2)
    rows += log(tmp_path, config, range(4, 200), restored=3)
    (warning,) = caplog.messages
    assert "ConnectionError: no route; the run goes on" in warning
    assert len(service.rows()) == 3
    service.on_request = lambda: None
    monkeypatch.setattr(tracker, "CLOSE_S", 10.0)
    rows += log(tmp_path, config, range(200, 203), restored=199)
    assert tracked(service) == losses(rows) == losses(written(tmp_path))


@pytest.mark.parametrize("install", OURS)
def test_a_service_that_comes_back_gets_what_it_missed(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, config = install(monkeypatch), Config().with_overrides(OURS[install])
    monkeypatch.setattr(tracker, "RETRY_S", 0.01)
    monkeypatch.setattr(tracker, "QUEUED_ROWS", 5)
    requests = iter(range(10**6))

    def refuse_some() -> None:
        if 6 < next(requests) < 15:
            raise ConnectionError

    service.on_request = refuse_some
    rows = log(tmp_path, config, range(1, 60), pause_s=0.01)
    assert tracked(service) == losses(rows)
    assert [event["event"] for event in written(tmp_path, EVENTS)] == ["attempt", "tracker_failed"]


def test_a_service_that_hangs_neither_slows_the_run_nor_keeps_it_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = install_wandb(monkeypatch)
    service.on_request, end = hanging()
    monkeypatch.setattr(tracker, "CLOSE_S", 0.1)
    monkeypatch.setattr(tracker, "HANG_S", 0.05)
    run = open_location(str(tmp_path))
    (stuck,) = trackers_of(Config().with_overrides({"logging.wandb": "ours"}), run)
    run_log = RunLog(run, trackers=[stuck])
    run_log.event("start", 0)
    run_log.rewind(0)
    start = monotonic()
    for step in range(1, 2 * tracker.QUEUED_ROWS):
        stuck.log({"step": step, "time": 0.0})
    assert monotonic() - start < 2, "20,000 rows"
    sleep(0.1)
    run_log.metrics({"step": 10**6, "time": 0.0})
    run_log.close()
    (warning,) = caplog.messages
    assert "wandb: no answer for 0 s" in warning
    assert [event["error"] for event in written(tmp_path, EVENTS) if event["event"] == "tracker_failed"] == [
        "no answer for 0 s"
    ]
    end.set()


def test_a_run_that_begins_anew_under_the_same_name_gets_another_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, config = install_wandb(monkeypatch), Config().with_overrides({"logging.wandb": "ours"})
    log(tmp_path / "s1" / "trial-0003", config, range(1, 3))
    (tmp_path / "s1" / "trial-0003" / EVENTS).unlink()
    (tmp_path / "s1" / "trial-0003" / METRICS).unlink()
    log(tmp_path / "s1" / "trial-0003", config, range(1, 2))
    assert [len(points) for points in service.points.values()] == [2 * 3, 1 * 3]
    assert set(service.names.values()) == {"s1/trial-0003"}


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_before_anything_starts(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=rf"pip install 'simclr_ray\[{package}\]'"):
        pretrain(Config().with_overrides({f"logging.{package}": "ours"}), "r", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
