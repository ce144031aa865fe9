"""Schedules of the optimizer and clipped gradients in whole runs: at every step, after a resume, with other workers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gloo import run_workers
from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.train.state import initial_state
from simclr_ray.train.step import forward_of, training_step
from small_runs import TINY, Killed, attempt, synthetic_dataset, weights

CPU = torch.device("cpu")
DECAYING = {"optim.weight_decay": 0.0, "optim.weight_decay_end": 0.4, "optim.lr_end_fraction": 0.1}


def config_of(optimizer: str, **changes: object) -> Config:
    """Six steps, of six slices each."""
    values = {"optim.optimizer": optimizer, "optim.lr_per_256": 0.02, "train.precision": "float64"}
    return TINY.with_overrides(values | {"saving.every_steps": 2} | DECAYING | changes)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data"), 96)


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_every_step_has_its_own_weight_decay_and_a_resumed_run_goes_on_with_it(
    optimizer: str, dataset: Dataset, tmp_path: Path
) -> None:
    """`simsiam`'s predictor keeps its learning rate, not its weight decay."""
    config = config_of(optimizer, **{"method.name": "simsiam"})
    seen: list[list[tuple[bool, bool, float, float]]] = []

    def look(each: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        groups = each.param_groups
        seen.append([(g["scheduled"], g["params"][0].ndim > 1, g["lr"], g["weight_decay"]) for g in groups])

    hook = register_optimizer_step_pre_hook(look)
    whole = weights(attempt(config, dataset, tmp_path / "whole"))
    undisturbed, seen = seen, []
    with pytest.raises(Killed):
        attempt(config, dataset, tmp_path / "cut", die_after_step=3)
    seen = seen[:2]  # the third step is lost: the newest checkpoint is the second one's
    resumed = weights(attempt(config, dataset, tmp_path / "cut"))
    hook.remove()
    assert seen == undisturbed
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())

    peak = 0.02 * 48 / 256
    rates = [0.0, peak / 2] + [peak * (0.1 + 0.45 * (1 + math.cos(math.pi * i / 4))) for i in range(4)]
    decays = [0.2 * (1 - math.cos(math.pi * i / 6)) for i in range(6)]
    assert len(undisturbed) == 6
    for step, groups in enumerate(undisturbed):
        assert {group[:2] for group in groups} == {(a, b) for a in (True, False) for b in (True, False)}
        for scheduled, matrix, lr, decay in groups:
            assert lr == pytest.approx(rates[step] if scheduled else peak)
            assert decay == pytest.approx(decays[step] if matrix else 0.0)


def gradients(clip: float | None) -> list[Tensor]:
    state = initial_state(config_of("sgd"), CPU)
    forward = forward_of(state.model, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "float64", CPU, compiled=False)
    views = torch.randint(0, 256, (8, 2, 16, 16, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    training_step(state.model, forward, state.optimizer, views, passes=2, rows_per_worker=[4], clip_grad_norm=clip)
    return [p.grad for p in state.model.parameters() if p.grad is not None]


def test_a_gradient_that_is_too_long_is_scaled_down_and_a_shorter_one_is_not_changed() -> None:
    plain = gradients(None)
    norm = math.sqrt(sum(float(g.square().sum()) for g in plain))
    for got, expected in zip(gradients(norm / 3), plain, strict=True):
        torch.testing.assert_close(got, expected / 3, rtol=1e-5, atol=0)  # torch adds 1e-6 to the norm
    assert all(torch.equal(got, expected) for got, expected in zip(gradients(norm * 1.01), plain, strict=True))


def clipped_run(dataset: Dataset, folder: Path, clip: float | None = 0.05) -> dict[str, Tensor]:
    return weights(attempt(config_of("sgd", **{"optim.clip_grad_norm": clip}), dataset, folder))


def test_workers_clip_the_gradient_of_the_global_batch(dataset: Dataset, tmp_path: Path) -> None:
    alone = clipped_run(dataset, tmp_path / "alone")
    for found in run_workers(3, clipped_run, dataset, tmp_path / "together"):
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
    free = clipped_run(dataset, tmp_path / "free", None)
    assert not torch.allclose(free["encoder.conv1.weight"], alone["encoder.conv1.weight"], rtol=1e-4)
