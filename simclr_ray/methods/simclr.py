"""NT-Xent over the global batch (SimCLR, equation 1) without its 2N x 2N matrix.

Each worker computes only the rows of its own anchors, in chunks that the backward computes again. The logits are
symmetric, so the gradient of *every* worker's anchors with respect to the local projections needs nothing but the
other workers' log-sum-exps: one gather of 2N numbers instead of a reduction of (2N, d).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simclr_ray import collective

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB in float32."""


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
    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, counts: list[int]) -> Tensor:
        everyone = collective.gather_rows(z, counts)
        first = sum(counts[: collective.rank()])
        positive = z.roll(len(z) // 2, dims=0)
        log_sums = torch.cat(
            [logits.logsumexp(dim=1) for _, logits in _logits_in_chunks(z, everyone, first, temperature)]
        )
        ctx.save_for_backward(z, everyone, positive, log_sums)
        ctx.temperature, ctx.counts, ctx.first = temperature, counts, first
        return (log_sums - (z * positive).sum(dim=1) / temperature).sum() / sum(counts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        z, everyone, positive, log_sums = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            all_log_sums = collective.gather_rows(log_sums, ctx.counts)
            gradient = -2 * positive
            for rows, logits in _logits_in_chunks(z, everyone, ctx.first, ctx.temperature):
                # p_ij: this anchor's softmax over all; p_ji: the softmax of every other anchor at this projection.
                weights = (logits - log_sums[rows, None]).exp() + (logits - all_log_sums[None]).exp()
                gradient[rows] += weights @ everyone
            return gradient * (upstream / (ctx.temperature * sum(ctx.counts))), None, None


def _logits_in_chunks(z: Tensor, everyone: Tensor, first: int, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges of `z` with their logits against `everyone`; the similarity of a row with itself is -inf."""
    step = max(1, CHUNK_ELEMENTS // len(everyone))
    for start in range(0, len(z), step):
        rows = slice(start, min(start + step, len(z)))
        logits = z[rows] @ everyone.T / temperature
        own = torch.arange(rows.start, rows.stop, device=z.device)
        logits[own - rows.start, first + own] = -torch.inf
        yield rows, logits
