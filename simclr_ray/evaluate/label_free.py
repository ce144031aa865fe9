"""RankMe: a measure of features that needs no labels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-7


def rankme(features: Float[Tensor, "n d"]) -> float:
    """The effective rank of the features: exp of the entropy of their normalised singular values, 1 to min(n, d).

    Garrido et al. 2023, equation 1. It falls where features collapse onto few dimensions. It can compare encoders of
    one architecture on the same images, but does not say what the dimensions are good for. Take n well above d.

    Its rank correlation with kNN was 0.0 to 0.4 in six sweeps of 30 short trials (experiments/LOG.md).
    """
    h = features.double()
    singular = torch.linalg.eigvalsh(h.T @ h).clamp(min=0).sqrt()  # a d x d problem, however large n is
    if singular.sum() == 0:
        return 1.0  # features that are all zero have collapsed as far as can be; a NaN could not be compared
    p = singular / singular.sum() + EPSILON
    return float(torch.exp(-(p * p.log()).sum()))
