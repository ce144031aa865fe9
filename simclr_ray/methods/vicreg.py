"""VICReg (Bardes et al. 2022, arXiv 2105.04906): invariance, variance of every dimension, decorrelated dimensions.

Official code: github.com/facebookresearch/vicreg, main_vicreg.py. Variance and covariance are those of the global
batch: sums over a worker's rows are summed over workers, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.method import Method, at_least_float32, global_rows
from simclr_ray.model.encoder import Encoder


class VICReg(Method):
    """The weights are lambda, mu and nu of equation 6."""

    def __init__(
        self, encoder: Encoder, head: nn.Module, *, invariance: float, variance: float, covariance: float
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d"]:
        return self.head(self.encoder(images))

    def loss(self, outputs: Float[Tensor, "m d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        view_a, view_b = self.projections(at_least_float32(outputs))
        return vicreg_loss(
            view_a, view_b, self.invariance, self.variance, self.covariance, rows_per_worker=rows_per_worker
        )

    def projections(self, outputs: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(2)
        return view_a, view_b


def vicreg_loss(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of equation 6: its rows' part of the invariance, n/N of the terms of all N rows."""
    local, dim = view_a.shape
    rows = global_rows(local, rows_per_worker)
    with torch.autocast(view_a.device.type, enabled=False):
        distance = (view_a - view_b).square().sum() / (rows * dim)
        hinges, squares = zip(*(_hinge_and_covariance(view, rows) for view in (view_a, view_b)), strict=True)
        regular = variance * sum(hinges) / 2 + covariance * sum(squares)
        return invariance * distance + regular * (local / rows)


def _hinge_and_covariance(z: Float[Tensor, "n d"], rows: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean hinge on the standard deviations (equation 1), and the squared off-diagonal covariances (equation 4)."""
    centred = z - collective.sum_with_gradient(z.sum(dim=0)) / rows
    matrix = collective.sum_with_gradient(centred.T @ centred) / (rows - 1)
    variances = matrix.diagonal()
    hinge = F.relu(1 - torch.sqrt(variances + 1e-4)).mean()
    return hinge, (matrix.square().sum() - variances.square().sum()) / z.shape[1]
