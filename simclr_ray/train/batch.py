"""Cuts the blocks of a stream into the batches of a step, copies them to the device, and normalises their pixels."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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
    local: Tensor | None = None
    """uint8 (n, k, s, s, 3), where there are local views."""
    labels: Tensor | None = None
    """int64 (n,), where the stream has them."""


COLUMNS = ("views", "local", "labels")
"""Of a block and of a batch: those that training uses on its device."""


def batches(blocks: Iterable[Block], rows_per_step: int, first_step: int, *, pin: bool = False) -> Iterator[Batch]:
    """Cuts a stream of blocks into steps of `rows_per_step` rows: each row is copied once, into one fresh tensor."""
    stream, block, used, step = iter(blocks), None, 0, first_step
    while True:
        tensors: dict[str, Tensor] = {}
        ids, bad, filled = np.empty(rows_per_step, np.int64), np.zeros(rows_per_step, bool), 0
        while filled < rows_per_step:
            if block is None or used == len(block["id"]):
                block, used = next(stream, None), 0
                if block is None:
                    assert filled == 0, "the stream ended inside a step"
                    return
            tensors = tensors or _empty(block, rows_per_step, pin=pin)
            take = min(rows_per_step - filled, len(block["id"]) - used)
            part, rows = slice(used, used + take), slice(filled, filled + take)
            for name, tensor in tensors.items():
                tensor.numpy()[rows] = block[name][part]
            ids[rows], bad[rows] = block["id"][part], block["bad"][part]
            filled, used = filled + take, used + take
        yield Batch(step, ids=ids, bad=bad, **tensors)
        step += 1


def _empty(block: Block, rows: int, *, pin: bool) -> dict[str, Tensor]:
    """Tensors for `rows` rows of the block's columns."""
    columns = {name: torch.from_numpy(block[name]) for name in COLUMNS if name in block}
    return {
        name: torch.empty((rows, *column.shape[1:]), dtype=column.dtype, pin_memory=pin)
        for name, column in columns.items()
    }


def on_device(source: Iterable[Batch], device: torch.device) -> Generator[Batch]:
    """The batches on `device`; to a GPU they are copied on a side stream.

    The GPU runs some steps behind this process, so a copy overlaps with the training on earlier batches.
    """
    if device.type != "cuda":
        yield from source
        return
    side = torch.cuda.Stream(device)
    for batch in source:
        present = {name: getattr(batch, name) for name in COLUMNS if getattr(batch, name) is not None}
        with torch.cuda.stream(side):
            copied = {name: tensor.to(device, non_blocking=True) for name, tensor in present.items()}
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in copied.values():
            tensor.record_stream(current)
        yield replace(batch, **copied)


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
