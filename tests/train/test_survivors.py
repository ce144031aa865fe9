"""The loss of workers costs a step, and changes nothing but rounding: the others go on with the state in memory."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from chaos import assert_bitwise, assert_same_mathematics, final
from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows
from small_runs import TINY, synthetic_dataset, with_method
from survivors import FENCED, LEFT, Loss, survive

# 12 slices a batch, 4 steps an epoch; at a calm rate, or training itself amplifies float64's rounding.
CONFIG = TINY.with_overrides(
    {
        "train.epochs": 4,
        "train.global_batch": 96,
        "train.precision": "float64",
        "optim.lr_per_256": 0.1,
        "saving.every_steps": 1000,
        "logging.ledger": True,
        "logging.every_steps": 1,
        "evaluate.every_epochs": 1,
        "evaluate.method": "rankme",
    }
)


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
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            assert set(survive(config, dataset, folder, workers, []).values()) == {0}
            found[key] = final(folder)
        return found[key]

    return get


def regroups(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(open_location(str(folder)) / "events.jsonl") if row["event"] == "regroup"]


def assert_survived(config: Config, dataset: Dataset, run: Path, workers: int, losses: list[Loss], alone: Any) -> None:
    """The run ends like that of one undisturbed worker, and each of the losses has happened to somebody."""
    codes = survive(config, dataset, run, workers, losses)
    dead = sum(len(loss.ranks) for loss in losses)
    assert sorted(codes.values()) == [-9] * dead + [0] * (len(codes) - dead)
    assert_same_mathematics(final(run), alone(config, 1))


def test_survivors_go_on_and_others_join(dataset: Dataset, tmp_path: Path, undisturbed: Any) -> None:
    losses = [Loss(step=4, ranks=(2,)), Loss(step=7, ranks=(0,), others=2)]
    assert_survived(CONFIG, dataset, tmp_path / "run", 3, losses, undisturbed)
    found = regroups(tmp_path / "run")
    assert [row["workers"]["to"] for row in found][:2] == [2, 1]
    assert found[-1]["workers"]["to"] == 3
    assert [row["lost"] for row in found][:2] == [1, 1]
    assert max(row["pause_s"] for row in found) < 5.0


@pytest.mark.parametrize("point", ["batch", "gradients", "log", "save", "evaluation"])
def test_rank_0_is_lost_three_times_in_a_row(point: Any, dataset: Dataset, tmp_path: Path, undisturbed: Any) -> None:
    config = CONFIG.with_overrides({"saving.every_steps": 1}) if point == "save" else CONFIG
    losses = [Loss(step=step, point=point) for step in (3, 7, 11)]
    assert_survived(config, dataset, tmp_path / "run", 4, losses, undisturbed)


def test_two_of_five_are_lost_at_once_and_another_while_the_group_forms(
    dataset: Dataset, tmp_path: Path, undisturbed: Any
) -> None:
    """Of five, not all are connected to the lost ones."""
    losses = [Loss(step=3, ranks=(1, 3)), Loss(step=6, ranks=(2,)), Loss(step=6, point="form", ranks=(1,))]
    assert_survived(CONFIG, dataset, tmp_path / "run", 5, losses, undisturbed)


def test_one_is_lost_while_it_gives_its_state_to_another(dataset: Dataset, tmp_path: Path, undisturbed: Any) -> None:
    losses = [Loss(step=3, ranks=(2,), others=1), Loss(step=3, point="share", ranks=(0,))]
    assert_survived(CONFIG, dataset, tmp_path / "run", 3, losses, undisturbed)


def test_workers_leave_before_they_are_taken_away(dataset: Dataset, tmp_path: Path, undisturbed: Any) -> None:
    losses = [Loss(step=5, ranks=(1,), how="noticed"), Loss(step=12, ranks=(0,), how="noticed")]
    codes = survive(CONFIG, dataset, tmp_path / "run", 3, losses)
    assert sorted(codes.values()) == [0, LEFT, LEFT]
    assert_same_mathematics(final(tmp_path / "run"), undisturbed(CONFIG, 1))
    assert [row["workers"] for row in regroups(tmp_path / "run")] == [{"from": 3, "to": 2}, {"from": 2, "to": 1}]


@pytest.mark.parametrize("point", ["gradients", "log"])
def test_a_frozen_worker_does_not_write_when_it_wakes(
    point: Any, dataset: Dataset, tmp_path: Path, undisturbed: Any
) -> None:
    """Rank 0, which freezes in the middle of a step, or just before it writes a row of the log."""
    losses = [Loss(step=6, point=point, how="frozen")]
    codes = survive(CONFIG, dataset, tmp_path / "run", 3, losses, frozen_s=2.0)
    assert sorted(codes.values()) == [0, 0, FENCED]
    assert_same_mathematics(final(tmp_path / "run"), undisturbed(CONFIG, 1))


def test_a_worker_replaced_before_the_next_step_leaves_no_trace(
    dataset: Dataset, tmp_path: Path, undisturbed: Any
) -> None:
    losses = [Loss(step=6, ranks=(1,), others=1), Loss(step=13, ranks=(0,), others=1)]
    config = CONFIG.with_overrides({"train.precision": "float32"})
    codes = survive(config, dataset, tmp_path / "run", 2, losses, wait_s=120.0)
    assert sorted(codes.values()) == [-9, -9, 0, 0]
    assert_bitwise(final(tmp_path / "run"), undisturbed(config, 2))


def test_if_all_are_lost_others_go_on_from_the_newest_checkpoint(
    dataset: Dataset, tmp_path: Path, undisturbed: Any
) -> None:
    config = CONFIG.with_overrides({"saving.every_steps": 5})
    assert_survived(config, dataset, tmp_path / "run", 2, [Loss(step=7, ranks=(0, 1), others=2)], undisturbed)
    kinds = [row["event"] for row in read_rows(open_location(str(tmp_path / "run")) / "events.jsonl")]
    assert kinds.count("restore") == 1
    assert "regroup" not in kinds


@pytest.mark.parametrize(
    "variant",
    [
        "moco_dropping",
        *(pytest.param(v, marks=pytest.mark.slow) for v in ("byol", "swav_queue_multi_crop", "dino_multi_crop")),
    ],
)
def test_methods_with_a_state_survive_too(variant: str, dataset: Dataset, tmp_path: Path, undisturbed: Any) -> None:
    config = with_method(CONFIG, variant, **{"train.epochs": 3})
    losses = [Loss(step=2, ranks=(1,)), Loss(step=5, ranks=(0,))]
    assert_survived(config, dataset, tmp_path / "run", 3, losses, undisturbed)


@pytest.mark.slow
def test_fifty_losses_omit_and_repeat_no_sample(dataset: Dataset, tmp_path: Path, undisturbed: Any) -> None:
    rng, losses = random.Random(3), []
    for step in sorted(rng.sample(range(2, 300, 3), 50)):
        point = rng.choice(["batch", "gradients", "log", "save", "evaluation"])
        ranks = (0,) if point in ("log", "save") else tuple(rng.sample(range(3), rng.choice([1, 1, 2])))
        losses.append(Loss(step=step, point=point, ranks=ranks, others=len(ranks)))  # type: ignore[arg-type]
    config = CONFIG.with_overrides({"train.epochs": 80, "saving.every_steps": 3})
    assert_survived(config, dataset, tmp_path / "run", 4, losses, undisturbed)


@pytest.mark.slow
def test_five_of_six_do_their_next_step_within_a_second_and_a_half(
    dataset: Dataset, tmp_path: Path, undisturbed: Any
) -> None:
    """Six processes share this machine's cores. Each loss is replaced, so that the next one finds six again."""
    losses = [Loss(step=6 * number, ranks=(rank,), others=1) for number, rank in enumerate([3, 0, 5, 0, 1, 2, 0], 1)]
    config = CONFIG.with_overrides({"train.epochs": 12})
    assert_survived(config, dataset, tmp_path / "run", 6, losses, undisturbed)
    steps_at = [row["time"] for row in read_rows(open_location(str(tmp_path / "run")) / "metrics.jsonl")]
    pauses = []
    for number in range(len(losses)):
        lost_at = next((tmp_path / "run-marks").glob(f"{number}-*")).stat().st_mtime
        change = next(row for row in regroups(tmp_path / "run") if row["time"] > lost_at)
        assert change["workers"]["from"] == 6
        pauses.append(next(at for at in steps_at if at > change["time"]) - lost_at)
    print("seconds until the next step:", " ".join(f"{pause:.2f}" for pause in pauses))
    assert median(pauses) < 1.5
