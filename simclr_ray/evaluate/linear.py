"""Linear evaluation: a softmax classifier trained on frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from simclr_ray.evaluate.accuracy import Accuracy, accuracy, ranked


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the classifier is trained (SimCLR, appendix B.6): SGD with Nesterov momentum and a cosine to zero."""

    epochs: int
    batch: int
    lr_per_256: float
    momentum: float
    weight_decay: float


IMAGENET_PROBE = ProbeConfig(epochs=90, batch=4096, lr_per_256=0.1, momentum=0.9, weight_decay=0.0)
CIFAR_PROBE = ProbeConfig(epochs=100, batch=512, lr_per_256=0.1, momentum=0.9, weight_decay=0.0)


def probe_config(rows: int) -> ProbeConfig:
    """The paper's parameters for ImageNet, and for training sets of CIFAR's size: below 100,000 images."""
    return CIFAR_PROBE if rows < 100_000 else IMAGENET_PROBE


def train_probe(
    features: Float[Tensor, "copies n d"],
    labels: Int64[Tensor, " n"],
    *,
    classes: int,
    config: ProbeConfig,
    seed: int,
    between: Callable[[], None] | None = None,
) -> nn.Linear:
    """The classifier after `config.epochs` over the n images, on the device of the features.

    `copies` are features of differently cropped views of the same images; each epoch takes the next. Features are
    used as they come, neither standardised nor normalised, as in the paper. The classifier starts at zero: the
    problem is convex, so `seed` only orders the batches. Batches hold at most n images, and the learning rate
    follows the batch; the tail of an epoch below a batch is dropped. `between` is called after each epoch.
    """
    batch = min(config.batch, len(labels))
    probe = nn.utils.skip_init(nn.Linear, features.shape[2], classes, device=features.device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.SGD(
        probe.parameters(), momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay
    )
    steps_per_epoch = len(labels) // batch
    steps = config.epochs * steps_per_epoch
    for step, (copy, rows) in enumerate(_batches(features.shape[:2], batch, config.epochs, seed)):
        lr = config.lr_per_256 * batch / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr
        rows = rows.to(features.device)
        loss = F.cross_entropy(probe(features[copy, rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if between and (step + 1) % steps_per_epoch == 0:
            between()
    return probe


def probe_accuracy(probe: nn.Linear, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Accuracy:
    """Top-1 and top-5 accuracy of the classifier."""
    return accuracy(predict(probe, features), labels)


def predict(probe: nn.Linear, features: Float[Tensor, "n d"]) -> Int64[Tensor, "n ranks"]:
    """Up to five classes for each row, best first."""
    with torch.no_grad():
        return ranked(probe(features))


def _batches(shape: torch.Size, batch: int, epochs: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """(copy, rows) of every step; on the CPU, so that the order is the same on every device."""
    copies, n = shape
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - batch + 1, batch):
            yield epoch % copies, order[start : start + batch]
