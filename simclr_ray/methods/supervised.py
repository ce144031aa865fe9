"""Supervised pretraining: cross-entropy of a linear classifier of the features, the baseline of all other methods.

Both views of every image are classified. For fine-tuning, layers of the projection head may stay before the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from simclr_ray.methods.method import Method, at_least_float32, global_rows
from simclr_ray.model.encoder import Encoder


class Supervised(Method):
    """Encoder, layers of a projection head if any, and classifier; `outputs` are the logits of `classes` classes."""

    def __init__(self, encoder: Encoder, head: nn.Module, *, dim: int, classes: int, label_smoothing: float) -> None:
        super().__init__()
        self.encoder, self.head, self.classifier = encoder, head, nn.Linear(dim, classes)
        self.label_smoothing = label_smoothing

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m classes"]:
        return self.classifier(self.head(self.encoder(images)))

    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.head(features.to(self.classifier.weight.dtype)))

    def labelled_loss(
        self, outputs: Float[Tensor, "m classes"], labels: Int64[Tensor, " n"], rows_per_worker: Sequence[int]
    ) -> Float[Tensor, ""]:
        views_per_worker = [2 * rows for rows in rows_per_worker]
        return supervised_loss(
            at_least_float32(outputs),
            labels.repeat(2),
            label_smoothing=self.label_smoothing,
            rows_per_worker=views_per_worker,
        )

    def projections(self, outputs: Float[Tensor, "m classes"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(2)
        return view_a, view_b


def supervised_loss(
    logits: Float[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
    *,
    label_smoothing: float = 0.0,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of the mean cross-entropy."""
    total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    return total / global_rows(len(logits), rows_per_worker)
