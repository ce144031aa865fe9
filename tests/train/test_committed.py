"""What a worker keeps of each step in memory puts back whatever the next one has changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simclr_ray import collective
from simclr_ray.optim.build import set_rate
from simclr_ray.train.committed import Committed
from simclr_ray.train.state import TrainState, initial_state, snapshot
from small_runs import TINY


def step(state: TrainState, *, seed: int) -> None:
    """One with drawn gradients; those of parameters that are not trained stay None."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in state.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None
    state.optimizer.step()
    state.step += 1


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    copy = snapshot(state)
    return {**copy.model, **copy.optimizer}


@pytest.mark.parametrize("undone", [0, 1, 2], ids=["first", "later", "prototypes thaw"])
def test_a_step_is_undone(undone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one in which prototypes are trained for the first time: the optimizer begins to keep their momentum."""
    monkeypatch.setattr(collective, "size", lambda: 2)
    state = initial_state(TINY.with_overrides({"method.name": "swav", "method.prototypes": 8}), torch.device("cpu"))
    set_rate(state.optimizer, 0.1)
    prototypes: Any = state.model.get_submodule("prototypes")
    committed = Committed(state, recoverable=True)
    committed.commit(None)
    for number in range(3):
        prototypes.requires_grad_(number == 2)
        before = tensors(state)
        step(state, seed=number)
        if number == undone:
            committed.put_back()
            assert state.step == number
            assert tensors(state).keys() == before.keys()
            assert all(torch.equal(value, before[name]) for name, value in tensors(state).items())
            step(state, seed=number)
        committed.commit(None)
    alone = initial_state(TINY.with_overrides({"method.name": "swav", "method.prototypes": 8}), torch.device("cpu"))
    set_rate(alone.optimizer, 0.1)
    for number in range(3):
        alone.model.get_submodule("prototypes").requires_grad_(number == 2)
        step(alone, seed=number)
    assert all(torch.equal(value, tensors(alone)[name]) for name, value in tensors(state).items())
