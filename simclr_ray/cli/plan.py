"""Estimates the time, cost and bottleneck of a run on given machines; starts nothing.

    python experiments/plan.py RECIPE [overrides] --instance TYPE --workers N [--cpu-instance TYPE --cpu-workers M]
    python experiments/plan.py RECIPE [overrides] --workers 1 --measure [--against RUN]    # on this machine

The last table lists every figure of the estimate and its source, measured or assumed. `--measure` measures the two that
matter most on this machine; `--against` compares the plan with a run that has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import time

from simclr_ray.cli.command import choose_recipe, given_keys, parse_with_config
from simclr_ray.planning.cost import model_cost
from simclr_ray.planning.estimate import plan
from simclr_ray.planning.figures import default_figures
from simclr_ray.planning.fleet import fleet_of
from simclr_ray.planning.job import images_of, job_of, memory_warning, share_warning
from simclr_ray.planning.machines import LOCAL, instance
from simclr_ray.planning.measure import this_machine, with_measured
from simclr_ray.planning.shares import training_threads
from simclr_ray.recipes import RECIPES
from simclr_ray.report.plan import against, comparison, table


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Machines, and figures that replace the planner's."""

    instance: str = "local"
    """Type of the nodes that train; local: this machine."""
    workers: int = 1
    """Training workers, with one GPU each unless --resources.gpus-per-worker is set."""
    cpu_instance: str | None = None
    """Type of the nodes that only augment."""
    cpu_workers: int = 0
    """How many of those nodes."""
    spot_price: float | None = None
    """USD an hour of a training node."""
    cpu_spot_price: float | None = None
    """USD an hour of an augmenting node."""
    interruptions_per_hour: float | None = None
    """Interruptions an hour of each training node."""
    images: int | None = None
    """Images in the data; None: read from the dataset, if it is prepared."""
    image_kb: float | None = None
    """Size of an encoded image."""
    gpu_images_per_s: float | None = None
    """Images per second of one worker's training step, on its device."""
    core_images_per_s: float | None = None
    """Images per second of one core that decodes and renders both views."""
    measure: bool = False
    """Measure those two here, for about 10 s each; on synthetic images, unless --data.train is a prepared dataset."""
    against: str | None = None
    """A run folder to compare the plan with."""


def main(argv: list[str]) -> None:
    recipe, rest = choose_recipe(argv, RECIPES)
    arguments, config = parse_with_config(Arguments, rest, recipe.config, __doc__)

    machine = this_machine() if arguments.instance == LOCAL else instance(arguments.instance)
    fleet = fleet_of(config.resources, arguments.workers, machine, arguments.cpu_instance, arguments.cpu_workers)
    augment = config.augment
    local = {"local_views": augment.local_views, "local_size": augment.local_size}
    cost = model_cost(config.model, augment.size, config.method, **local)
    images = images_of(config, arguments.images, arguments.image_kb)
    threads = training_threads(
        config.resources, fleet.workers, fleet.vcpus, node_cpus=fleet.machine.vcpus, on_gpu=fleet.machine.gpus > 0
    )
    job = job_of(config, cost, images, arguments.workers, threads=threads)
    figures = default_figures(job, cost, fleet)
    if arguments.measure:
        figures = with_measured(figures, config, job)
    figures = figures.given(
        step_images_per_s=arguments.gpu_images_per_s,
        core_images_per_s=arguments.core_images_per_s,
        usd_per_hour=arguments.spot_price,
        cpu_node_usd_per_hour=arguments.cpu_spot_price,
        interruptions_per_node_hour=arguments.interruptions_per_hour,
    )
    found = plan(job, fleet, figures)
    print(table(found, job, fleet, figures))
    for warning in (memory_warning(config, cost, job, fleet), share_warning(config, job, fleet)):
        if warning:
            print(f"\nwarning: {warning}")
    if arguments.against:
        print(f"\n{comparison(against(found, config, arguments.against, time(), given_keys(rest)))}")
