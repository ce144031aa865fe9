"""How often the right class is ranked first, and how often among the first five."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

RANKS = 5


class Accuracy(NamedTuple):
    """In percent of the images. With five classes or fewer, top5 is 100."""

    top1: float
    top5: float


def ranked(scores: Float[Tensor, "n classes"]) -> Int64[Tensor, "n ranks"]:
    """The five (or all, if fewer) classes of highest score, best first."""
    return scores.topk(min(RANKS, scores.shape[1])).indices


def hits(predicted: Int64[Tensor, "n ranks"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, "2"]:
    """Counts of rows whose label is the first, and is any, of the ranked classes; workers may sum theirs."""
    right = predicted == labels[:, None]
    return torch.stack([right[:, 0].sum(), right.sum()])


def accuracy(predicted: Int64[Tensor, "n ranks"], labels: Int64[Tensor, " n"]) -> Accuracy:
    top1, top5 = (100 * hits(predicted, labels) / len(labels)).tolist()
    return Accuracy(top1, top5)
