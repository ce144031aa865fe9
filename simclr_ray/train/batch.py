"""Cuts the blocks of a stream into the batches of a step, copies them to the device, and normalises their pixels."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from simclr_ray.data.bridge import Block


@dataclass(frozen=True)
class Batch:
    """This worker's rows of one global step, pass after pass."""

    step: int
    views: Tensor
    """uint8 (n, 2, h, w, 3)."""
    ids: np.ndarray
    """(n,) sample ids, in the order of the rows."""
    bad: np.ndarray
    """(n,) True where an image could not be decoded and is replaced by the next good one of its slice."""
    labels: Tensor | None = None
    """int64 (n,), where the stream has them."""


def batches(blocks: Iterable[Block], rows_per_step: int, first_step: int, *, pin: bool = False) -> Iterator[Batch]:
    """Cuts a stream of blocks into steps of `rows_per_step` rows: each row is copied once, into one fresh tensor."""
    stream, block, used, step = iter(blocks), None, 0, first_step
    while True:
        views, labels, filled = None, None, 0
        ids, bad = np.empty(rows_per_step, np.int64), np.zeros(rows_per_step, bool)
        while filled < rows_per_step:
            if block is None or used == len(block["id"]):
                block, used = next(stream, None), 0
                if block is None:
                    assert filled == 0, "the stream ended inside a step"
                    return
            if views is None:
                views = torch.empty((rows_per_step, *block["views"].shape[1:]), dtype=torch.uint8, pin_memory=pin)
                labels = torch.empty(rows_per_step, dtype=torch.int64, pin_memory=pin) if "label" in block else None
            take = min(rows_per_step - filled, len(block["id"]) - used)
            part = slice(used, used + take)
            views.numpy()[filled : filled + take] = block["views"][part]
            ids[filled : filled + take], bad[filled : filled + take] = block["id"][part], block["bad"][part]
            if labels is not None:
                labels.numpy()[filled : filled + take] = block["label"][part]
            filled, used = filled + take, used + take
        assert views is not None
        yield Batch(step, views, ids, bad, labels)
        step += 1


def on_device(source: Iterable[Batch], device: torch.device) -> Generator[Batch]:
    """The batches on `device`; to a GPU they are copied on a side stream.

    The GPU runs some steps behind this process, so a copy overlaps with the training on earlier batches.
    """
    if device.type != "cuda":
        yield from source
        return
    side = torch.cuda.Stream(device)
    for batch in source:
        with torch.cuda.stream(side):
            views = batch.views.to(device, non_blocking=True)
            labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for copied in (views, labels):
            if copied is not None:
                copied.record_stream(current)
        yield Batch(batch.step, views, batch.ids, batch.bad, labels)


def channel_scale(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Scale and shift for `normalise`. Made once: a copy to a GPU from memory that is not pinned waits for the GPU."""
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=dtype, device=device)
    return scale, torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype, device=device)


def normalise(
    pixels: UInt8[Tensor, "n h w 3"], scale: Float[Tensor, " 3"], shift: Float[Tensor, " 3"]
) -> Float[Tensor, "n 3 h w"]:
    """The encoder's input: (x / 255 - mean) / std, channels_last without a copy."""
    return torch.addcmul(shift, pixels.to(scale.dtype), scale).permute(0, 3, 1, 2)
