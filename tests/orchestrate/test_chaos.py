"""Faults do not change the result: a disturbed run ends with the weights, ledger and metrics of an undisturbed one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from chaos import WorkerFault, assert_bitwise, assert_same_mathematics, final, random_faults, run_with_faults
from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows
from small_runs import TINY, synthetic_dataset

CONFIG = TINY.with_overrides(
    {
        "train.epochs": 5,
        "saving.every_steps": 4,
        "logging.ledger": True,
        "logging.every_steps": 1,
        "elasticity.settle_s": 0.0,
        "elasticity.resize_every_s": 0.0,
    }
)
# 12 slices a batch, so that a quarter of it still has one for each of three workers; 4 steps an epoch.
# A calm learning rate: at 0.5 and B / 4 training itself amplified rounding from 1e-16 to 1e-3 within 80 steps.
FLOAT64 = CONFIG.with_overrides({"train.precision": "float64", "train.global_batch": 96, "optim.lr_per_256": 0.1})
STEPS = 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 400)


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The undisturbed run of a config at a number of workers, made once."""
    found: dict[tuple[str, int], dict[str, Any]] = {}

    def get(config: Config, workers: int) -> dict[str, Any]:
        key = config.to_json(), workers
        if key not in found:
            folder = tmp_path_factory.mktemp("undisturbed")
            assert run_with_faults(config, dataset, folder, workers, []) == 1
            found[key] = final(folder)
        return found[key]

    return get


def kill_steps(count: int) -> list[int]:
    return sorted(random.Random(1).sample(range(1, STEPS), count))


@pytest.mark.parametrize(
    "step", [*kill_steps(17)[::6], *(pytest.param(s, marks=pytest.mark.slow) for s in kill_steps(17))]
)
def test_a_run_killed_at_a_random_step_ends_bitwise_equal(
    step: int, dataset: Dataset, tmp_path: Path, undisturbed: Any
) -> None:
    workers = 1 + step % 2
    kill = WorkerFault(step, "kill", workers, ranks=(step % workers,))
    assert run_with_faults(CONFIG, dataset, tmp_path, workers, [kill]) == 2
    assert_bitwise(final(tmp_path), undisturbed(CONFIG, workers))


@pytest.mark.parametrize(
    ("pass_size", "steps"),
    [(96, 24), (24, 20), *(pytest.param(size, 100, marks=pytest.mark.slow) for size in (96, 24))],
)
def test_a_changing_number_of_workers_changes_rounding_alone(
    pass_size: int, steps: int, dataset: Dataset, tmp_path: Path, undisturbed: Any
) -> None:
    """3 -> 1 -> 2 -> 3 in one run, against one worker undisturbed."""
    config = FLOAT64.with_overrides({"train.pass_size": pass_size, "train.epochs": steps // 4})
    at = [round(steps * part) for part in (0.23, 0.45, 0.7)]
    script = [
        WorkerFault(at[0], "kill", 1, ranks=(0, 2)),
        WorkerFault(at[1], "grow", 2),
        WorkerFault(at[2], "notice", 3),
    ]
    assert run_with_faults(config, dataset, tmp_path, 3, script) == 4
    assert_same_mathematics(final(tmp_path), undisturbed(config, 1))
    events = read_rows(open_location(str(tmp_path)) / "events.jsonl")
    purposes = [event for event in events if event["event"] in ("resize", "stop")]
    restored = [event["step"] for event in events if event["event"] == "restore"]
    assert [event["event"] for event in purposes] == ["resize", "stop"]
    assert restored[-2:] == [event["step"] for event in purposes], "a planned end loses no step"
    assert [event["workers"] for event in events if event["event"] in ("start", "restore")] == [3, 1, 2, 3]


def test_damaged_and_incomplete_checkpoints_are_skipped(dataset: Dataset, tmp_path: Path, undisturbed: Any) -> None:
    script = [
        WorkerFault(10, "cut save", 2, bytes=30_000),
        WorkerFault(17, "flip", 2, bytes=7),
        WorkerFault(26, "kill", 2, ranks=(1,)),
    ]
    assert run_with_faults(CONFIG, dataset, tmp_path, 2, script) == 4
    assert_bitwise(final(tmp_path), undisturbed(CONFIG, 2))
    events = read_rows(open_location(str(tmp_path)) / "events.jsonl")
    assert {event["event"] for event in events} >= {"attempt", "failure", "skipped_checkpoint", "restore", "done"}


@pytest.mark.slow
def test_fifty_mixed_faults_omit_and_repeat_no_sample(dataset: Dataset, tmp_path: Path, undisturbed: Any) -> None:
    config = FLOAT64.with_overrides({"train.epochs": 40})
    faults = random_faults(seed=7, count=50, steps=160, workers=[2, 1, 3])
    assert run_with_faults(config, dataset, tmp_path, 2, faults) == 51
    got = final(tmp_path)
    assert_same_mathematics(got, undisturbed(config, 1))
    assert [row["step"] for row in got["metrics"]] == list(range(1, 161))
    for epoch in range(40):
        ids = [sample for row in got["ledger"][4 * epoch : 4 * epoch + 4] for sample in row["ids"]]
        assert len(ids) == len(set(ids)) == 384
