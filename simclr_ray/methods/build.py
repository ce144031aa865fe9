"""From the config to the method that is trained, with the weights that a seed gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from simclr_ray.config import ModelConfig, SimCLRConfig
from simclr_ray.methods.simclr import SimCLR
from simclr_ray.model.heads import projection_head
from simclr_ray.model.resnet import ResNet

Method = SimCLR
"""What the loop trains; the union of all methods, once there are several."""
T = TypeVar("T")


def build_method(model: ModelConfig, method: SimCLRConfig, seed: int) -> Method:
    """The method on the CPU with the weights that `seed` gives."""
    return _seeded(lambda: draw_method(model, method), seed)


def build_encoder(model: ModelConfig, seed: int) -> ResNet:
    """The untrained encoder of `build_method` alone."""
    return _seeded(lambda: _draw_encoder(model), seed)


def draw_method(model: ModelConfig, method: SimCLRConfig) -> Method:
    """The method on torch's default device, drawn from its generator; on "meta" it has shapes and no weights.

    The encoder draws first, so its weights do not depend on the head.
    """
    encoder = _draw_encoder(model)
    return SimCLR(encoder, projection_head(model, encoder.feature_dim), method.temperature)


def _draw_encoder(model: ModelConfig) -> ResNet:
    return ResNet(model.arch, width=model.width, stem=model.stem)


def _seeded(draw: Callable[[], T], seed: int) -> T:
    """What `draw` gives on the CPU; no random state outside is read or moved."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return draw()
