"""Stochastic depth in the step: which masks the rows of a batch have, that it uses them, and that it compiles whole."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gloo import run_workers
from simclr_ray.config import Config
from simclr_ray.data.branches import kept_branches
from simclr_ray.data.order import order_of
from simclr_ray.methods.method import Method
from simclr_ray.train import attempt as attempts
from simclr_ray.train.batch import Batch
from simclr_ray.train.branches import kept_of
from simclr_ray.train.state import initial_state
from simclr_ray.train.step import forward_of, training_step
from small_runs import SMALL_BATCH, TINY, attempt, corrupted, synthetic_dataset, with_method

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ROWS = 8


def config_of(variant: str, **changes: Any) -> Config:
    values = {"train.precision": "float64", "train.global_batch": SMALL_BATCH}
    return with_method(TINY.with_overrides(values | changes), variant)


def batch_of(ids: list[int], local: bool) -> Batch:
    generator = torch.Generator().manual_seed(5)
    pixels = partial(torch.randint, 0, 256, generator=generator, dtype=torch.uint8)
    views, local_views = pixels((len(ids), 2, 8, 8, 3)), pixels((len(ids), 3, 4, 4, 3))
    bad = np.zeros(len(ids), bool)
    return Batch(3, views, np.array(ids), bad, local=local_views if local else None)


def test_masks_have_the_shape_of_the_views_and_the_numbers_of_theirs() -> None:
    """MoCo with a queue gives the encoder first views alone; local views follow the two whole ones."""
    ids = [4, 9, 2]
    for variant, numbers in (("moco_dropping", [[0]]), ("dino_multi_crop_dropping", [[0, 1], [2, 3, 4]])):
        model = initial_state(config_of(variant), CPU).model
        kept = kept_of(model, batch_of(ids, len(numbers) > 1), 11, 7)
        assert kept is not None
        for own, views in zip(kept, numbers, strict=True):
            assert np.array_equal(own.numpy(), kept_branches(11, 7, np.array(ids), views, [0.3, 0.3]))
    assert kept_of(initial_state(config_of("simclr"), CPU).model, batch_of(ids, False), 11, 7) is None


def stepped(config: Config, seed: int, *, compiled: bool = False, steps: int = 1) -> list[Tensor]:
    """All gradients of each step; at each epoch one step."""
    state, batch = initial_state(config, CPU), batch_of(list(range(ROWS)), True)
    forward = forward_of(state.model, MEAN, STD, "float64", CPU, compiled=compiled)
    found = []
    for epoch in range(steps):
        training_step(
            state.model,
            forward,
            state.optimizer,
            batch.views,
            passes=2,
            rows_per_worker=[ROWS // 2],
            local=batch.local,
            kept=kept_of(state.model, batch, seed, epoch),
        )
        found.append(torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None]))
    return found


def test_a_step_depends_on_its_masks() -> None:
    config = config_of("dino_multi_crop_dropping")
    one, again, other = (stepped(config, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-6
    without = stepped(config.with_overrides({"model.drop_path": 0.0}), 1)[0]
    assert (one - without).abs().max() > 1e-6


def plain_and_compiled(backend: str) -> tuple[list[Tensor], list[Tensor], int]:
    """Gradients of three steps, whose masks differ, with and without the compiler, and how many graphs it made."""
    config, graphs = config_of("dino_multi_crop_dropping"), []
    plain = stepped(config, 1, steps=3)

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=counting))
        return plain, stepped(config, 1, compiled=True, steps=3), len(graphs)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_without_a_graph_break_and_once_for_all_masks(backend: str) -> None:
    """`fullgraph` makes a graph break an error. Two sizes of views, each with and without a gradient: four graphs."""
    [(plain, compiled, graphs)] = run_workers(1, plain_and_compiled, backend)  # where no types are checked
    for got, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    assert graphs == 4


def test_a_run_asks_for_the_masks_of_its_epoch_and_ids_and_a_bad_image_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a whole attempt over two epochs hands to its steps."""
    dataset = corrupted(synthetic_dataset(tmp_path / "data", 96), tmp_path / "damaged", bad={3, 50})
    config = config_of("moco_dropping", **{"train.epochs": 2, "train.seed": 9})
    seen: list[tuple[Batch, int, int]] = []

    def noting(model: Method, batch: Batch, seed: int, epoch: int) -> Any:
        seen.append((replace(batch), seed, epoch))
        return kept_of(model, batch, seed, epoch)

    monkeypatch.setattr(attempts, "kept_of", noting)
    state = attempt(config, dataset, tmp_path / "run")
    order = order_of(config, dataset)
    assert [(seed, epoch) for _, seed, epoch in seen] == [(9, 0)] * 3 + [(9, 1)] * 3
    for batch, _, epoch in seen:
        positions = range(batch.step * order.slices_per_batch, (batch.step + 1) * order.slices_per_batch)
        slices = [order.slice_at(position) for position in positions]
        assert {own for own, _ in slices} == {epoch}
        ids = np.concatenate([np.arange(8 * number, 8 * number + 8) for _, number in slices])
        assert np.array_equal(batch.ids, ids)
        assert set(batch.ids[batch.bad]) == {3, 50} & set(ids.tolist())
    assert state.bad_ids == {3, 50}
