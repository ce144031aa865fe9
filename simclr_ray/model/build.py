"""Draws the encoder of a config."""

from __future__ import annotations

from simclr_ray.config import ModelConfig
from simclr_ray.model.encoder import Encoder
from simclr_ray.model.resnet import ResNet


def draw_encoder(config: ModelConfig, size: int) -> Encoder:
    """The encoder on torch's default device, with weights from its generator; for views of `size` pixels.

    Raises BadInput if the library that `config.arch` names has no such network, or none for that size
    or with stochastic depth.
    """
    library, _, name = config.arch.rpartition(":")
    if not library:
        return ResNet(name, width=config.width, stem=config.stem)
    from simclr_ray.model import backbones  # torchvision takes a second to import

    build = backbones.torchvision_encoder if library == "torchvision" else backbones.timm_encoder
    return build(name, size, config.drop_path)
