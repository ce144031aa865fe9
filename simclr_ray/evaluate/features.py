"""Features of a frozen encoder, whose weights, statistics and modes stay as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from simclr_ray.evaluate.images import ImageBatch
from simclr_ray.model.encoder import Encoder
from simclr_ray.train.batch import channel_scale, normalise
from simclr_ray.train.precision import fix_float32


@dataclass(frozen=True)
class Features:
    """Row i of all three belongs to one image; the tensors are on the encoder's device."""

    h: Float[Tensor, "n d"]
    """float32."""
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]
    bad: int
    """Images that could not be decoded and have no row."""


class Pixels(Encoder):
    """The pixels of the view as features: the baseline that any encoder has to beat."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.feature_dim = 3 * size * size

    def forward(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        return images.flatten(1)


def extract(
    encoder: Encoder,
    batches: Iterable[ImageBatch],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Features:
    """The features of every image; the encoder must be on `device` already.

    It runs in eval mode (BatchNorm uses its running statistics), in bf16 autocast on a GPU and in its own precision on
    a CPU. No batches, as a worker without a share has, give no rows.
    """
    none = torch.empty(0, dtype=torch.int64, device=device)
    parts = [Features(torch.empty(0, encoder.feature_dim, device=device), none, none, 0)]
    with frozen(encoder):
        for batch in batches:
            h = encode(encoder, torch.from_numpy(batch.pixels).to(device), mean, std)
            labels, ids = (torch.from_numpy(column).to(device) for column in (batch.labels, batch.ids))
            parts.append(Features(h, labels, ids, batch.bad))
    return Features(
        h=torch.cat([part.h for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        bad=sum(part.bad for part in parts),
    )


def encode(
    encoder: Encoder, pixels: UInt8[Tensor, "n s s 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "n d"]:
    """float32 features of one batch; its pixels and the encoder are on the same device.

    In bf16 on a GPU; what is float32 there, such as a kNN search of these features: see `fix_float32`, called here.
    """
    fix_float32()
    weight = next(encoder.parameters(), None)
    dtype = torch.float32 if weight is None else weight.dtype
    on_gpu = pixels.device.type == "cuda"
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=on_gpu and dtype == torch.float32):
        return encoder(normalise(pixels, *channel_scale(mean, std, dtype, pixels.device))).float()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients, and eval mode; afterwards every submodule is in its earlier mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
