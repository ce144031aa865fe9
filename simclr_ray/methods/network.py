"""The network that is pretrained: encoder and projection head, initialised from a seed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray.config import ModelConfig
from simclr_ray.model.heads import head_widths, projection_head
from simclr_ray.model.resnet import ResNet


class SimCLR(nn.Module):
    """z = g(f(x)): the projections that NT-Xent compares (Chen et al. 2020, section 2.1)."""

    def __init__(self, encoder: ResNet, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, views: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return self.head(self.encoder(views))


def build_model(config: ModelConfig, seed: int) -> SimCLR:
    """The model on the CPU with the weights that `seed` gives; no random state outside is read or moved."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return draw_model(config)


def draw_model(config: ModelConfig) -> SimCLR:
    """The model on torch's default device, drawn from its generator; on "meta" it has shapes and no weights.

    The encoder draws first, so its weights do not depend on the head.
    """
    encoder = ResNet(config.arch, width=config.width, stem=config.stem)
    widths = head_widths(
        config.head, encoder.feature_dim, layers=config.head_layers, hidden=config.head_hidden, dim=config.head_dim
    )
    return SimCLR(encoder, projection_head(widths, batchnorm=config.head_batchnorm and config.head == "mlp"))
