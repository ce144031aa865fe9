"""DINO (Caron et al. 2021, arXiv 2104.14294): a momentum teacher's centred and sharpened distribution is the target.

Official code: github.com/facebookresearch/dino, main_dino.py and vision_transformer.py (DINOHead). Of two views of one
size; the official code's multi-crop and the warm-up of the teacher's temperature are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.method import Method, at_least_float32, global_rows
from simclr_ray.methods.momentum import rising, teacher_of, update_teacher
from simclr_ray.model.encoder import Encoder


class Prototypes(nn.Linear):
    """The head's last layer: cosines with `k` directions, as its weight normalisation with a fixed norm of 1."""

    def __init__(self, dim: int, k: int) -> None:
        super().__init__(dim, k, bias=False)

    def forward(self, z: Float[Tensor, "m d"]) -> Float[Tensor, "m k"]:
        return F.linear(F.normalize(z, dim=1), F.normalize(self.weight, dim=1))


class DINO(Method):
    """`momentum`: the teacher's at the start. The centre is a running mean of the teacher's outputs (equation 4)."""

    center: Tensor

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        *,
        dim: int,
        prototypes: int,
        student_temperature: float,
        teacher_temperature: float,
        momentum: float,
        center_momentum: float,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.prototypes = encoder, head, Prototypes(dim, prototypes)
        self.teacher_encoder, self.teacher_head = teacher_of(encoder), teacher_of(head)
        self.teacher_prototypes = teacher_of(self.prototypes)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.momentum, self.center_momentum = momentum, center_momentum
        self.register_buffer("center", torch.zeros(prototypes))

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m d_and_two_k"]:
        """Projection, the student's and the teacher's scores, side by side."""
        z = self.head(self.encoder(images))
        with torch.no_grad():
            teacher = self.teacher_prototypes(self.teacher_head(self.teacher_encoder(images)))
        return torch.cat([z.detach(), self.prototypes(z), teacher], dim=1)

    def loss(self, outputs: Float[Tensor, "m d_and_two_k"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        _, student, teacher = self._parts(at_least_float32(outputs))
        return dino_loss(
            list(student.chunk(2)),
            list(teacher.chunk(2)),
            self.center,
            self.student_temperature,
            self.teacher_temperature,
            rows_per_worker=rows_per_worker,
        )

    def projections(self, outputs: Float[Tensor, "m d_and_two_k"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = self._parts(outputs)[0].chunk(2)
        return view_a, view_b

    @torch.no_grad()
    def after_step(
        self, outputs: Float[Tensor, "m d_and_two_k"], rows_per_worker: Sequence[int], progress: float
    ) -> None:
        momentum = rising(self.momentum, progress)
        update_teacher(self.teacher_encoder, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)
        update_teacher(self.teacher_prototypes, self.prototypes, momentum)
        total = collective.sum_over_workers(self._parts(at_least_float32(outputs))[2].sum(dim=0))
        mean = total / (2 * sum(rows_per_worker))
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.center_momentum)

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
