"""Cuts the blocks of a stream into the batches of a step, on the device one step ahead, and normalises their pixels."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from simclr_ray.data.bridge import Block, one_thread


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


CPU = torch.device("cpu")
CLOSE_S = 10.0
"""At most so long an end waits for a batch under way: its data may never come."""


def batches(
    blocks: Iterable[Block],
    rows_per_step: int,
    first_step: int,
    device: torch.device = CPU,
    *,
    staged_rows: int | None = None,
) -> Generator[Batch]:
    """Cuts a stream of blocks into steps of `rows_per_step` rows: each row is copied once, into one fresh tensor.

    With `staged_rows` they are put on `device` by way of host memory for so many rows, pinned for a GPU, which torch
    uses again once it is copied.
    """
    rows = _Rows(blocks)
    for step in count(first_step):
        block = rows.current()
        if block is None:
            return
        whole = _empty(block, rows_per_step, device)
        ids, bad = np.empty(rows_per_step, np.int64), np.empty(rows_per_step, bool)
        for start in range(0, rows_per_step, staged_rows or rows_per_step):
            part = slice(start, min(start + (staged_rows or rows_per_step), rows_per_step))
            own = {name: tensor[part] for name, tensor in whole.items()}
            host = _empty(block, len(ids[part]), CPU, pin=device.type == "cuda") if staged_rows else own
            columns = {name: tensor.numpy() for name, tensor in host.items()}
            rows.copy_to(columns | {"id": ids[part], "bad": bad[part]})
            if staged_rows:
                for name, tensor in own.items():
                    tensor.copy_(host[name], non_blocking=True)
        yield Batch(step, ids=ids, bad=bad, **whole)


class _Rows:
    """The rows of a stream of blocks, one after the other."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._stream = iter(blocks)
        self._block: Block | None = None
        self._used = 0

    def current(self) -> Block | None:
        """The block of the next row; None at the end."""
        if self._block is None or self._used == len(self._block["id"]):
            self._block, self._used = next(self._stream, None), 0
        return self._block

    def copy_to(self, columns: Mapping[str, np.ndarray]) -> None:
        """The next rows, as many as `columns` have."""
        filled, wanted = 0, len(columns["id"])
        while filled < wanted:
            block = self.current()
            assert block is not None, "the stream ended inside a step"
            take = min(wanted - filled, len(block["id"]) - self._used)
            for name, column in columns.items():
                column[filled : filled + take] = block[name][self._used : self._used + take]
            filled, self._used = filled + take, self._used + take


def _empty(block: Block, rows: int, device: torch.device, *, pin: bool = False) -> dict[str, Tensor]:
    """Tensors for `rows` rows of the block's columns."""
    columns = {name: torch.from_numpy(block[name]) for name in COLUMNS if name in block}
    return {
        name: torch.empty((rows, *column.shape[1:]), dtype=column.dtype, device=device, pin_memory=pin)
        for name, column in columns.items()
    }


def on_device(source: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """The batches of `source`, which makes each on a thread while the one before is trained on.

    What it puts on a GPU is put there on a side stream: training, not this process, waits for the copies.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def made() -> tuple[Batch | None, torch.Event | None]:
        if side is None:
            return next(source, None), None
        with torch.cuda.stream(side):
            return next(source, None), side.record_event()

    with one_thread("batches") as thread:
        try:
            pending = thread.submit(made)
            while True:
                batch, copied = pending.result()
                if batch is None:
                    return
                pending = thread.submit(made)
                if copied:
                    _use_after(copied, batch, device)
                yield batch
        finally:
            wait([thread.submit(source.close)], CLOSE_S)


def _use_after(copied: torch.Event, batch: Batch, device: torch.device) -> None:
    """The stream that trains waits for `copied`, and the batch's memory is not used again before it is through."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for tensor in (batch.views, batch.local, batch.labels):
        if tensor is not None:
            tensor.record_stream(current)


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
