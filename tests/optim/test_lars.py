"""LARS against its equations, one weight at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simclr_ray.optim.lars import LARS, parameter_groups


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()


def test_ten_steps_equal_the_equations() -> None:
    model = network()
    optimizer = LARS(parameter_groups(model, 0.01), lr=0.3, momentum=0.9, trust_coefficient=0.02)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in weights.items()}
    generator = torch.Generator().manual_seed(1)
    for step in range(10):
        lr = 0.3 * (step + 1) / 10
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in model.named_parameters():
            g = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = g.clone()
            w = weights[name]
            trust = 1.0
            if w.ndim > 1:
                g = g + 0.01 * w
                trust = 0.02 * w.norm().item() / g.norm().item()
            velocity[name] = 0.9 * velocity[name] + lr * trust * g
            weights[name] = w - velocity[name]
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, weights[name], rtol=1e-12, atol=1e-14)


def test_trust_is_one_where_a_norm_is_zero() -> None:
    zero_weight, zero_gradient = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([zero_weight, zero_gradient], lr=0.5)
    zero_weight.grad, zero_gradient.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(zero_weight.data, torch.full((2, 2), -0.5))
    torch.testing.assert_close(zero_gradient.data, torch.ones(2, 2))


def test_batchnorm_and_biases_are_neither_decayed_nor_adapted() -> None:
    model = network()
    decayed, plain = parameter_groups(model, 0.1)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert {id(p) for p in plain["params"]} == {
        id(model[0].bias), id(model[1].weight), id(model[1].bias), id(model[3].bias)
    }  # fmt: skip
    assert (plain["weight_decay"], plain["adapt"]) == (0.0, False)


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}, {"trust_coefficient": 0.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LARS([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | wrong))
