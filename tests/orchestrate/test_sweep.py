"""A sweep as its users run it: a real one on this machine, killed and resumed, and ones with bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image

from commands import FAST, ROOT, SMALL, events, finish, flags, metrics, wait_until
from forked import start_forked

SETTINGS = SMALL | {
    "evaluate.every-epochs": 1,
    "evaluate.test-rows": 256,
    "saving.every-steps": 4,
    "resources.cpus-per-worker": 0.9,
    "resources.data-cpus": 0.9,
    "trials": 3,
    "startup": 2,
}


def start(folder: Path, name: str, *, ray_address: str = "local", space: str = "", **changes: object) -> Any:
    words = flags(SETTINGS | changes) + (["--space", *space.split()] if space else [])
    line = [str(ROOT / "experiments/sweep.py"), "quickstart", *words, "--name", name, "--storage", str(folder)]
    return start_forked(line, env=os.environ | FAST | {"RAY_ADDRESS": ray_address})


def trials_of(sweep: Path) -> list[optuna.trial.FrozenTrial]:
    """The study, read from a copy because the sweep may be writing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "journal"
        copy.write_bytes((sweep / "study.journal").read_bytes())
        return optuna.load_study(study_name=sweep.name, storage=JournalStorage(JournalFileBackend(str(copy)))).trials


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def printed(storage: Path) -> str:
    """The output of a complete sweep."""
    code, out, err = finish(start(storage, "sweep"), 280)
    assert code == 0, err
    return out


def test_the_trials_of_a_sweep_are_runs_and_its_findings_are_printed(printed: str, storage: Path) -> None:
    sweep = storage / "sweep"
    trials = trials_of(sweep)
    assert len(trials) == 3
    assert trials[0].params == {"method.temperature": 0.5, "optim.lr_per_256": 1.0, "augment.strength": 0.5}
    assert trials[0].state.name == "COMPLETE", "the recipe itself comes first"
    for trial in trials:
        run = sweep / trial.user_attrs["run"]
        config = json.loads((run / "config.json").read_text())
        assert config["method"]["temperature"] == trial.params["method.temperature"]
        assert config["evaluate"]["test"] is None, "never the test set"
        checked = {row["samples"]: row["knn_top1"] for row in metrics(run) if "knn_top1" in row}
        # A run this short may train another epoch, or all, between ASHA's decision and its end.
        assert trial.intermediate_values.items() <= checked.items()
        assert events(run)[-1]["event"] in ("done", "stop")
        if trial.state.name == "COMPLETE":
            assert trial.intermediate_values == checked
            assert (run / "encoder.safetensors").exists()
    assert (sweep / "report" / "index.html").exists()
    assert not (sweep / "tune").exists()
    assert "experiments/pretrain.py best_of_sweep.py" in printed


def test_a_finished_sweep_is_left_as_it_is(printed: str, storage: Path) -> None:
    before = (storage / "sweep" / "study.journal").read_bytes()
    code, out, err = finish(start(storage, "sweep"))
    assert code == 0, err
    assert out.partition("3 of 3 trials")[2] == printed.partition("3 of 3 trials")[2] != ""
    assert (storage / "sweep" / "study.journal").read_bytes() == before


def test_another_space_under_the_same_name_is_refused(printed: str, storage: Path) -> None:
    assert_bad_input(start(storage, "sweep", space="method.temperature=0.1:0.9"), "was started with another")


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        ("optim.temprature=0.1:1", {}, "no such setting: optim.temprature"),
        ("method.temperature=1:0.1", {}, "is empty"),
        ("", {"evaluate.test": "synthetic:64:test"}, "never looks at --evaluate.test"),
        ("", {"trials": 0}, "--trials"),
        ("method.name=simclr,supervised", {}, "supervised learns the labels of all of"),
        ("", {"concurrent": 2}, "2 trials at once"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(storage: Path, space: str, changes: dict[str, object], message: str) -> None:
    assert_bad_input(start(storage, "bad", space=space, **changes), message)


def test_an_objective_without_labels_is_refused(storage: Path, tmp_path: Path) -> None:
    for number in range(256):
        pixels = np.full((16, 16, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    assert_bad_input(start(storage, "bad", **{"data.train": tmp_path}), "images without labels")


def assert_bad_input(process: Any, message: str) -> None:
    code, _, err = finish(process)
    lines = [line for line in err.strip().splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


@pytest.mark.slow
def test_ctrl_c_saves_the_trials_that_run(storage: Path) -> None:
    process = start(storage, "interrupted", **{"train.epochs": 60, "saving.every-steps": 1000})
    run = storage / "interrupted" / "trial-0000"
    wait_until(lambda: (run / "metrics.jsonl").exists() and len(metrics(run)) >= 3, process, "three rows", 200)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process, 90)
    assert (code, "the same command goes on" in err) == (130, True), err
    last = events(run)[-1]
    assert (last["event"], last.get("reason")) == ("stop", "asked to end")
    assert (run / f"step-{last['step']:08d}" / "manifest.json").exists()
    assert [trial.state.name for trial in trials_of(storage / "interrupted")] == ["RUNNING"]


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_sweep_survives_its_driver_three_times(cluster: Any, tmp_path: Path) -> None:
    """On a cluster that outlives the drivers, so that whatever a dead one leaves behind has an effect."""
    changes = {"trials": 5, "reduction": 2}
    sweep = tmp_path / "sweep"

    def states() -> list[str]:
        return [trial.state.name for trial in trials_of(sweep)] if (sweep / "study.journal").exists() else []

    def trained(run: str) -> int:
        rows = metrics(sweep / run) if (sweep / run / "metrics.jsonl").exists() else []
        return rows[-1]["step"] if rows else 0

    moments = [
        (lambda: trained("trial-0000") >= 6, "in the middle of the first trial"),
        (lambda: states()[:1] == ["COMPLETE"], "when the first trial has just ended"),
        (lambda: len(states()) > 2 and trained("trial-0002") >= 6, "in the middle of the third trial"),
    ]
    finished: dict[int, Any] = {}
    for happened, when in moments:
        process = start(tmp_path, "sweep", ray_address=cluster.address, **changes)
        wait_until(happened, process, when, 200)
        process.kill()
        process.wait()
        for trial in trials_of(sweep):
            if trial.state.is_finished():
                assert finished.setdefault(trial.number, trial.intermediate_values) == trial.intermediate_values
    code, _, err = finish(start(tmp_path, "sweep", ray_address=cluster.address, **changes), 400)
    assert code == 0, err
    trials = trials_of(sweep)
    assert len(trials) == 5
    assert all(trial.state.is_finished() for trial in trials)
    for number, values in finished.items():
        assert trials[number].intermediate_values == values
    for run in ("trial-0000", "trial-0002"):
        assert any(event["step"] >= 4 for event in events(sweep / run, "restore")), "went on from its checkpoint"
        assert [row["step"] for row in metrics(sweep / run)] == sorted({row["step"] for row in metrics(sweep / run)})
    assert_nothing_left(cluster.address)


def assert_nothing_left(address: str) -> None:
    code = """
import ray, time
ray.init(log_to_driver=False)
for _ in range(60):
    groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    free = ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU")
    if free and not groups:
        break
    time.sleep(0.5)
print(free, groups)
"""
    out = subprocess.check_output([sys.executable, "-c", code], text=True, env=os.environ | {"RAY_ADDRESS": address})
    assert out.strip() == "True []"
    names = [" ".join(process.cmdline()) for process in psutil.process_iter()]
    left = [name for name in names if "ray::TrialRun" in name or "ray::RayTrainWorker" in name]
    assert not left
