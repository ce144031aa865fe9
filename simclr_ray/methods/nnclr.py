"""NNCLR (Dwibedi et al. 2021, arXiv 2104.14548): the positive of a view is the nearest neighbour of the other one.

Neighbours are looked up among projections of earlier batches, the support set (section 3.2 and the paper's pseudocode;
there is no official code). They are the anchors, and the negatives are the predictions of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.method import Method, Progress, at_least_float32, global_rows
from simclr_ray.model.encoder import Encoder

CHUNK_ELEMENTS = 1 << 24
"""Similarities held at once: 64 MiB in float32."""


class NNCLR(Method):
    """Encoder, head and predictor. The queue holds `keys` normalised projections of `dim` numbers, of first views."""

    queue: Tensor

    def __init__(
        self, encoder: Encoder, head: nn.Module, predictor: nn.Module, *, keys: int, dim: int, temperature: float
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.predictor, self.temperature = encoder, head, predictor, temperature
        self.register_buffer("queue", F.normalize(torch.randn(keys, dim), dim=1))

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m two_d"]:
        """Prediction and projection, side by side."""
        z = self.head(self.encoder(images))
        return torch.cat([self.predictor(z), z.detach()], dim=1)

    def loss(self, outputs: Float[Tensor, "m two_d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        """Half of each direction: the neighbour of one view's projection against the predictions of the other's."""
        prediction, z = at_least_float32(outputs).chunk(2, dim=1)
        p_a, p_b = prediction.chunk(2)
        near_a, near_b = nearest(z, self.queue).chunk(2)
        forth = nnclr_loss(near_a, p_b, self.temperature, rows_per_worker=rows_per_worker)
        return (forth + nnclr_loss(near_b, p_a, self.temperature, rows_per_worker=rows_per_worker)) / 2

    def projections(self, outputs: Float[Tensor, "m two_d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(2, dim=1)[1].chunk(2)
        return view_a, view_b

    @torch.no_grad()
    def after_step(self, outputs: Float[Tensor, "m two_d"], rows_per_worker: Sequence[int], progress: Progress) -> None:
        """The batch's first views replace the oldest: whole batches, so the queue is the same for any workers."""
        own = F.normalize(at_least_float32(self.projections(outputs)[0]), dim=1)
        rows = collective.gather_rows(own, rows_per_worker)
        first = progress.step * len(rows) % len(self.queue)
        self.queue[first : first + len(rows)] = rows


@torch.no_grad()
def nearest(z: Float[Tensor, "n d"], queue: Float[Tensor, "k d"]) -> Float[Tensor, "n d"]:
    """The row of `queue`, whose rows are normalised, that is most similar to each of `z` (equation 2)."""
    with torch.autocast(z.device.type, enabled=False):
        keys = queue.to(z.dtype)
        chunks = z.split(max(1, CHUNK_ELEMENTS // len(keys)))
        return torch.cat([keys[(chunk @ keys.T).argmax(dim=1)] for chunk in chunks])


def nnclr_loss(
    neighbour: Float[Tensor, "n d"],
    prediction: Float[Tensor, "n d"],
    temperature: float,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of equation 3: each neighbour's own prediction against those of the global batch.

    No gradient to `neighbour`. Other workers' gradients for the local predictions, their negatives, are included.
    """
    counts = list(rows_per_worker) if rows_per_worker is not None else [len(prediction)] * collective.size()
    rows, first = global_rows(len(prediction), rows_per_worker), sum(counts[: collective.rank()])
    with torch.autocast(prediction.device.type, enabled=False):
        n, p = F.normalize(neighbour.detach(), dim=1), F.normalize(prediction, dim=1)
        # Everybody's predictions with their gradient, as the sum of what has zeros where others' rows are.
        everyones = collective.sum_with_gradient(F.pad(p, (0, 0, first, rows - first - len(p))))
        own = first + torch.arange(len(p), device=p.device)
        return F.cross_entropy(n @ everyones.T / temperature, own, reduction="sum") / rows
