"""SimCLR (Chen et al. 2020): encoder, projection head, and NT-Xent over the global batch without its 2N x 2N matrix.

Each worker computes only the rows of its own anchors, in chunks that the backward recomputes. The logits are
symmetric, so the gradient of *every* worker's anchors with respect to the local projections needs nothing but the
other workers' log-sum-exps: one gather of 2N numbers instead of a reduction of (2N, d).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.method import Method
from simclr_ray.model.encoder import Encoder

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB in float32."""


class SimCLR(Method):
    """z = g(f(x)) for both views of every image, compared by NT-Xent (section 2.1)."""

    def __init__(self, encoder: Encoder, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder, self.head, self.temperature = encoder, head, temperature

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d"]:
        return self.head(self.encoder(images))

    def loss(self, outputs: Float[Tensor, "m d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        view_a, view_b = self.projections(outputs)
        return nt_xent(view_a, view_b, self.temperature, rows_per_worker=rows_per_worker)

    def projections(self, outputs: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(2)
        return view_a, view_b


def nt_xent(
    view_a: Float[Tensor, "n d"],
    view_b: Float[Tensor, "n d"],
    temperature: float,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of the loss: the sum over its 2n anchors, divided by 2N, N over all workers.

    `view_a` and `view_b` are projections, not yet normalised. `rows_per_worker` holds n of every rank in rank order
    (None: all equal). Backward gives the gradient of the *global* loss with respect to the local projections, the
    terms in which they are other workers' negatives included. Computed in float32 (float64 for float64 input).
    """
    rows = list(rows_per_worker) if rows_per_worker is not None else [len(view_a)] * collective.size()
    assert rows[collective.rank()] == len(view_a) == len(view_b), (rows, view_a.shape, view_b.shape)
    with torch.autocast(view_a.device.type, enabled=False):
        both = torch.cat([view_a, view_b])
        both = both if both.dtype == torch.float64 else both.float()
        return _NTXent.apply(F.normalize(both, dim=1), temperature, [2 * n for n in rows])


class _NTXent(torch.autograd.Function):
    """The loss of the local anchors against all workers' projections, `z` normalised, 2n rows of each worker."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, counts: list[int]) -> Tensor:
        all_z = collective.gather_rows(z, counts)
        first = sum(counts[: collective.rank()])
        positive = z.roll(len(z) // 2, dims=0)
        log_sums = torch.cat([logits.logsumexp(dim=1) for _, logits in _logits_in_chunks(z, all_z, first, temperature)])
        ctx.save_for_backward(z, all_z, positive, log_sums)
        ctx.temperature, ctx.counts, ctx.first = temperature, counts, first
        return (log_sums - (z * positive).sum(dim=1) / temperature).sum() / sum(counts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        z, all_z, positive, log_sums = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            all_log_sums = collective.gather_rows(log_sums, ctx.counts)
            gradient = -2 * positive
            for rows, logits in _logits_in_chunks(z, all_z, ctx.first, ctx.temperature):
                # z_i appears as anchor i, with softmax p_ij over all j, and as a negative (or positive) of every other
                # anchor j, with softmax p_ji. The logits are symmetric, so anchor j's log-sum-exp is all p_ji needs.
                weights = (logits - log_sums[rows, None]).exp() + (logits - all_log_sums[None]).exp()
                gradient[rows] += weights @ all_z
            return gradient * (upstream / (ctx.temperature * sum(ctx.counts))), None, None


def _logits_in_chunks(z: Tensor, all_z: Tensor, first: int, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges of `z` with their logits against `all_z`; the similarity of a row with itself is -inf."""
    step = max(1, CHUNK_ELEMENTS // len(all_z))
    for start in range(0, len(z), step):
        rows = slice(start, min(start + step, len(z)))
        logits = z[rows] @ all_z.T / temperature
        own = torch.arange(rows.start, rows.stop, device=z.device)
        logits[own - rows.start, first + own] = -torch.inf
        yield rows, logits
