"""Builds the optimizer of a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from simclr_ray.config import Config, OptimConfig
from simclr_ray.optim.lars import LARS, parameter_groups
from simclr_ray.optim.schedule import peak_lr, rate_at, weight_decay_at


def build_optimizer(
    model: nn.Module, config: OptimConfig, global_batch: int, constant_rate: Sequence[str] = ()
) -> torch.optim.Optimizer:
    """The optimizer of the config; BatchNorm parameters and biases are never decayed.

    The parameters of the submodules `constant_rate` are in groups of their own, whose `scheduled` is False. Groups of
    parameters that are decayed, if only later in the run, have `decayed`.
    """
    groups = _groups(model, config.weight_decay, constant_rate)
    lr = peak_lr(config.lr_per_256, config.lr_scaling, global_batch)
    for group in groups:
        group["lr_fraction"] = 1.0 if group["decayed"] else config.bias_lr_fraction
        group["lr"] = lr * group["lr_fraction"]
    if config.optimizer == "lars":
        return LARS(groups, lr, config.momentum, config.weight_decay, config.trust_coefficient)
    for group in groups:
        del group["adapt"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.AdamW(groups, lr)


def _groups(model: nn.Module, weight_decay: float, constant_rate: Sequence[str]) -> list[dict[str, Any]]:
    constant = {id(p) for name in constant_rate for p in model.get_submodule(name).parameters()}
    groups = []
    for group in parameter_groups(model, weight_decay):
        for scheduled in (True, False):
            params = [p for p in group["params"] if (id(p) not in constant) == scheduled]
            if params:
                groups.append(group | {"params": params, "scheduled": scheduled, "decayed": group["adapt"]})
    return groups


def set_schedule(optimizer: torch.optim.Optimizer, config: Config, step: int, steps_per_epoch: int) -> float:
    """Sets learning rate and weight decay of `step` of the run that `config` describes; returns the former."""
    rate = rate_at(config, step, steps_per_epoch)
    set_rate(optimizer, rate)
    set_weight_decay(optimizer, weight_decay_at(config, step, steps_per_epoch))
    return rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every scheduled group, of which `rate` is the weights'; the others stay at the peak."""
    for group in optimizer.param_groups:
        if group["scheduled"]:
            group["lr"] = rate * group["lr_fraction"]


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Sets the weight decay of every group but those of BatchNorm parameters and biases."""
    for group in optimizer.param_groups:
        if group["decayed"]:
            group["weight_decay"] = weight_decay
