"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): the views' cross-correlation matrix becomes the identity.

Official code: github.com/facebookresearch/barlowtwins, main.py. Every worker sums the products of its own rows; the
matrix is summed over workers, forward and backward, so it is that of the global batch whatever the split.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.method import Method, at_least_float32, global_rows
from simclr_ray.model.encoder import Encoder


class BarlowTwins(Method):
    """`off_diagonal_weight`: lambda of equation 1."""

    def __init__(self, encoder: Encoder, head: nn.Module, off_diagonal_weight: float) -> None:
        super().__init__()
        self.encoder, self.head, self.off_diagonal_weight = encoder, head, off_diagonal_weight

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d"]:
        return self.head(self.encoder(images))

    def loss(self, outputs: Float[Tensor, "m d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        view_a, view_b = self.projections(at_least_float32(outputs))
        return barlow_twins_loss(view_a, view_b, self.off_diagonal_weight, rows_per_worker=rows_per_worker)

    def projections(self, outputs: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(2)
        return view_a, view_b


def barlow_twins_loss(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    off_diagonal_weight: float = 0.005,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share, n/N of the loss of equation 1, with the statistics of all N rows."""
    rows = global_rows(len(view_a), rows_per_worker)
    with torch.autocast(view_a.device.type, enabled=False):
        a, b = _standardised(view_a, rows), _standardised(view_b, rows)
        correlation = collective.sum_with_gradient(a.T @ b / rows)
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return ((1 - diagonal).square().sum() + off_diagonal_weight * off_diagonal) * (len(view_a) / rows)


def _standardised(z: Float[Tensor, "n d"], rows: int) -> Float[Tensor, "n d"]:
    """BatchNorm without affine parameters over all workers' rows, as the official code applies it."""
    centred = z - collective.sum_with_gradient(z.sum(dim=0)) / rows
    variance = collective.sum_with_gradient(centred.square().sum(dim=0)) / rows
    return centred * torch.rsqrt(variance + 1e-5)
