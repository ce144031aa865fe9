"""Builds the method of a config, with initial weights from the seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from simclr_ray.config import ModelConfig, SimCLRConfig
from simclr_ray.methods.simclr import SimCLR
from simclr_ray.model.heads import projection_head
from simclr_ray.model.resnet import ResNet

Method = SimCLR
"""The type of module that the loop trains; the union of all methods, once there are several."""
T = TypeVar("T")


def build_method(model: ModelConfig, method: SimCLRConfig, seed: int) -> Method:
    """The method on the CPU, with weights drawn from `seed`."""
    return _seeded(lambda: draw_method(model, method), seed)


def build_encoder(model: ModelConfig, seed: int) -> ResNet:
    """The encoder of `build_method` alone, with the same initial weights."""
    return _seeded(lambda: _draw_encoder(model), seed)


def draw_method(model: ModelConfig, method: SimCLRConfig) -> Method:
    """The method on torch's default device, with weights from its generator; on "meta" it has shapes and no weights.

    The encoder is initialised first, so its weights do not depend on the head.
    """
    encoder = _draw_encoder(model)
    return SimCLR(encoder, projection_head(model, encoder.feature_dim), method.temperature)


def _draw_encoder(model: ModelConfig) -> ResNet:
    return ResNet(model.arch, width=model.width, stem=model.stem)


def _seeded(draw: Callable[[], T], seed: int) -> T:
    """The result of `draw` on the CPU under `seed`; the global random state is neither read nor changed."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return draw()
