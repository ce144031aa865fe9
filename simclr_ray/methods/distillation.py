"""Distillation of a fine-tuned classifier by unlabelled images (SimCLR v2, Chen et al. 2020, arXiv 2006.10029).

Section 2, equation 2: the student learns the teacher's distribution over the classes; the teacher is fixed. Equation
3, with a term for labels, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simclr_ray.methods.method import Method, at_least_float32, global_rows
from simclr_ray.methods.supervised import Supervised


class Distillation(Method):
    """The student's encoder, layers of a projection head if any, and classifier; and the teacher.

    The teacher is part of the state, so a checkpoint needs no other file; it costs the space of its weights.
    """

    def __init__(self, student: Supervised, teacher: Supervised, temperature: float) -> None:
        super().__init__()
        self.encoder, self.head, self.classifier = student.encoder, student.head, student.classifier
        self.teacher, self.temperature = teacher.requires_grad_(False).eval(), temperature

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays in eval mode: its BatchNorm normalises by the statistics that it was given."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m two_classes"]:
        """The student's and the teacher's logits, side by side."""
        logits = self.classifier(self.head(self.encoder(images)))
        with torch.no_grad():
            target = self.teacher(images)
        return torch.cat([logits, target], dim=1)

    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.head(features.to(self.classifier.weight.dtype)))

    def loss(self, outputs: Float[Tensor, "m two_classes"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        """Both views of an image count, each by itself."""
        student, teacher = at_least_float32(outputs).chunk(2, dim=1)
        views_per_worker = [2 * rows for rows in rows_per_worker]
        return distillation_loss(student, teacher, self.temperature, rows_per_worker=views_per_worker)

    def projections(self, outputs: Float[Tensor, "m two_classes"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(2, dim=1)[0].chunk(2)
        return view_a, view_b


def distillation_loss(
    student: Float[Tensor, "n classes"],
    teacher: Float[Tensor, "n classes"],
    temperature: float = 0.1,
    *,
    rows_per_worker: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """This worker's share of equation 2's mean over the rows of all; both are logits, no gradient to the teacher's."""
    target = F.softmax(teacher.detach() / temperature, dim=1)
    total = -(target * F.log_softmax(student / temperature, dim=1)).sum()
    return total / global_rows(len(student), rows_per_worker)
