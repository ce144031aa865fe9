"""The projection head g: features h in, projections z out; discarded after pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from simclr_ray.config import ModelConfig
from simclr_ray.config.checks import require
from simclr_ray.model.batchnorm import BatchNorm

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


def projection_head(config: ModelConfig, feature_dim: int) -> nn.Sequential:
    """The head of the config: the identity (`none`), one dense layer (`linear`), or two or three (`mlp`)."""
    if config.head == "none":
        return dense_layers([feature_dim])
    if config.head == "linear":
        return dense_layers([feature_dim, config.head_dim])
    hidden = [config.head_hidden or feature_dim] * (config.head_layers - 1)
    widths, activation = [feature_dim, *hidden, config.head_dim], ACTIVATIONS[config.head_activation]
    return dense_layers(widths, batchnorm=config.head_batchnorm, activation=activation)


def leading_layers(head: nn.Sequential, layers: int) -> nn.Sequential:
    """The first `layers` dense layers of an mlp head, each with its BatchNorm and activation; none of them for 0.

    SimCLR v2 (Chen et al. 2020, "Big self-supervised models", section 2) fine-tunes from there. The last layer is no
    middle one: raises BadInput if none would be left.
    """
    ends = [0, *(place + 1 for place, module in enumerate(head) if isinstance(module, tuple(ACTIVATIONS.values())))]
    require(
        0 <= layers < len(ends),
        f"method.from_head {layers}: this projection head has {len(ends) - 1} layers before its last one; of the heads "
        "only mlp has any",
    )
    return head[: ends[layers]]


def predictor(dim: int, hidden: int, *, last_batchnorm: bool = False) -> nn.Sequential:
    """The predictor of BYOL, SimSiam and MoCo v3: (n, dim) -> (n, dim).

    BatchNorm after the hidden layer; with `last_batchnorm` after the last one too, as MoCo v3's has for vision
    transformers: a head of two layers.
    """
    if last_batchnorm:
        return dense_layers([dim, hidden, dim], batchnorm=True)
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, dim))


def projection_dim(config: ModelConfig, feature_dim: int) -> int:
    """The dimension of the projections of `projection_head`."""
    return feature_dim if config.head == "none" else config.head_dim


def dense_layers(
    widths: Sequence[int], *, batchnorm: bool = False, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Dense layers from each width to the next with ReLU between, or another; (n, widths[0]) -> (n, widths[-1]).

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
            layers.append(activation())
    return nn.Sequential(*layers)
