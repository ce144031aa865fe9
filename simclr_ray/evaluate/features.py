"""Features of a frozen encoder, which is left exactly as it was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from simclr_ray.evaluate.images import ImageBatch
from simclr_ray.model.resnet import ResNet
from simclr_ray.train.batch import channel_scale, normalise


@dataclass(frozen=True)
class Features:
    """Row i of all three belongs to one image; the tensors are on the encoder's device."""

    h: Float[Tensor, "n d"]
    """float32."""
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]
    bad: int
    """Images that could not be decoded and have no row."""


class Pixels(nn.Module):
    """The pixels of the view themselves as features: what any encoder has to beat."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.feature_dim = 3 * size * size

    def forward(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        return images.flatten(1)


def extract(
    encoder: ResNet | Pixels,
    batches: Iterable[ImageBatch],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Features:
    """The features of every image, by an encoder that is on `device` already.

    In eval mode (BatchNorm uses its running statistics), in bf16 autocast on a GPU and in the encoder's own precision
    on a CPU. No batches, as one of many workers may have, give no rows.
    """
    none = torch.empty(0, dtype=torch.int64, device=device)
    found = [Features(torch.empty(0, encoder.feature_dim, device=device), none, none, 0)]
    with frozen(encoder):
        for batch in batches:
            h = encode(encoder, torch.from_numpy(batch.pixels).to(device), mean, std)
            labels, ids = (torch.from_numpy(column).to(device) for column in (batch.labels, batch.ids))
            found.append(Features(h, labels, ids, batch.bad))
    return Features(
        h=torch.cat([part.h for part in found]),
        labels=torch.cat([part.labels for part in found]),
        ids=torch.cat([part.ids for part in found]),
        bad=sum(part.bad for part in found),
    )


def encode(
    encoder: ResNet | Pixels, pixels: UInt8[Tensor, "n s s 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "n d"]:
    """float32 features of one batch, on the device of its pixels, where the encoder is too."""
    weight = next(encoder.parameters(), None)
    dtype = torch.float32 if weight is None else weight.dtype
    on_gpu = pixels.device.type == "cuda"
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=on_gpu and dtype == torch.float32):
        return encoder(normalise(pixels, *channel_scale(mean, std, dtype, pixels.device))).float()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients and eval mode inside; afterwards every submodule is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
