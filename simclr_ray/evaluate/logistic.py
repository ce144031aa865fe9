"""Logistic regression of frozen features, by which an encoder's transfer to other data is judged (SimCLR, B.8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

GRID = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))
"""The paper's strengths of the regularisation: 45 from 1e-6 to 1e5, evenly spaced in their logarithm."""
TOLERANCE = 1e-6
"""L-BFGS ends where no derivative of the objective of an image is larger."""
SMALLEST_CHANGE = 1e-12
"""It also ends where a step changes the objective or every weight by less: there float64 ends too."""
MOST_ITERATIONS = 1000


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Logistic regression whose strength is chosen on a part of the training images; it is then fitted to all."""

    grid: tuple[float, ...] = GRID
    validation: float = 0.2
    """The part of each class's images on which it is chosen."""


@dataclass(frozen=True, kw_only=True)
class LogisticConfig:
    l2: float
    """Multiplies half of the weights' squares beside the *sum* of the cross-entropies: 1 / C of scikit-learn."""


def fit_logistic(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    *,
    classes: int,
    l2: float,
    start: nn.Linear | None = None,
) -> nn.Linear:
    """The float64 classifier at the minimum of sum_i cross-entropy_i + l2 / 2 |W|^2, on the features' device.

    The bias is not regularised. The problem is convex: `start` (None: zero) saves steps and decides nothing.
    """
    # L-BFGS is slow where the features have a large mean, as those behind a ReLU do, and where the objective is much
    # steeper or flatter than 1. The same classifier, of centred and scaled features: W' = W x scale, b' = b + W centre.
    h = features.double()
    centre = h.mean(dim=0)
    scale = (h.var(dim=0, correction=0).mean() + l2 / len(h)).sqrt()
    z = (h - centre) / scale
    weight = torch.zeros(classes, h.shape[1], dtype=h.dtype, device=h.device)
    bias = weight.new_zeros(classes)
    if start is not None:
        weight, bias = start.weight.detach() * scale, start.bias.detach() + start.weight.detach() @ centre
    weight, bias = weight.requires_grad_(), bias.requires_grad_()

    def objective() -> Tensor:
        penalty = l2 / 2 * (weight / scale).square().sum() / len(z)
        return F.cross_entropy(F.linear(z, weight, bias), labels) + penalty

    _minimise(objective, [weight, bias])
    fitted = nn.utils.skip_init(nn.Linear, h.shape[1], classes, dtype=h.dtype, device=h.device)
    with torch.no_grad():
        fitted.weight.copy_(weight / scale)
        fitted.bias.copy_(bias - fitted.weight @ centre)
    return fitted


def _minimise(objective: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=MOST_ITERATIONS,
        max_eval=2 * MOST_ITERATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=SMALLEST_CHANGE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)


def choose_l2(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    held_out: Bool[Tensor, " n"],
    *,
    classes: int,
    grid: Sequence[float],
) -> float:
    """The strength of the grid whose classifier of the other rows is right on the most rows held out.

    Of equally good ones the strongest. From the strongest on, each fit starts where the one before it ended.
    """
    best, best_hits, fitted = max(grid), -1, None
    h, tried, known, own = features[~held_out], features[held_out].double(), labels[~held_out], labels[held_out]
    for l2 in sorted(grid, reverse=True):
        fitted = fit_logistic(h, known, classes=classes, l2=l2, start=fitted)
        with torch.no_grad():
            hits = int((fitted(tried).argmax(dim=1) == own).sum())
        if hits > best_hits:
            best, best_hits = l2, hits
    return best
