"""What is to be done, and on what: the recipe and the machines in the numbers that a plan needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from simclr_ray.config import BadInput, Config, MachineConfig
from simclr_ray.data import synthetic
from simclr_ray.data.dataset import is_dataset, open_dataset
from simclr_ray.data.order import Order
from simclr_ray.report.plan_cost import ModelCost, pass_gib
from simclr_ray.report.plan_instances import LOCAL, Instance

SLICE_ROWS = 32
PIXELS_PER_BYTE = 5
"""Bytes of a photograph decoded over those of its JPEG (465 x 385 pixels, 110 KB)."""
PHOTOGRAPH_KB_PER_PIXEL = 110 / 224**2
USABLE_MEMORY = 0.9


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The data: how many, how large, and whether each node keeps them decoded."""

    count: int
    kb: float
    """Of an encoded one."""
    cached: bool


def pictures_of(config: Config, count: int | None, kb: float | None) -> Pictures:
    """From the data where they are at hand, else from what is told. Raises BadInput where nobody tells how many."""
    train, pixel_bytes = config.data.train, None
    if count is None and train.startswith("synthetic:"):
        _, size, count = synthetic.parse(train)
        kb, pixel_bytes = kb or synthetic.typical_bytes(size) / 1000, 3 * size**2 * count
    elif count is None and not train.startswith("torchvision:") and is_dataset(train):
        dataset = open_dataset(train)
        count, pixel_bytes = dataset.rows, dataset.pixel_bytes
    if count is None:
        raise BadInput(f"{train} is not prepared yet: say how many pictures it holds with --images")
    kb = kb or PHOTOGRAPH_KB_PER_PIXEL * config.augment.size**2
    if pixel_bytes is None:
        pixel_bytes = round(1000 * kb * PIXELS_PER_BYTE * count)
    return Pictures(count=count, kb=kb, cached=pixel_bytes <= config.machine.cache_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The run, whatever trains it."""

    global_batch: int
    passes: int
    """In which a batch is taken; more than one means a second forward."""
    busiest_rows: int
    """Pictures of a step on the worker that has most."""
    steps: int
    size: int
    """Side of a view in pixels."""
    threads: int
    picture_kb: float
    cached: bool
    parameters: int
    batchnorms: int
    state_bytes: int
    save_every_s: float
    save_every_steps: int | None
    resize_every_s: float
    settle_s: float
    evaluations: int
    evaluated_pictures: int
    """Of one evaluation."""


def job_of(config: Config, cost: ModelCost, pictures: Pictures, workers: int, *, threads: int) -> Job:
    """`threads`: torch's of a worker. Raises BadInput where data, batch and workers do not fit, as the run would."""
    train, checks, machine = config.train, config.evaluate, config.machine
    order = Order(
        seed=train.seed,
        rows=pictures.count,
        slice_rows=SLICE_ROWS,
        global_batch=train.global_batch,
        pass_size=train.pass_size or train.global_batch,
    )
    passes = order.global_batch // order.pass_size
    return Job(
        global_batch=train.global_batch,
        passes=passes,
        busiest_rows=max(order.rows_per_pass(workers)) * passes,
        steps=train.epochs * order.steps_per_epoch,
        size=config.augment.size,
        threads=threads,
        picture_kb=pictures.kb,
        cached=pictures.cached,
        parameters=cost.parameters,
        batchnorms=cost.batchnorms,
        state_bytes=4 * cost.parameters * (3 if config.optim.optimizer == "adamw" else 2),
        save_every_s=machine.save_every_s,
        save_every_steps=machine.save_every_steps,
        resize_every_s=machine.resize_every_s,
        settle_s=machine.settle_s,
        evaluations=ceil(train.epochs / checks.every_epochs) if checks.every_epochs else 0,
        evaluated_pictures=min(checks.bank_rows, pictures.count) + checks.test_rows,
    )


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The machines, and how the run shares them out."""

    workers: int
    nodes: int
    machine: Instance
    cpu_nodes: int
    """That only augment."""
    cpu_machine: Instance | None
    cpus_per_worker: float
    data_cpus: float
    """Of each worker."""
    elastic: bool
    """The run goes on without one of its nodes."""

    @property
    def vcpus(self) -> int:
        return self.nodes * self.machine.vcpus + (self.cpu_nodes * self.cpu_machine.vcpus if self.cpu_machine else 0)


def nodes_for(workers: int, machine: Instance, settings: MachineConfig) -> int:
    """The fewest nodes that hold so many workers. Raises BadInput if a node holds none, or there is only this one."""
    if machine.gpus and settings.gpus_per_worker != 0:
        fit = min(_times(machine.gpus, settings.gpus_per_worker or 1), _times(machine.vcpus, settings.cpus_per_worker))
    else:
        fit = _times(machine.vcpus, settings.cpus_per_worker + (settings.data_cpus or 0.1))
    if fit < 1 or (machine.name == LOCAL and fit < workers):
        raise BadInput(
            f"{machine.name}, with {machine.vcpus} CPUs and {machine.gpus} GPUs, holds {fit} of {workers:,} workers: "
            "take another --instance, fewer --workers, or a lower machine.cpus_per_worker or machine.data_cpus"
        )
    return ceil(workers / fit)


def _times(whole: float, part: float) -> int:
    """How often `part` fits: 1.0 // 0.2 would be 4."""
    return int(whole / part + 1e-6)


def memory_warning(config: Config, cost: ModelCost, job: Job, fleet: Fleet) -> str | None:
    """What to set where a pass does not fit into the GPUs of the fewest workers that the run goes on with.

    None where it does, or nobody knows the GPUs.
    """
    if fleet.machine.gpu is None:
        return None
    room = USABLE_MEMORY * fleet.machine.gpu.memory_gb * 1e9 / 2**30
    batch, fewest = config.train.global_batch, min(config.machine.min_workers, fleet.workers)
    rows = batch // job.passes
    needed = pass_gib(cost, ceil(rows / fewest))
    if needed <= room:
        return None
    sizes = [size for size in range(SLICE_ROWS * fleet.workers, batch, SLICE_ROWS) if batch % size == 0]
    fitting = [size for size in sizes if pass_gib(cost, ceil(size / fewest)) <= room]
    enough = next((n for n in range(fewest + 1, fleet.workers + 1) if pass_gib(cost, ceil(rows / n)) <= room), None)
    remedies = [f"--train.pass-size {fitting[-1]}"] * bool(fitting) + [f"--machine.min-workers {enough}"] * bool(enough)
    return (
        f"a pass takes about {needed:,.0f} GiB on each GPU, with the fewest workers that the run goes on with "
        f"({fewest}); it has {room:,.0f} to spare: {', or '.join(remedies) or 'more workers or larger GPUs'}"
    )
