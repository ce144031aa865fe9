"""Every optimizer with a weight decay that changes from step to step, against its equations one weight at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simclr_ray.config import OptimConfig
from simclr_ray.optim.build import build_optimizer, set_rate, set_weight_decay

PEAK, BATCH = 0.3, 256
RATES, DECAYS = (0.1, 0.3, 0.2, 0.05), (0.0, 0.2, 0.5, 0.4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()


Weight = tuple[Tensor, float, Iterator[tuple[float, float, Tensor]]]
"""Its start, 1 if it is decayed or else 0, and of each step the learning rate, the weight decay and the gradient."""


def sgd(weight: Weight) -> Tensor:
    w, decayed, steps = weight
    velocity = torch.zeros_like(w)
    for lr, decay, g in steps:
        velocity = 0.9 * velocity + g + decayed * decay * w
        w = w - lr * velocity
    return w


def lars(weight: Weight) -> Tensor:
    w, decayed, steps = weight
    velocity = torch.zeros_like(w)
    for lr, decay, g in steps:
        g = g + decayed * decay * w
        trust = 0.02 * w.norm() / g.norm() if decayed else 1.0
        velocity = 0.9 * velocity + lr * trust * g
        w = w - velocity
    return w


def adamw(weight: Weight) -> Tensor:
    w, decayed, steps = weight
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    for count, (lr, decay, g) in enumerate(steps, start=1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        w = w * (1 - lr * decayed * decay)
        w = w - lr * first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize(("name", "equations"), [("sgd", sgd), ("lars", lars), ("adamw", adamw)])
def test_steps_of_other_weight_decays_equal_the_equations(name: Any, equations: Callable[[Weight], Tensor]) -> None:
    """The last layer is one whose rate stays at its peak; its weight decay follows the schedule all the same."""
    model = network()
    config = OptimConfig(optimizer=name, lr_per_256=PEAK, weight_decay=DECAYS[0], trust_coefficient=0.02)
    optimizer = build_optimizer(model, config, BATCH, constant_rate=("3",))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    gradients = [
        {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in start.items()}
        for _ in RATES
    ]
    for rate, decay, of_step in zip(RATES, DECAYS, gradients, strict=True):
        set_rate(optimizer, rate)
        set_weight_decay(optimizer, decay)
        for name, parameter in model.named_parameters():
            parameter.grad = of_step[name].clone()
        optimizer.step()
    for name, parameter in model.named_parameters():
        rates = [PEAK] * len(RATES) if name.startswith("3.") else RATES
        steps = zip(rates, DECAYS, (of_step[name] for of_step in gradients), strict=True)
        expected = equations((start[name], float(parameter.ndim > 1), steps))
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-11, atol=1e-13, msg=name)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_biases_may_learn_at_a_fraction_of_the_rate(name: Any) -> None:
    model = network()
    config = OptimConfig(optimizer=name, lr_per_256=PEAK, bias_lr_fraction=0.024)
    optimizer = build_optimizer(model, config, BATCH, constant_rate=["3"])
    set_rate(optimizer, 0.2)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    conv, norm, _, last = model
    assert [found[id(p)] for p in (conv.weight, conv.bias, norm.weight, norm.bias)] == [0.2] + [0.2 * 0.024] * 3
    assert [found[id(p)] for p in (last.weight, last.bias)] == [PEAK, PEAK * 0.024]
