"""The order of samples as a pure function of seed, epoch and batch: which slices make up which global batch.

A *position* counts slices through the whole run, in the order in which they are trained on. It is the only state that a
stream needs: it gives the epoch, the slice and, with the number of workers, the worker that loads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.swap_or_not import swap_or_not

Index = TypeVar("Index", int, np.ndarray)


@dataclass(frozen=True)
class Positions:
    """The positions that a worker loads one after the other, calculated where they are used: an array of those of a
    long run would be gigabytes. A slice of it is one too; numpy makes an array of it."""

    first: int
    slices_per_pass: int
    ours: int
    """Slices of a pass that are the worker's."""
    workers: int
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> Positions:
        return replace(self, indices=self.indices[part])

    def __iter__(self) -> Iterator[int]:
        return map(self._position, self.indices)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """(m,) int64."""
        return self._position(np.arange(self.indices.start, self.indices.stop, self.indices.step, dtype=np.int64))

    def _position(self, index: Index) -> Index:
        return self.first + index // self.ours * self.slices_per_pass + index % self.ours * self.workers


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of one run. Raises BadInput if data, batch and slices do not fit together."""

    seed: int
    rows: int
    slice_rows: int
    global_batch: int
    pass_size: int

    def __post_init__(self) -> None:
        for key, value in (("global_batch", self.global_batch), ("pass_size", self.pass_size)):
            if value % self.slice_rows:
                nearest = max(1, round(value / self.slice_rows)) * self.slice_rows
                raise BadInput(
                    f"train.{key} {value} is no multiple of the dataset's slices of {self.slice_rows} images; "
                    f"try {nearest}"
                )
        if self.global_batch % self.pass_size:
            raise BadInput(f"train.pass_size {self.pass_size} does not divide train.global_batch {self.global_batch}")
        if self.global_batch > self.slices * self.slice_rows:
            raise BadInput(
                f"train.global_batch {self.global_batch} is more than the data holds: {self.rows} images, "
                f"{self.slices * self.slice_rows} in whole slices of {self.slice_rows}; lower it"
            )

    @property
    def slices(self) -> int:
        """Whole slices of the dataset; the last partial one is not pretrained on."""
        return self.rows // self.slice_rows

    @property
    def slices_per_batch(self) -> int:
        return self.global_batch // self.slice_rows

    @property
    def slices_per_pass(self) -> int:
        return self.pass_size // self.slice_rows

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the remaining tail of its order, another one each epoch, is dropped."""
        return self.slices // self.slices_per_batch

    def slice_at(self, position: int) -> tuple[int, int]:
        """The epoch of a position, and the number of the dataset's slice at it."""
        epoch, index = divmod(position, self.steps_per_epoch * self.slices_per_batch)
        return epoch, swap_or_not(index, self.slices, self.seed, epoch)

    def worker_positions(self, start_step: int, stop_step: int, rank: int, workers: int) -> Positions:
        """Those that worker `rank` loads for steps start..stop - 1: r, r + W, ... of every pass."""
        passes = (stop_step - start_step) * (self.slices_per_batch // self.slices_per_pass)
        ours = len(range(rank, self.slices_per_pass, workers))
        first = start_step * self.slices_per_batch + rank
        return Positions(first, self.slices_per_pass, ours, workers, range(passes * ours))

    def rows_per_pass(self, workers: int) -> list[int]:
        """Images of one pass on each worker, in rank order. Raises BadInput if a worker would have none."""
        if workers > self.slices_per_pass:
            raise BadInput(
                f"{workers} workers are more than the {self.slices_per_pass} slices of a pass of {self.pass_size} "
                f"images: set resources.max_workers to at most {self.slices_per_pass}, or raise "
                + ("train.global_batch" if self.pass_size == self.global_batch else "train.pass_size")
            )
        return [len(range(rank, self.slices_per_pass, workers)) * self.slice_rows for rank in range(workers)]


def order_of(config: Config, dataset: Dataset) -> Order:
    """The order of the run of `config` on `dataset`. Raises BadInput."""
    return order_over(config, dataset.rows, dataset.slice_rows)


def order_over(config: Config, rows: int, slice_rows: int) -> Order:
    """The order of the run of `config` on a dataset of so many rows, prepared or not. Raises BadInput."""
    return Order(
        seed=config.train.seed,
        rows=rows,
        slice_rows=slice_rows,
        global_batch=config.train.global_batch,
        pass_size=config.train.pass_size or config.train.global_batch,
    )


def last_step(config: Config, order: Order) -> int:
    """The step at which this command ends: the run's last one, or that of saving.stop_after_epochs."""
    total, early = config.train.epochs * order.steps_per_epoch, config.saving.stop_after_epochs
    return total if early is None else min(total, max(1, round(early * order.steps_per_epoch)))
