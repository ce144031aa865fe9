"""BYOL (Grill et al. 2020, arXiv 2006.07733): a predictor of the momentum teacher's projection of the other view.

Official code: github.com/google-deepmind/deepmind-research, byol/byol_experiment.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray.methods.method import Method, Progress, at_least_float32, global_rows
from simclr_ray.methods.momentum import rising, teacher_of, update_teacher
from simclr_ray.model.encoder import Encoder


class BYOL(Method):
    """Student: encoder, head and predictor; teacher: encoder and head. `momentum`: the teacher's at the start."""

    def __init__(self, encoder: Encoder, head: nn.Module, predictor: nn.Module, momentum: float) -> None:
        super().__init__()
        self.encoder, self.head, self.predictor, self.momentum = encoder, head, predictor, momentum
        self.teacher_encoder, self.teacher_head = teacher_of(encoder), teacher_of(head)

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m three_d"]:
        """Prediction, projection and the teacher's projection, side by side."""
        z = self.head(self.encoder(images))
        with torch.no_grad():
            target = self.teacher_head(self.teacher_encoder(images))
        return torch.cat([self.predictor(z), z.detach(), target], dim=1)

    def loss(self, outputs: Float[Tensor, "m three_d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        """Both directions (section 3.1): each view predicts the teacher's other one."""
        prediction, _, target = at_least_float32(outputs).chunk(3, dim=1)
        p_a, p_b = prediction.chunk(2)
        t_a, t_b = target.chunk(2)
        return byol_loss(p_a, t_b, rows_per_worker=rows_per_worker) + byol_loss(
            p_b, t_a, rows_per_worker=rows_per_worker
        )

    def projections(self, outputs: Float[Tensor, "m three_d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(3, dim=1)[1].chunk(2)
        return view_a, view_b

    def after_step(
        self, outputs: Float[Tensor, "m three_d"], rows_per_worker: Sequence[int], progress: Progress
    ) -> None:
        momentum = rising(self.momentum, progress.fraction)
        update_teacher(self.teacher_encoder, self.encoder, momentum)
        update_teacher(self.teacher_head, self.head, momentum)


def byol_loss(
    prediction: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, rows_per_worker: Sequence[int] | None = None
) -> Float[Tensor, ""]:
    """This worker's share of the mean of 2 - 2 cos(prediction, target) (equation 2); no gradient to `target`."""
    cosine = F.cosine_similarity(prediction, target.detach(), dim=1)
    return (2 - 2 * cosine).sum() / global_rows(len(prediction), rows_per_worker)
