"""Builds the optimizer of a config."""

from __future__ import annotations

import torch
from torch import nn

from simclr_ray.config import OptimConfig
from simclr_ray.optim.lars import LARS, parameter_groups
from simclr_ray.optim.schedule import peak_lr


def build_optimizer(model: nn.Module, config: OptimConfig, global_batch: int) -> torch.optim.Optimizer:
    """The optimizer of the config; BatchNorm parameters and biases are never decayed."""
    groups = parameter_groups(model, config.weight_decay)
    lr = peak_lr(config.lr_per_256, config.lr_scaling, global_batch)
    if config.optimizer == "lars":
        return LARS(groups, lr, config.momentum, config.weight_decay, config.trust_coefficient)
    for group in groups:
        del group["adapt"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr)
