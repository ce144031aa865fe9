"""The space of a sweep, its study and its pruning, without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from simclr_ray.config import BadInput, Config
from simclr_ray.orchestrate.sweep.search import StudyAsha, StudySearch
from simclr_ray.storage.location import open_location
from simclr_ray.sweep.space import Choices, Range, parse_space
from simclr_ray.sweep.study import Study

SPACE = parse_space([], Config())
FIRST = {"method.temperature": 0.1, "optim.lr_per_256": 0.3, "augment.strength": 1.0}
BUDGET = 900


@pytest.mark.parametrize(
    ("entry", "domain"),
    [
        ("method.temperature=0.05:1:log", Range(low=0.05, high=1.0, log=True)),
        ("--optim.lr-per-256=0.05:2", Range(low=0.05, high=2.0)),
        ("model.head_dim=32:256:log", Range(low=32, high=256, log=True)),
        ("model.head=linear,mlp", Choices(choices=("linear", "mlp"))),
        ("model.arch=resnet18,torchvision:vit_b_16", Choices(choices=("resnet18", "torchvision:vit_b_16"))),
        ("model.head_batchnorm=true,false", Choices(choices=(True, False))),
        ("model.head_layers=2,3", Choices(choices=(2, 3))),
        ("model.head_hidden=None,64", Choices(choices=(None, 64))),
    ],
)
def test_a_space_is_read_by_the_types_of_the_config(entry: str, domain: Range | Choices) -> None:
    assert list(parse_space([entry], Config()).values()) == [domain]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["optim.temprature=0.1:1"], "no such setting: optim.temprature"),
        (["method.temperature=1:0.1"], "is empty"),
        (["method.temperature=0.5:0.5"], "is empty"),
        (["method.temperature"], "write KEY=LOW:HIGH"),
        (["method.temperature="], "write KEY=LOW:HIGH"),
        (["method.temperature=0:1"], "method.temperature must be positive"),
        (["optim.weight_decay=0:1:log"], "begins above 0"),
        (["method.temperature=0.1:1:linear"], "only :log"),
        (["method.temperature=0.1:much"], "'much' is no value"),
        (["method.temperature=0.1:nan"], "'nan' is no value"),
        (["augment.strength=0.1:9"], "augment.strength must lie in"),
        (["model.head=mlp,cnn"], "'cnn' is no value"),
        (["model.head=linear:mlp"], "a range needs numbers"),
        (["resources.threads=1,2"], "does not change what is learnt"),
        (["evaluate.neighbours=1:20"], "does not change what is learnt"),
        (["train.epochs=1:2.5"], "'2.5' is no value"),
        (["method.temperature=0.1:1", "method.temperature=0.2:1"], "twice"),
        (["model.width=0.5:2"], "model.width must make"),
    ],
)
def test_a_wrong_space_is_named_before_anything_starts(entries: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_space(entries, Config())


def open_study(folder: Path, work: str = "work", *, sampler: str = "tpe", first: dict[str, Any] = FIRST) -> Study:
    (folder / work).mkdir(exist_ok=True)
    location = open_location(str(folder / "sweep"))
    given = {0: first}.get
    return Study(location, folder / work, SPACE, sampler=sampler, seed=3, startup=2, given=given)


def test_a_study_resumes_from_its_copy_alone(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert study.ask().params == FIRST
    for _ in range(3):
        study.ask()
    study.report(0, 300, 40.0)
    study.report(0, 900, 50.0)
    study.tell(0, TrialState.COMPLETE)
    study.report(1, 300, 10.0)
    study.tell(1, TrialState.PRUNED)
    study.tell(2, TrialState.FAIL, "Diverged: the loss is nan")

    again = open_study(tmp_path, "elsewhere")
    assert [trial.state.name for trial in again.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert [trial.number for trial in again.unfinished()] == [3]
    assert again.trials[2].user_attrs == {"run": "trial-0002", "reason": "Diverged: the loss is nan", "samples": 0}
    assert again.trials[0].intermediate_values == {300: 40.0, 900: 50.0}
    again.report(3, 900, 60.0)
    again.tell(3, TrialState.COMPLETE)
    assert again.best() == again.trials[3]
    again.tell(3, TrialState.FAIL, "a second time")
    assert again.trials[3].state == TrialState.COMPLETE
    assert again.ask().number == 4

    plain = JournalStorage(JournalFileBackend(str(tmp_path / "sweep" / "study.journal")))
    assert len(optuna.load_study(study_name="sweep", storage=plain).trials) == 5


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_suggested_values_do_not_depend_on_restarts(sampler: str, tmp_path: Path) -> None:
    def values(folder: Path, restarts: bool) -> list[dict[str, Any]]:
        folder.mkdir()
        study = open_study(folder, sampler=sampler)
        for number in range(6):
            if restarts:
                study = open_study(folder, f"work-{number}", sampler=sampler)
            study.ask()
            study.report(number, 900, float(number % 3))
            study.tell(number, TrialState.COMPLETE)
        return [trial.params for trial in study.trials]

    whole = values(tmp_path / "whole", restarts=False)
    assert whole == values(tmp_path / "cut", restarts=True)
    assert len({tuple(params.values()) for params in whole}) == 6


def result(samples: int, objective: float) -> dict[str, Any]:
    return {"samples": samples, "objective": objective, "whole": samples >= BUDGET}


def test_asha_has_the_same_rungs_after_a_restart(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    numbers = {f"t{number}": number for number in range(6)}
    live = StudyAsha(study, numbers, lambda trial: BUDGET, first_rung=100, budget=BUDGET, reduction=3)
    decisions = []
    for samples in (100, 300):
        for number, value in enumerate([50.0, 40.0, 30.0, 45.0, 60.0]):
            if samples == 100:
                study.ask()
            study.report(number, samples, value)
            one = SimpleNamespace(trial_id=f"t{number}")
            decisions.append(live.on_trial_result(None, one, result(samples, value)))
    assert decisions == ["CONTINUE", "STOP", "STOP", "CONTINUE", "CONTINUE"] * 2
    rebuilt = StudyAsha(
        open_study(tmp_path, "elsewhere"), numbers, lambda trial: BUDGET, first_rung=100, budget=BUDGET, reduction=3
    )
    assert rebuilt._brackets[0]._rungs == live._brackets[0]._rungs
    rebuilt._study.ask()
    newcomer = SimpleNamespace(trial_id="t5")
    assert rebuilt.on_trial_result(None, newcomer, result(100, 46.0)) == "STOP"
    assert rebuilt.on_trial_result(None, newcomer, result(BUDGET, 1.0)) == "CONTINUE", "the whole budget is no rung"


def make_search(study: Study, trials: int, end_requests: list[str] | None = None) -> StudySearch:
    """`end_requests`: collects the runs whose end is requested."""

    def config_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        return {"run": trial.user_attrs["run"], "budget_samples": BUDGET}

    requests = end_requests if end_requests is not None else []
    return StudySearch(study, trials, config_of, lambda line: None, requests.append)


def test_unfinished_trials_come_first_and_the_study_ends_at_the_number_of_trials(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.ask()
    study.ask()
    study.report(0, BUDGET, 1.0)
    study.tell(0, TrialState.COMPLETE)
    search = make_search(open_study(tmp_path, "elsewhere"), 3)
    assert search.suggest("a") == {"run": "trial-0001", "budget_samples": BUDGET}
    assert search.suggest("b") == {"run": "trial-0002", "budget_samples": BUDGET}
    for trial_id in "ab":
        search.on_trial_complete(trial_id, result(BUDGET, 1.0))
    assert search.suggest("c") == Searcher.FINISHED


def test_the_state_and_reason_of_an_ended_trial_are_recorded(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    search = make_search(study, 9, end_requests := [])
    ends = [
        (result(BUDGET, 5.0), "COMPLETE"),
        (result(300, 4.0), "PRUNED"),
        ({"whole": False, "failed": "Diverged: the loss is nan at step 3"}, "FAIL"),
        (result(300, 4.0) | {"failed": "collapsed"}, "FAIL"),
        ({"whole": False}, "RUNNING"),
    ]
    for number, (last, state) in enumerate(ends):
        search.suggest(f"t{number}")
        search.on_trial_complete(f"t{number}", last)
        assert study.trials[number].state.name == state
    assert [t.user_attrs.get("reason") for t in study.trials][2:] == [
        "Diverged: the loss is nan at step 3", "collapsed", None
    ]  # fmt: skip
    assert end_requests == ["trial-0001", "trial-0002", "trial-0003", "trial-0004"], "Tune may keep their processes"


def test_a_trial_killed_after_reporting_its_last_value_is_complete(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.ask()
    study.report(0, BUDGET, 5.0)
    search = make_search(open_study(tmp_path, "elsewhere"), 1)
    search.suggest("t")
    search.on_trial_complete("t", {"whole": True})
    assert search._study.best() is not None


def test_lost_and_crashed_trials_are_retried(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    search = make_search(study, 1)
    for attempt in range(5):
        assert search.suggest(f"lost{attempt}")["run"] == "trial-0000"
        assert search.suggest("more") is None, "not finished while it may come back"
        search.on_trial_complete(f"lost{attempt}", None, error=True)
    for attempt in range(3):
        assert search.suggest(f"crashed{attempt}")["run"] == "trial-0000"
        search.on_trial_complete(f"crashed{attempt}", {"crashed": "OSError: x"})
    assert study.trials[0].user_attrs["reason"] == "OSError: x"
    assert search.suggest("more") == Searcher.FINISHED


def test_bad_input_and_three_crashed_trials_in_a_row_end_the_sweep(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    search = make_search(study, 99)
    for number, crash in enumerate([True, True, False, True, True, True]):
        for attempt in range(3 if crash else 1):
            assert search.suggest(f"t{number}-{attempt}") != Searcher.FINISHED
            last = {"crashed": "OSError: x"} if crash else result(BUDGET, 1.0)
            search.on_trial_complete(f"t{number}-{attempt}", last)
    assert search.suggest("more") == Searcher.FINISHED

    other = make_search(open_study(tmp_path, "elsewhere"), 9)
    other.suggest("t")
    other.on_trial_complete("t", {"bad_input": "no such folder"})
    assert (other.bad_input, other.suggest("u")) == ("no such folder", Searcher.FINISHED)


def test_values_that_do_not_fit_together_fail_their_trial_alone(tmp_path: Path) -> None:
    study = open_study(tmp_path)

    def config_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        if trial.number == 0:
            raise BadInput("augment.blur_sigma_min must lie in (0, blur_sigma_max]")
        return {"budget_samples": BUDGET}

    search = StudySearch(study, 9, config_of, lambda line: None, lambda run: None)
    assert search.suggest("t") == {"budget_samples": BUDGET}
    assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING"]


def test_a_study_that_another_driver_has_taken_over_is_not_written(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.ask()
    copy = (tmp_path / "sweep" / "study.journal").read_bytes()
    study._still_ours = lambda: False
    with pytest.raises(BadInput, match="another driver"):
        study.ask()
    assert (tmp_path / "sweep" / "study.journal").read_bytes() == copy


@pytest.mark.parametrize("moment", ["result", "complete", "next"])
def test_a_sweep_that_another_driver_took_over_ends_with_that_message(tmp_path: Path, moment: str) -> None:
    study = open_study(tmp_path)
    search = make_search(study, 9)
    search.suggest("t")
    study._still_ours = lambda: False
    if moment == "result":
        search.on_trial_result("t", result(300, 4.0))
    elif moment == "complete":
        search.on_trial_complete("t", result(BUDGET, 4.0))
        search.on_trial_complete("t", error=True)
    assert search.suggest("u") == Searcher.FINISHED
    assert "another driver" in (search.bad_input or "")
