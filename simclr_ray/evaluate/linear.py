"""Linear evaluation: a softmax classifier trained on frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the classifier is trained (SimCLR, appendix B.6): SGD with Nesterov momentum and a cosine to zero."""

    epochs: int
    batch: int
    lr_per_256: float
    momentum: float
    weight_decay: float


IMAGENET_PROBE = ProbeConfig(epochs=90, batch=4096, lr_per_256=0.1, momentum=0.9, weight_decay=0.0)
# 0.1 at a batch of 512, as it stands: the paper does not scale it here.
CIFAR_PROBE = ProbeConfig(epochs=100, batch=512, lr_per_256=0.05, momentum=0.9, weight_decay=0.0)


def probe_config(rows: int) -> ProbeConfig:
    """The paper's parameters for ImageNet, and for training sets of CIFAR's size: below 100,000 images."""
    return CIFAR_PROBE if rows < 100_000 else IMAGENET_PROBE


def train_probe(
    views: Sequence[Float[Tensor, "n d"]],
    labels: Int64[Tensor, " n"],
    *,
    classes: int,
    config: ProbeConfig,
    seed: int,
    check_control: Callable[[], None] | None = None,
) -> nn.Linear:
    """The classifier after `config.epochs` over the n images, on the device of the features.

    `views` holds features of differently cropped views of the same images; each epoch takes the next. Features are
    used as they come, neither standardised nor normalised, as in the paper. The classifier starts at zero: the
    problem is convex, so `seed` only orders the batches. A batch holds at most n images, and the learning rate is
    scaled by its size; images left at the end of an epoch that do not fill a batch are dropped. `check_control` is
    called after each epoch.
    """
    batch = min(config.batch, len(labels))
    probe = nn.utils.skip_init(nn.Linear, views[0].shape[1], classes, device=views[0].device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.SGD(
        probe.parameters(), momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay
    )
    steps_per_epoch = len(labels) // batch
    steps = config.epochs * steps_per_epoch
    for step, (epoch, rows) in enumerate(_batches(len(labels), batch, config.epochs, seed)):
        lr = config.lr_per_256 * batch / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr
        rows = rows.to(labels.device)
        loss = F.cross_entropy(probe(views[epoch % len(views)][rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if check_control and (step + 1) % steps_per_epoch == 0:
            check_control()
    return probe


def _batches(n: int, batch: int, epochs: int, seed: int) -> Iterator[tuple[int, Int64[Tensor, " batch"]]]:
    """Epoch and rows of every step; drawn on the CPU, so that the order is the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - batch + 1, batch):
            yield epoch, order[start : start + batch]
