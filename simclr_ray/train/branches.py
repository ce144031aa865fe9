"""The masks of stochastic depth for the rows of a step, drawn on the CPU and moved to the device without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Bool
from torch import Tensor

from simclr_ray.data.branches import CALLS, kept_branches
from simclr_ray.methods.method import WHOLE_VIEWS, Method
from simclr_ray.model.encoder import Encoder
from simclr_ray.model.stochastic_depth import keeping
from simclr_ray.train.batch import Batch


def kept_of(model: Method, batch: Batch, seed: int, epoch: int) -> list[Bool[Tensor, "n _ layers calls"]] | None:
    """The branches that the encoder keeps, of the rows' whole views and then, where there are some, of the local ones.

    None: the encoder has no stochastic depth. A bad image's substitute has the bad one's masks, as it has its views.
    """
    rates = [layer.rate for layer in model.encoder.stochastic_depth]
    if not rates:
        return None
    views: list[Sequence[int]] = [range(model.student_views)]
    if batch.local is not None:
        views.append(range(WHOLE_VIEWS, WHOLE_VIEWS + batch.local.shape[1]))
    drawn = [torch.from_numpy(kept_branches(seed, epoch, batch.ids, numbers, rates)) for numbers in views]
    device = batch.views.device
    if device.type == "cuda":
        return [kept.pin_memory().to(device, non_blocking=True) for kept in drawn]
    return [kept.to(device) for kept in drawn]


def require_masks_fit(encoder: Encoder, size: int) -> None:
    """Raises BadInput if the encoder's stochastic depth is not of rows of images, by a forward on the device "meta"."""
    layers = encoder.stochastic_depth
    kept = torch.ones(2, len(layers), CALLS, dtype=torch.bool, device="meta")
    with suppress(NotImplementedError), keeping(layers, kept):  # some networks cannot be forwarded there
        encoder(torch.empty(2, 3, size, size, device="meta"))
