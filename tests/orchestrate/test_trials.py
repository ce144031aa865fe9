"""The trials of a sweep: their shares of the cluster, their ends, and what it may go on with; without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simclr_ray.config import BadInput, Config
from simclr_ray.orchestrate.sweep.trial import TrialRun
from simclr_ray.orchestrate.sweep.tune import TRIAL_CPUS, _concurrent, _share
from simclr_ray.planning.shares import data_cpus
from simclr_ray.storage.location import open_location
from simclr_ray.sweep.settings import SweepSettings, record_of, require_same
from simclr_ray.sweep.space import parse_space

SPACE = parse_space([], Config())
BUDGET = 900


@pytest.mark.parametrize(
    ("cpus", "gpus", "concurrent", "settings", "workers"),
    [
        (16, 1, 1, {}, 1),
        (64, 4, 4, {}, 1),
        (48, 3, 3, {}, 1),
        (16, 1, 4, {"gpus_per_worker": 0.25}, 1),
        (64, 8, 2, {}, 4),
        (2, 0, 2, {"cpus_per_worker": 0.6, "data_cpus": 0.3}, 1),
    ],
)
def test_trials_fit_into_their_shares_of_the_cluster(
    cpus: int, gpus: int, concurrent: int, settings: dict[str, Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    config = Config().with_overrides({f"resources.{key}": value for key, value in settings.items()})
    share = _share(config, concurrent)
    assert share.max_workers == workers
    used = workers * (share.cpus + data_cpus(config.resources, workers, share.part * cpus, on_gpu=gpus > 0))
    assert concurrent * (used + TRIAL_CPUS) <= cpus + 1e-9
    assert concurrent * workers * share.gpus <= gpus


@pytest.mark.parametrize(
    ("settings", "trials"), [({}, 4), ({"min_workers": 2}, 2), ({"max_workers": 3}, 1), ({"gpus_per_worker": 0.5}, 8)]
)
def test_as_many_trials_run_at_once_as_the_gpus_hold(
    settings: dict[str, Any], trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 4.0})
    config = Config().with_overrides({f"resources.{key}": value for key, value in settings.items()})
    assert _concurrent(config) == trials
    assert _share(config, trials).min_workers == settings.get("min_workers", 1)


@pytest.mark.parametrize(("last", "whole"), [("done", True), ("stop", False), (None, False)])
def test_a_trial_that_patience_has_ended_is_complete(last: str | None, whole: bool, tmp_path: Path) -> None:
    trial: Any = object.__new__(TrialRun)
    trial._error, trial._reported = None, {BUDGET // 3}
    trial._config, trial._run = {"budget_samples": BUDGET}, open_location(str(tmp_path))
    if last:
        (tmp_path / "events.jsonl").write_text(json.dumps({"event": last, "step": 4, "time": 1.0}) + "\n")
    assert trial._ended() == {"whole": whole}


def test_a_sweep_goes_on_only_with_the_values_that_its_recipe_had(tmp_path: Path) -> None:
    folder, recipe = open_location(str(tmp_path)), Config()
    settings = SweepSettings(recipe="mine", defaults=recipe, space=SPACE)
    record = record_of(recipe, settings, "knn_top1", BUDGET)
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    moved = recipe.with_overrides({"resources.threads": 3, "data.train": "elsewhere"})
    same = SweepSettings(recipe="mine", defaults=moved, space=SPACE)
    require_same(folder, record_of(moved, same, "knn_top1", BUDGET))
    changed = recipe.with_overrides({"model.head_activation": "gelu"})
    other = record_of(changed, SweepSettings(recipe="mine", defaults=changed, space=SPACE), "knn_top1", BUDGET)
    with pytest.raises(BadInput, match=r"another model.head_activation \(relu, now gelu\)"):
        require_same(folder, other)
    without = {key: value for key, value in other.items() if key != "science"}
    (tmp_path / "sweep.json").write_text(json.dumps(without))  # as the last release wrote it
    require_same(folder, other)
