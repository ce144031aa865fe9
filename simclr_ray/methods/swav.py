"""SwAV (Caron et al. 2020, arXiv 2006.09882): each view predicts the other's assignment to prototypes.

Official code: github.com/facebookresearch/swav, main_swav.py. The assignment shares the prototypes out equally over the
rows of all workers: the sums of Sinkhorn-Knopp over rows are summed over workers. Local views (multi-crop) predict the
assignments of the first two. The official code's queue for small batches is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.method import Method, Progress, at_least_float32, global_rows, views_of
from simclr_ray.model.encoder import Encoder


class SwAV(Method):
    """`prototypes`: how many of `dim` numbers; their weights stay on the unit sphere."""

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        *,
        dim: int,
        prototypes: int,
        temperature: float,
        epsilon: float,
        iterations: int,
        frozen_epochs: float,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.temperature = encoder, head, temperature
        self.epsilon, self.iterations, self.frozen_epochs = epsilon, iterations, frozen_epochs
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self._normalise_prototypes()

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d_and_k"]:
        """Projection and scores, side by side."""
        z = self.head(self.encoder(images))
        return torch.cat([z.detach(), self.prototypes(F.normalize(z, dim=1))], dim=1)

    def forward_local(self, images: Float[Tensor, "m 3 s s"]) -> Float[Tensor, "m d_and_k"]:
        return self(images)

    def start_step(self, progress: Progress) -> None:
        self.prototypes.requires_grad_(progress.epoch >= self.frozen_epochs)

    def loss(self, outputs: Float[Tensor, "m d_and_k"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        scores = at_least_float32(outputs)[:, -self.prototypes.out_features :]
        return swav_loss(
            views_of(scores, rows_per_worker),
            self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            rows_per_worker=rows_per_worker,
        )

    def projections(self, outputs: Float[Tensor, "m d_and_k"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs[:, : -self.prototypes.out_features].chunk(2)
        return view_a, view_b

    def after_step(
        self, outputs: Float[Tensor, "m d_and_k"], rows_per_worker: Sequence[int], progress: Progress
    ) -> None:
        self._normalise_prototypes()

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


def swav_loss(
    scores: Sequence[Float[Tensor, "n k"]],
    temperature: float = 0.1,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of equation 2: the mean over all ordered pairs of different views, and over images.

    `scores` of each view; codes are computed for the first two, and every other view predicts them.
    """
    codes = [sinkhorn(view, epsilon, iterations, rows_per_worker=rows_per_worker) for view in scores[:2]]
    rows = global_rows(len(scores[0]), rows_per_worker)
    pairs = [(code, view) for code in range(2) for view in range(len(scores)) if code != view]
    terms = [-(codes[code] * F.log_softmax(scores[view] / temperature, dim=1)).sum() for code, view in pairs]
    return torch.stack(terms).mean() / rows


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "n k"],
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, "n k"]:
    """The codes of this worker's rows (section 3.1, algorithm 1): each sums to 1, the prototypes share them equally."""
    rows, prototypes = global_rows(len(scores), rows_per_worker), scores.shape[1]
    codes = (scores / epsilon).exp()
    for _ in range(iterations):
        codes /= collective.sum_over_workers(codes.sum(dim=0)) * prototypes / rows
        codes /= codes.sum(dim=1, keepdim=True)
    return codes
