"""SimSiam (Chen and He 2021, arXiv 2011.10566): a predictor and a stop-gradient, without teacher or negatives.

Official code: github.com/facebookresearch/simsiam, simsiam/builder.py and main_simsiam.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray.methods.method import Method, at_least_float32, global_rows
from simclr_ray.model.encoder import Encoder


class SimSiam(Method):
    """`predictor_decays`: whether the predictor's learning rate follows the schedule, which the paper's does not."""

    def __init__(self, encoder: Encoder, head: nn.Module, predictor: nn.Module, *, predictor_decays: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.predictor = encoder, head, predictor
        self.constant_rate = () if predictor_decays else ("predictor",)

    def forward(self, images: Float[Tensor, "m 3 h w"]) -> Float[Tensor, "m two_d"]:
        """Prediction and projection, side by side."""
        z = self.head(self.encoder(images))
        return torch.cat([self.predictor(z), z.detach()], dim=1)

    def loss(self, outputs: Float[Tensor, "m two_d"], rows_per_worker: Sequence[int]) -> Float[Tensor, ""]:
        """Half of each direction (equation 4)."""
        prediction, z = at_least_float32(outputs).chunk(2, dim=1)
        p_a, p_b = prediction.chunk(2)
        z_a, z_b = z.chunk(2)
        one = simsiam_loss(p_a, z_b, rows_per_worker=rows_per_worker)
        return (one + simsiam_loss(p_b, z_a, rows_per_worker=rows_per_worker)) / 2

    def projections(self, outputs: Float[Tensor, "m two_d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        view_a, view_b = outputs.chunk(2, dim=1)[1].chunk(2)
        return view_a, view_b


def simsiam_loss(
    prediction: Float[Tensor, "n d"], target: Float[Tensor, "n d"], *, rows_per_worker: Sequence[int] | None = None
) -> Float[Tensor, ""]:
    """This worker's share of the mean of -cos(prediction, target) (equation 1); no gradient to `target`."""
    cosine = F.cosine_similarity(prediction, target.detach(), dim=1)
    return -cosine.sum() / global_rows(len(prediction), rows_per_worker)
