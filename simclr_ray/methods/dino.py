"""DINO (Caron et al. 2021, arXiv 2104.14294): a momentum teacher's centred and sharpened distribution is the target.

Official code: github.com/facebookresearch/dino, main_dino.py and vision_transformer.py (DINOHead). Local views
(multi-crop) go through the student alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.config import DINOConfig
from simclr_ray.methods.method import Method, Progress, at_least_float32, global_rows, views_of
from simclr_ray.methods.momentum import rising, teacher_of, update_teacher
from simclr_ray.model.encoder import Encoder


class Prototypes(nn.Linear):
    """The head's last layer: cosines with `k` directions, as its weight normalisation with a fixed norm of 1."""

    def __init__(self, dim: int, k: int) -> None:
        super().__init__(dim, k, bias=False)

    def forward(self, z: Float[Tensor, "m d"]) -> Float[Tensor, "m k"]:
        return F.linear(F.normalize(z, dim=1), F.normalize(self.weight, dim=1))


class DINO(Method):
    """Student and teacher; the centre is a running mean of the teacher's outputs (equation 4)."""

    center: Tensor

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        *,
        dim: int,
        settings: DINOConfig,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.prototypes = encoder, head, Prototypes(dim, settings.prototypes)
        self.teacher_encoder, self.teacher_head = teacher_of(encoder), teacher_of(head)
        self.teacher_prototypes = teacher_of(self.prototypes)
        self.settings, self.teacher_temperature = settings, settings.teacher_temperature
        self.register_buffer("center", torch.zeros(settings.prototypes))

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d_and_two_k"]:
        """Projection, the student's and the teacher's scores, side by side."""
        z = self.head(self.encoder(images))
        with torch.no_grad():
            teacher = self.teacher_prototypes(self.teacher_head(self.teacher_encoder(images)))
        return torch.cat([z.detach(), self.prototypes(z), teacher], dim=1)

    def forward_local(self, images: Float[Tensor, "m 3 s s"]) -> Float[Tensor, "m d_and_two_k"]:
        """As `forward`, with zeros in place of the teacher's scores, which no one needs."""
        z = self.head(self.encoder(images))
        student = self.prototypes(z)
        return torch.cat([z.detach(), student, torch.zeros_like(student)], dim=1)

    def start_step(self, progress: Progress) -> None:
        settings = self.settings
        self.prototypes.requires_grad_(progress.epoch >= settings.frozen_epochs)
        warm = min(1.0, progress.epoch / settings.warmup_teacher_epochs) if settings.warmup_teacher_epochs else 1.0
        first, last = settings.warmup_teacher_temperature, settings.teacher_temperature
        self.teacher_temperature = last if warm == 1 else first + warm * (last - first)

    def loss(self, outputs: Float[Tensor, "m d_and_two_k"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        _, student, teacher = self._parts(at_least_float32(outputs))
        return dino_loss(
            views_of(student, rows_per_worker),
            views_of(teacher, rows_per_worker)[:2],
            self.center,
            self.settings.student_temperature,
            self.teacher_temperature,
            rows_per_worker=rows_per_worker,
        )

    def projections(self, outputs: Float[Tensor, "m d_and_two_k"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = self._parts(outputs)[0].chunk(2)
        return view_a, view_b

    @torch.no_grad()
    def after_step(
        self, outputs: Float[Tensor, "m d_and_two_k"], rows_per_worker: Sequence[int], progress: Progress
    ) -> None:
        momentum = rising(self.settings.momentum, progress.fraction)
        update_teacher(self.teacher_encoder, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)
        update_teacher(self.teacher_prototypes, self.prototypes, momentum)
        teacher = self._parts(at_least_float32(outputs[: 2 * rows_per_worker[collective.rank()]]))[2]
        total = collective.sum_over_workers(teacher.sum(dim=0))
        mean = total / (2 * sum(rows_per_worker))
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.settings.center_momentum)

    def _parts(self, outputs: Float[Tensor, "m d_and_two_k"]) -> tuple[Tensor, Tensor, Tensor]:
        k = len(self.center)
        z, student, teacher = outputs.split([outputs.shape[1] - 2 * k, k, k], dim=1)
        return z, student, teacher


def dino_loss(
    student: Sequence[Float[Tensor, "n k"]],
    teacher: Sequence[Float[Tensor, "n k"]],
    center: Float[Tensor, " k"],
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of the mean cross-entropy over pairs of different views and over images (equation 3).

    Views are in the same order in both lists, the teacher's the first ones; no gradient flows to the teacher.
    """
    targets = [F.softmax((view.detach() - center) / teacher_temperature, dim=1) for view in teacher]
    predictions = [F.log_softmax(view / student_temperature, dim=1) for view in student]
    pairs = [(t, s) for t, s in product(range(len(targets)), range(len(predictions))) if t != s]
    terms = [-(targets[t] * predictions[s]).sum() for t, s in pairs]
    return torch.stack(terms).mean() / global_rows(len(student[0]), rows_per_worker)
