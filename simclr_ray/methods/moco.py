"""MoCo: InfoNCE of queries against the keys of a momentum encoder.

With a queue of earlier batches' keys it is v2 (He et al. 2020, arXiv 1911.05722, algorithm 1; Chen et al. 2020, arXiv
2003.04297; official code: github.com/facebookresearch/moco, moco/builder.py); without one v3, both views, a predictor,
and the global batch's keys (Chen et al. 2021, arXiv 2104.02057, algorithm 1; github.com/facebookresearch/moco-v3).
BatchNorm is over the global batch, so v2's shuffling over GPUs, against their separate statistics, has no counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.method import Method, Progress, at_least_float32, global_rows
from simclr_ray.methods.momentum import rising, teacher_of, update_teacher
from simclr_ray.model.encoder import Encoder


class MoCoQueue(Method):
    """MoCo v2: first views are queries, second views keys. The queue holds `keys` normalised ones of `dim` numbers."""

    student_views = 1
    queue: Tensor
    position: Tensor

    def __init__(
        self, encoder: Encoder, head: nn.Module, *, keys: int, dim: int, temperature: float, momentum: float
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.temperature, self.momentum = encoder, head, temperature, momentum
        self.teacher_encoder, self.teacher_head = teacher_of(encoder), teacher_of(head)
        self.register_buffer("queue", F.normalize(torch.randn(keys, dim), dim=1))
        self.register_buffer("position", torch.tensor(0))

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d"]:
        """All queries, then all keys."""
        first, second = images.chunk(2)
        query = self.head(self.encoder(first))
        with torch.no_grad():
            key = self.teacher_head(self.teacher_encoder(second))
        return torch.cat([query, key])

    def loss(self, outputs: Float[Tensor, "m d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        query, key = at_least_float32(outputs).chunk(2)
        return info_nce(query, key, self.queue, self.temperature, rows_per_worker=rows_per_worker)

    def projections(self, outputs: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        query, key = outputs.chunk(2)
        return query, key

    @torch.no_grad()
    def after_step(self, outputs: Float[Tensor, "m d"], rows_per_worker: Sequence[int], progress: Progress) -> None:
        """The batch's keys replace the oldest: whole batches, so the queue holds the same keys for any workers."""
        update_teacher(self.teacher_encoder, self.encoder, self.momentum)
        update_teacher(self.teacher_head, self.head, self.momentum)
        key = F.normalize(at_least_float32(outputs.chunk(2)[1]), dim=1).contiguous()
        keys = collective.gather_rows(key, list(rows_per_worker))
        self.queue.index_copy_(0, self._oldest(len(keys)), keys.to(self.queue.dtype))
        self.position.add_(len(keys)).remainder_(len(self.queue))

    def _oldest(self, count: int) -> Int[Tensor, " count"]:
        return (self.position + torch.arange(count, device=self.queue.device)) % len(self.queue)


class MoCoV3(Method):
    """Both views are queries and keys; the key encoder's momentum rises from `momentum` to 1."""

    def __init__(
        self, encoder: Encoder, head: nn.Module, predictor: nn.Module, *, temperature: float, momentum: float
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.predictor = encoder, head, predictor
        self.temperature, self.momentum = temperature, momentum
        self.teacher_encoder, self.teacher_head = teacher_of(encoder), teacher_of(head)

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m two_d"]:
        """Query and key, side by side."""
        query = self.predictor(self.head(self.encoder(images)))
        with torch.no_grad():
            key = self.teacher_head(self.teacher_encoder(images))
        return torch.cat([query, key], dim=1)

    def loss(self, outputs: Float[Tensor, "m two_d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        query, key = at_least_float32(outputs).chunk(2, dim=1)
        q_a, q_b = query.chunk(2)
        k_a, k_b = key.chunk(2)
        loss = in_batch_nce(q_a, k_b, self.temperature, rows_per_worker=rows_per_worker)
        return loss + in_batch_nce(q_b, k_a, self.temperature, rows_per_worker=rows_per_worker)

    def projections(self, outputs: Float[Tensor, "m two_d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(2, dim=1)[0].chunk(2)
        return view_a, view_b

    def after_step(self, outputs: Float[Tensor, "m two_d"], rows_per_worker: Sequence[int], progress: Progress) -> None:
        momentum = rising(self.momentum, progress.fraction)
        update_teacher(self.teacher_encoder, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)


def info_nce(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "n d"],
    queue: Float[Tensor, "m d"],
    temperature: float,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of equation 1: each query's own key against the queue's, which are normalised already."""
    rows = global_rows(len(query), rows_per_worker)
    with torch.autocast(query.device.type, enabled=False):
        q, k = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1)
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.to(q.dtype).T], dim=1) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.int64), reduction="sum") / rows


def in_batch_nce(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "n d"],
    temperature: float,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of MoCo v3's `ctr`, 2 T x InfoNCE: each query's own key against all workers' others."""
    counts = list(rows_per_worker) if rows_per_worker is not None else [len(query)] * collective.size()
    rows = global_rows(len(query), rows_per_worker)
    with torch.autocast(query.device.type, enabled=False):
        q, k = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1)
        logits = q @ collective.gather_rows(k, counts).T / temperature
        own = sum(counts[: collective.rank()]) + torch.arange(len(q), device=q.device)
        return 2 * temperature * F.cross_entropy(logits, own, reduction="sum") / rows
