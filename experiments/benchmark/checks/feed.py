"""The feed of a step: what data workers load on this machine's cores, against the step that they are to feed.

A data worker here is a process of torch's DataLoader that calls what a Ray Data actor calls, so that a machine without
Ray can be measured; what Ray adds is in runs.py.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from torch.utils.data import DataLoader, Dataset

from augment import synthetic_jpeg
from checks.check import Bar, Check, Figures, Machine
from checks.steps import OurStep, cifar, imagenet, rates
from simclr_ray.config import Config
from simclr_ray.data import dataset as prepared
from simclr_ray.data.bridge import Block
from simclr_ray.data.cache import open_cache
from simclr_ray.data.load import SliceLoader
from simclr_ray.data.order import order_of
from simclr_ray.data.prepare.build import prepare_here

SLICE_ROWS = 32
BLOCK_BYTES = 32 << 20
DISTINCT = 16
"""Drawing one takes a tenth of a second."""


def photographs(machine: Machine) -> Figures:
    """Two views of each JPEG of 465 x 385, by all cores but one."""
    config = imagenet(machine)
    with photographs_folder(config.train.global_batch) as folder:
        return _feed(config, folder, machine, cached=False)


@contextmanager
def photographs_folder(count: int) -> Iterator[str]:
    """A folder of so many JPEGs as large as photographs."""
    drawn = [synthetic_jpeg(seed) for seed in range(DISTINCT)]
    with TemporaryDirectory() as folder:
        for number in range(count):
            (Path(folder) / f"{number}.jpg").write_bytes(drawn[number % DISTINCT])
        yield folder


def small_images(machine: Machine) -> Figures:
    """CIFAR-10's, from the cache of decoded images, by all cores but one."""
    return _feed(recipe_config(machine), f"synthetic:{machine.size(8192, 64)}", machine, cached=True)


def recipe_config(machine: Machine) -> Config:
    """`cifar10_rn18_200ep` in the precision of the device."""
    return cifar(machine, **{"train.precision": machine.size("bf16", "float32")})


def _feed(config: Config, spec: str, machine: Machine, *, cached: bool) -> Figures:
    workers, seconds = max(1, machine.cores - 1), machine.size(6.0, 0.3)
    with (
        dataset_of(spec) as images,
        closing(loaded(config, images, np.arange(1 << 20), workers, cached=cached)) as stream,
    ):
        for _ in range(2 * workers):
            next(stream)  # the workers have started
        before, rows = perf_counter(), 0
        while perf_counter() - before < seconds:
            rows += len(next(stream)["id"])
        rate = rows / (perf_counter() - before)
    return Figures(ours=rate, reference=step_rate_of(config, machine), note=f"{workers} data workers")


def step_rate_of(config: Config, machine: Machine) -> float:
    measured = machine.measured.get("step_rate")
    if measured and config == imagenet(machine):
        return measured.ours
    step = OurStep(config, machine.device, compiled=machine.on_gpu)
    return median(rates([step], config.train.global_batch, machine)[0])


@contextmanager
def dataset_of(spec: str) -> Iterator[prepared.Dataset]:
    """The images of a spec that prepare takes, prepared."""
    with TemporaryDirectory() as folder:
        yield prepare_here(spec, f"{folder}/images", SLICE_ROWS)


def loaded(
    config: Config, images: prepared.Dataset, positions: np.ndarray, workers: int, *, cached: bool
) -> Generator[Block]:
    """The blocks of these positions in their order, loaded by so many processes."""
    most_slices = min(BLOCK_BYTES // (6 * config.augment.size**2), config.train.global_batch) // SLICE_ROWS
    block_slices = max(1, most_slices)
    blocks = _Blocks(config, images, positions, block_slices, cached=cached)
    blocks[0]  # compiles the kernels and builds the cache, once for all processes
    for block in DataLoader(blocks, batch_size=None, num_workers=workers, prefetch_factor=2):
        yield {name: column.numpy() for name, column in block.items()}


class _Blocks(Dataset[Block]):
    """Blocks of views by their number."""

    def __init__(
        self, config: Config, images: prepared.Dataset, positions: np.ndarray, slices: int, *, cached: bool
    ) -> None:
        self._config, self._images, self._cached = config, images, cached
        self._positions, self._slices = positions, slices
        self._loader: tuple[int, SliceLoader] | None = None

    def __len__(self) -> int:
        return -(-len(self._positions) // self._slices)

    def __getitem__(self, number: int) -> Block:
        if self._loader is None or self._loader[0] != os.getpid():  # open files are not shared
            self._loader = os.getpid(), self._open()
        return self._loader[1](self._positions[number * self._slices : (number + 1) * self._slices])

    def _open(self) -> SliceLoader:
        config, folder = self._config, self._images.location.local
        cache = open_cache(self._images, 2.0, str(folder)) if self._cached else None
        return SliceLoader(self._images, order_of(config, self._images), config.augment, cache)


CHECKS = (
    Check(
        run=photographs,
        claim="images/s that data workers load at 224, against ResNet-50's step",
        bar=Bar(least=0.95),
        limit_s=120,
        judged_on_cpu=False,
    ),
    Check(
        run=small_images,
        claim="images/s that data workers load at 32, against the step of cifar10_rn18_200ep",
        bar=Bar(least=0.95),
        limit_s=120,
        judged_on_cpu=False,
    ),
)
