"""SwAV (Caron et al. 2020, arXiv 2006.09882): each view predicts the other's assignment to prototypes.

Official code: github.com/facebookresearch/swav, main_swav.py. The assignment shares the prototypes out equally over the
rows of all workers: the sums of Sinkhorn-Knopp over rows are summed over workers. Local views (multi-crop) predict the
assignments of the first two. With small batches a queue of earlier batches' projections joins the assignment (section
3.1). It is filled from the first step on; the official code's begins to be filled when its epochs have come.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.method import START, Method, Progress, at_least_float32, global_rows, views_of
from simclr_ray.model.encoder import Encoder


class SwAV(Method):
    """`prototypes`: how many of `dim` numbers; their weights stay on the unit sphere. `queue`: rows for each view."""

    queue: Tensor | None
    """(2, rows, dim): normalised projections of earlier global batches, the same on every worker."""

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
        queue: int,
        queue_epochs: float,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.temperature = encoder, head, temperature
        self.epsilon, self.iterations = epsilon, iterations
        self.frozen_epochs, self.queue_epochs, self.progress = frozen_epochs, queue_epochs, START
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(2, queue, dim) if queue else None)
        self._normalise_prototypes()

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d_and_k"]:
        """Projection and scores, side by side."""
        z = self.head(self.encoder(images))
        return torch.cat([z.detach(), self.prototypes(F.normalize(z, dim=1))], dim=1)

    def forward_local(self, images: Float[Tensor, "m 3 s s"]) -> Float[Tensor, "m d_and_k"]:
        return self(images)

    def start_step(self, progress: Progress) -> None:
        self.prototypes.requires_grad_(progress.epoch >= self.frozen_epochs)
        self.progress = progress

    def loss(self, outputs: Float[Tensor, "m d_and_k"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        scores = at_least_float32(outputs)[:, -self.prototypes.out_features :]
        return swav_loss(
            views_of(scores, rows_per_worker),
            self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            rows_per_worker=rows_per_worker,
            earlier=self._scores_of_queue(sum(rows_per_worker)),
        )

    def projections(self, outputs: Float[Tensor, "m d_and_k"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs[:, : -self.prototypes.out_features].chunk(2)
        return view_a, view_b

    def after_step(
        self, outputs: Float[Tensor, "m d_and_k"], rows_per_worker: Sequence[int], progress: Progress
    ) -> None:
        self._normalise_prototypes()
        if self.queue is not None:
            views = self.projections(outputs[: 2 * rows_per_worker[collective.rank()]])
            own = F.normalize(at_least_float32(torch.stack(views, dim=1)), dim=2)
            rows = collective.gather_rows(own, rows_per_worker)
            # Whole batches replace the oldest, so the queue holds the same projections for any workers.
            first = progress.step * len(rows) % self.queue.shape[1]
            self.queue[:, first : first + len(rows)] = rows.transpose(0, 1)

    @torch.no_grad()
    def _scores_of_queue(self, batch: int) -> Float[Tensor, "2 q k"] | None:
        """By today's prototypes; None while the queue is not used: before `queue_epochs`, and until it is full."""
        step, epoch = self.progress.step, self.progress.epoch
        if self.queue is None or epoch < self.queue_epochs or step * batch < self.queue.shape[1]:
            return None
        return F.linear(self.queue, self.prototypes.weight)

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
    earlier: Float[Tensor, "2 q k"] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of equation 2: the mean over all ordered pairs of different views, and over images.

    `scores` of each view; codes are computed for the first two, and every other view predicts them. `earlier`: for
    those two, scores of earlier batches' rows, the same on every worker; see `sinkhorn`.
    """
    codes = [
        sinkhorn(view, epsilon, iterations, rows_per_worker=rows_per_worker, earlier=others)
        for view, others in zip(scores[:2], (None, None) if earlier is None else earlier, strict=True)
    ]
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
    earlier: Float[Tensor, "q k"] | None = None,
) -> Float[Tensor, "n k"]:
    """The codes of this worker's rows (section 3.1, algorithm 1): each sums to 1, the prototypes share them equally.

    `earlier`: scores of rows that are shared out with them, the same on every worker, whose codes no one needs.
    """
    own, rows, prototypes = len(scores), global_rows(len(scores), rows_per_worker), scores.shape[1]
    if earlier is not None:
        rows += len(earlier)
        # Every worker takes a part of them, so that each counts once in the sums over workers.
        scores = torch.cat([scores, earlier[collective.rank() :: collective.size()]])
    codes = (scores / epsilon).exp()
    for _ in range(iterations):
        codes /= collective.sum_over_workers(codes.sum(dim=0)) * prototypes / rows
        codes /= codes.sum(dim=1, keepdim=True)
    return codes[:own]
