"""Measures two figures of a plan on this machine, without Ray: the recipe's step, and one core of its feed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from math import inf
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch

from simclr_ray.config import Config, EvaluateConfig
from simclr_ray.data.cache import open_cache
from simclr_ray.data.dataset import Dataset, is_dataset, open_dataset
from simclr_ray.data.load import SliceLoader
from simclr_ray.data.order import Order
from simclr_ray.data.prepare import synthetic
from simclr_ray.data.prepare.build import prepare_here
from simclr_ray.data.prepare.source import is_address
from simclr_ray.planning.figures import Figures
from simclr_ray.planning.job import SLICE_ROWS, Job
from simclr_ray.planning.machines import LOCAL, Instance, kind_of
from simclr_ray.train.batch import batches, on_device
from simclr_ray.train.branches import kept_of
from simclr_ray.train.memory import keep_freed_memory
from simclr_ray.train.precision import auto_precision, this_gpu_has_bf16
from simclr_ray.train.state import initial_state
from simclr_ray.train.step import forward_of, training_step

WARM_UP = 3
"""Steps that compile, tune and grow the memory that later ones use again."""
DRAWN = 512
PHOTOGRAPH_PX = 320
"""Side of the synthetic images that stand for photographs: half the pixels, as their noise makes JPEGs of 185 KB."""


def this_machine() -> Instance:
    """What this process may use; a CPU counts as a core, as the measured rates are of one."""
    gpus = torch.cuda.device_count()
    return Instance(
        name=LOCAL,
        vcpus=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        network_gbit_s=inf,
        usd_per_hour=0.0,
        gpus=gpus,
        gpu=kind_of(torch.cuda.get_device_name()) if gpus else None,
        smt=False,
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    step_images_per_s: float
    core_images_per_s: float
    device: str
    images: str
    """What the feed was measured on."""


def with_measured(figures: Figures, config: Config, job: Job) -> Figures:
    """`figures` with the two that matter most measured here: the rate of a step, and that of one core of its feed."""
    if not this_machine().gpus:
        keep_freed_memory()  # as a training worker does
    found = measure(config, job)
    figures = figures.replaced(f"measured here, {found.device}", step_images_per_s=found.step_images_per_s)
    return figures.replaced(f"measured here, on {found.images}", core_images_per_s=found.core_images_per_s)


def measure(config: Config, job: Job, *, seconds: float = 10.0) -> Measured:
    """About `seconds` for each of the two, and the warm-up. The feed first: its views are what the step trains on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = replace(config, evaluate=EvaluateConfig())  # no probe, which is below 2 % of a step
    with _images(config, job) as (dataset, images), TemporaryDirectory() as cache_dir:
        loader = _loader(dataset, config, cache_dir)
        core, block = _feed(loader, dataset.rows // dataset.slice_rows, job, seconds)
    step = _step(config, job, block, device, seconds)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {job.threads} threads"
    return Measured(step_images_per_s=step, core_images_per_s=core, device=name, images=images)


@contextmanager
def _images(config: Config, job: Job) -> Iterator[tuple[Dataset, str]]:
    """The run's own dataset if it is prepared, else a few synthetic images of about its size."""
    train = config.data.train
    if is_address(train) and is_dataset(train):
        yield open_dataset(train), train
        return
    spec = f"{synthetic.PREFIX}{DRAWN}:{config.augment.size if config.augment.size <= 64 else PHOTOGRAPH_PX}px"
    with TemporaryDirectory() as folder:
        yield prepare_here(spec, f"{folder}/images", SLICE_ROWS), spec


def _loader(dataset: Dataset, config: Config, cache_dir: str) -> SliceLoader:
    rows, labels = dataset.slice_rows, config.reads_labels
    order = Order(seed=0, rows=dataset.rows, slice_rows=rows, global_batch=rows, pass_size=rows)
    cache = open_cache(dataset, config.resources.cache_gib, cache_dir)
    return SliceLoader(dataset, order, config.augment, cache, labels=labels)


def _feed(loader: SliceLoader, slices: int, job: Job, seconds: float) -> tuple[float, dict[str, np.ndarray]]:
    """Images a second of this thread; and a block of a step's rows."""
    per_block = max(1, min(slices, job.busiest_rows // SLICE_ROWS))
    block = loader(np.arange(per_block))
    rates: list[float] = []
    start, position = perf_counter(), per_block
    while not rates or perf_counter() - start < seconds:
        before = perf_counter()
        block = loader(np.arange(position, position + per_block))
        rates.append(len(block["id"]) / (perf_counter() - before))
        position += per_block
    return median(rates), block


def _step(config: Config, job: Job, block: dict[str, np.ndarray], device: torch.device, seconds: float) -> float:
    """Images a second of whole steps of this device alone, cutting batches out of blocks included.

    A batch in passes is measured as one pass: the plan counts second forwards itself.
    """
    torch.set_num_threads(job.threads)
    on_gpu, train = device.type == "cuda", config.train
    precision: str = train.precision
    if precision == "auto":
        precision = auto_precision(on_gpu=on_gpu, gpu_has_bf16=on_gpu and this_gpu_has_bf16())
    rows = job.busiest_rows // job.passes
    state = initial_state(config, device)
    compiled = config.resources.compiles(on_gpu=on_gpu)
    forward = forward_of(state.model, config.data.mean, config.data.std, precision, device, compiled=compiled)
    stream = on_device(batches(repeat(block), rows, 0, device, staged_rows=rows if on_gpu else None), device)
    took: list[float] = []
    while len(took) < WARM_UP + 3 or sum(took[WARM_UP:]) < seconds:
        before = perf_counter()
        batch = next(stream)
        training_step(
            state.model,
            forward,
            state.optimizer,
            batch.views,
            passes=1,
            rows_per_worker=[rows],
            local=batch.local,
            labels=batch.labels,
            kept=kept_of(state.model, batch, train.seed, epoch=0),
        )
        if on_gpu:
            torch.cuda.synchronize(device)
        took.append(perf_counter() - before)
    return rows / median(took[WARM_UP:])
