"""The projection head g: features h in, projections z out; discarded after pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from simclr_ray.config import ModelConfig
from simclr_ray.config.checks import require
from simclr_ray.model.batchnorm import BatchNorm


def projection_head(config: ModelConfig, feature_dim: int) -> nn.Sequential:
    """The head of the config: the identity (`none`), one dense layer (`linear`), or two or three (`mlp`)."""
    if config.head == "none":
        return dense_layers([feature_dim])
    if config.head == "linear":
        return dense_layers([feature_dim, config.head_dim])
    hidden = [config.head_hidden or feature_dim] * (config.head_layers - 1)
    return dense_layers([feature_dim, *hidden, config.head_dim], batchnorm=config.head_batchnorm)


def leading_layers(head: nn.Sequential, layers: int) -> nn.Sequential:
    """The first `layers` dense layers of an mlp head, each with its BatchNorm and ReLU; none of them for 0.

    SimCLR v2 (Chen et al. 2020, "Big self-supervised models", section 2) fine-tunes from there. The last layer is no
    middle one: raises BadInput if none would be left.
    """
    ends = [0, *(place + 1 for place, module in enumerate(head) if isinstance(module, nn.ReLU))]
    require(
        0 <= layers < len(ends),
        f"method.from_head {layers}: this projection head has {len(ends) - 1} layers before its last one; of the heads "
        "only mlp has any",
    )
    return head[: ends[layers]]


def predictor(dim: int, hidden: int) -> nn.Sequential:
    """The predictor of BYOL, SimSiam and MoCo v3: (n, dim) -> (n, dim), BatchNorm after the hidden layer alone."""
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, dim))


def projection_dim(config: ModelConfig, feature_dim: int) -> int:
    """The dimension of the projections of `projection_head`."""
    return feature_dim if config.head == "none" else config.head_dim


def dense_layers(widths: Sequence[int], *, batchnorm: bool = False) -> nn.Sequential:
    """Dense layers from each width to the next with ReLU between; (n, widths[0]) -> (n, widths[-1]).

    A single width is the identity, two are a linear head. Without BatchNorm this is the paper's head (section
    2.1, `Linear(2048, 2048) -> ReLU -> Linear(2048, 128)`). With it, it is the official code's: no dense layer has
    a bias, BatchNorm follows each, and the last has no beta. Dense weights start as torch starts them.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs, bias=not batchnorm))
        if batchnorm:
            layers.append(BatchNorm(outputs, bias=i < last))
        if i < last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
