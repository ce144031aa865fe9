"""The recipe and its data in the numbers that a plan needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import is_dataset, open_dataset
from simclr_ray.data.order import order_over
from simclr_ray.data.prepare import synthetic
from simclr_ray.data.prepare.source import is_address, is_synthetic
from simclr_ray.planning.cost import ModelCost, pass_gib
from simclr_ray.planning.fleet import Fleet

SLICE_ROWS = 32
PIXELS_PER_BYTE = 5
"""Bytes of a photograph decoded over those of its JPEG (465 x 385 pixels, 110 KB)."""
PHOTOGRAPH_KB_PER_PIXEL = 110 / 224**2
USABLE_MEMORY = 0.9
MAX_IDLE = 0.15
"""Of the workers' time in a pass, without a warning: a pass of 32 slices or more stays below it on up to eight."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """The data: how many, how large, and whether each node keeps them decoded."""

    count: int
    kb: float
    """Of an encoded one."""
    cached: bool
    prepared: bool = False


def images_of(config: Config, count: int | None, kb: float | None) -> Images:
    """From the data where they are at hand, else from `count` and `kb`. Raises BadInput where the count is unknown."""
    train, pixel_bytes = config.data.train, None
    prepared = count is None and is_address(train) and is_dataset(train)
    if count is None and is_synthetic(train):
        _, size, count = synthetic.parse(train)
        kb, pixel_bytes = kb or synthetic.typical_bytes(size) / 1000, 3 * size**2 * count
    elif prepared:
        dataset = open_dataset(train)
        count, pixel_bytes = dataset.rows, dataset.pixel_bytes
    if count is None:
        raise BadInput(f"{train} is not prepared yet: give the number of its images with --images")
    kb = kb or PHOTOGRAPH_KB_PER_PIXEL * config.augment.size**2
    if pixel_bytes is None:
        pixel_bytes = round(1000 * kb * PIXELS_PER_BYTE * count)
    return Images(count=count, kb=kb, cached=pixel_bytes <= config.resources.cache_gib * 2**30, prepared=prepared)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The run, whatever machines train it."""

    global_batch: int
    passes: int
    """In which a batch is taken; more than one means a second forward."""
    busiest_rows: int
    """Images of a step on the worker that has most."""
    steps: int
    size: int
    """Side of a view in pixels."""
    view_pixels: int
    """Of all views of an image, local ones too."""
    threads: int
    image_kb: float
    cached: bool
    unprepared_bytes: float
    """Of the images that are to be prepared first."""
    trained_parameters: int
    batchnorms: int
    state_bytes: int
    save_every_s: float
    save_every_steps: int | None
    settle_s: float
    evaluations: int
    evaluated_images: int
    """Of one evaluation."""


def job_of(config: Config, cost: ModelCost, images: Images, workers: int, *, threads: int) -> Job:
    """`threads`: torch's of a worker. Raises BadInput where data, batch and workers do not fit, as the run would."""
    train, checks, saving, elasticity = config.train, config.evaluate, config.saving, config.elasticity
    augment = config.augment
    order = order_over(config, images.count, SLICE_ROWS)
    passes = order.global_batch // order.pass_size
    moments = 2 if config.optim.optimizer == "adamw" else 1
    return Job(
        global_batch=train.global_batch,
        passes=passes,
        busiest_rows=max(order.rows_per_pass(workers)) * passes,
        steps=train.epochs * order.steps_per_epoch,
        size=augment.size,
        view_pixels=2 * augment.size**2 + augment.local_views * augment.local_size**2,
        threads=threads,
        image_kb=images.kb,
        cached=images.cached,
        unprepared_bytes=0.0 if images.prepared else 1000 * images.kb * images.count,
        trained_parameters=cost.trained_parameters,
        batchnorms=cost.batchnorms,
        state_bytes=4 * cost.parameters + 4 * moments * cost.trained_parameters,
        save_every_s=saving.every_s,
        save_every_steps=saving.every_steps,
        settle_s=elasticity.settle_s,
        evaluations=ceil(train.epochs / checks.every_epochs) if checks.every_epochs and checks.method != "probe" else 0,
        evaluated_images=min(checks.bank_rows, images.count) + checks.test_rows,
    )


def memory_warning(config: Config, cost: ModelCost, job: Job, fleet: Fleet) -> str | None:
    """What to set where a pass does not fit into the GPUs of the fewest workers that the run goes on with.

    None where it does, or the GPUs are unknown.
    """
    if fleet.machine.gpu is None:
        return None
    usable_gib = USABLE_MEMORY * fleet.machine.gpu.memory_gb * 1e9 / 2**30
    batch, fewest = config.train.global_batch, min(config.resources.min_workers, fleet.workers)
    rows = batch // job.passes
    needed = pass_gib(cost, ceil(rows / fewest))
    if needed <= usable_gib:
        return None
    sizes = [size for size in range(SLICE_ROWS * fleet.workers, batch, SLICE_ROWS) if batch % size == 0]
    fitting = [size for size in sizes if pass_gib(cost, ceil(size / fewest)) <= usable_gib]
    enough = next(
        (n for n in range(fewest + 1, fleet.workers + 1) if pass_gib(cost, ceil(rows / n)) <= usable_gib), None
    )
    remedies = [f"--train.pass-size {size}" for size in fitting[-1:]]
    remedies += [f"--resources.min-workers {enough}"] if enough else []
    return (
        f"a pass takes about {needed:,.0f} GiB on each GPU, with the fewest workers that the run goes on with "
        f"({fewest}); it has {usable_gib:,.0f} to spare: {', or '.join(remedies) or 'more workers or larger GPUs'}"
    )


def share_warning(config: Config, job: Job, fleet: Fleet) -> str | None:
    """What to set where the slices of a pass divide badly among a number of workers that the run may go on with.

    A worker's share of a pass is whole slices, and all wait for the largest one. None where that costs little.
    """
    batch, fewest = config.train.global_batch, min(config.resources.min_workers, fleet.workers)
    slices, numbers = batch // job.passes // SLICE_ROWS, range(fewest, fleet.workers + 1)
    worst = max(numbers, key=lambda workers: _idle(slices, workers))
    if _idle(slices, worst) <= MAX_IDLE:
        return None
    as_fast = ceil(slices / ceil(slices / worst))
    larger = [count for count in range(slices + 1, batch // SLICE_ROWS + 1) if batch % (count * SLICE_ROWS) == 0]
    even = next((count for count in larger if all(_idle(count, n) <= MAX_IDLE for n in numbers)), None)
    return (
        f"a pass of {slices * SLICE_ROWS} images is {slices} slices of {SLICE_ROWS}: {worst} workers are no faster "
        f"than {as_fast} and idle for {_idle(slices, worst):.0%} of it: "
        + (f"--train.pass-size {even * SLICE_ROWS}, or " if even else "")
        + "another number of workers"
    )


def _idle(slices: int, workers: int) -> float:
    """The part of a pass for which workers wait for those with the most slices."""
    return 1 - slices / (workers * ceil(slices / workers))
