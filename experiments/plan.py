"""Says what a run will take and cost on which machines, and what will hold it up; nothing is started.

    python experiments/plan.py RECIPE [overrides] --instance TYPE --workers N [--cpu-instance TYPE --cpu-workers M]
    python experiments/plan.py RECIPE [overrides] --workers 1 --measure [--against RUN]    # on this machine

The last table names every figure that the answer rests on, and whether it was measured or assumed. `--measure` replaces
the two that matter most by what this machine does; `--against` sets the plan beside a run that has ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import time

from recipes import RECIPES
from simclr_ray.command import choose_recipe, parse_with_config, run_command
from simclr_ray.config import BadInput, Config, MachineConfig
from simclr_ray.orchestrate.cluster import data_cpus, share_of, training_threads
from simclr_ray.report.plan import plan
from simclr_ray.report.plan_cost import model_cost
from simclr_ray.report.plan_figures import Figures, default_figures
from simclr_ray.report.plan_instances import LOCAL, instance
from simclr_ray.report.plan_job import Fleet, Job, job_of, memory_warning, nodes_for, pictures_of
from simclr_ray.report.plan_measure import measure, this_machine
from simclr_ray.report.plan_table import against, comparison, table
from simclr_ray.train.memory import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Machines, and what is known better than the planner does."""

    instance: str = "local"
    """Type of the nodes that train; local: this machine."""
    workers: int = 1
    """Training workers: one GPU each, unless --machine.gpus-per-worker says otherwise."""
    cpu_instance: str | None = None
    """Type of the nodes that only augment."""
    cpu_workers: int = 0
    """How many of those nodes."""
    spot_price: float | None = None
    """USD an hour of a training node."""
    cpu_spot_price: float | None = None
    """USD an hour of an augmenting node."""
    interruptions_per_hour: float | None = None
    """Of each training node."""
    images: int | None = None
    """Pictures in the data; None: asked of the data, if they are prepared."""
    picture_kb: float | None = None
    """Size of an encoded picture."""
    gpu_images_per_s: float | None = None
    """Of one worker's training step, on whatever device."""
    core_images_per_s: float | None = None
    """Of one core that decodes and renders both views."""
    measure: bool = False
    """Measure those two here, for about 10 s each; on drawn pictures, unless --data.train is a prepared dataset."""
    against: str | None = None
    """A run folder to compare the plan with."""


def main(argv: list[str]) -> None:
    recipe, rest = choose_recipe(argv, RECIPES)
    arguments, config = parse_with_config(Arguments, rest, RECIPES[recipe](), __doc__)

    fleet = fleet_of(arguments, config.machine)
    cost = model_cost(config.model, config.augment.size)
    pictures = pictures_of(config, arguments.images, arguments.picture_kb)
    threads = training_threads(
        config.machine, fleet.workers, fleet.vcpus, node_cpus=fleet.machine.vcpus, on_gpu=fleet.machine.gpus > 0
    )
    job = job_of(config, cost, pictures, arguments.workers, threads=threads)
    figures = default_figures(job, cost, fleet)
    if arguments.measure:
        figures = measured(config, job, figures)
    figures = figures.given(
        step_images_per_s=arguments.gpu_images_per_s,
        core_images_per_s=arguments.core_images_per_s,
        usd_per_hour=arguments.spot_price,
        cpu_node_usd_per_hour=arguments.cpu_spot_price,
        interruptions_per_node_hour=arguments.interruptions_per_hour,
    )
    found = plan(job, fleet, figures)
    print(table(found, job, fleet, figures))
    if warning := memory_warning(config, cost, job, fleet):
        print(f"\nwarning: {warning}")
    if arguments.against:
        print(f"\n{comparison(against(found, config, arguments.against, time()))}")


def fleet_of(arguments: Arguments, settings: MachineConfig) -> Fleet:
    """The machines, shared out as a run on them would do it."""
    machine = this_machine() if arguments.instance == LOCAL else instance(arguments.instance)
    if arguments.cpu_workers and not arguments.cpu_instance:
        raise BadInput("--cpu-workers without --cpu-instance: name the type of the nodes that only augment")
    workers, nodes = arguments.workers, nodes_for(arguments.workers, machine, settings)
    fleet = Fleet(
        workers=workers,
        nodes=nodes,
        machine=machine,
        cpu_nodes=arguments.cpu_workers,
        cpu_machine=instance(arguments.cpu_instance) if arguments.cpu_instance else None,
        cpus_per_worker=settings.cpus_per_worker,
        data_cpus=0.0,
        elastic=nodes > 1 and settings.min_workers <= workers * (nodes - 1) // nodes,
    )
    share_of(replace(settings, min_workers=workers, max_workers=workers), fleet.vcpus, nodes * machine.gpus)
    return replace(fleet, data_cpus=data_cpus(settings, workers, fleet.vcpus, on_gpu=machine.gpus > 0))


def measured(config: Config, job: Job, figures: Figures) -> Figures:
    if not this_machine().gpus:
        keep_freed_memory()  # as a training worker does
    found = measure(config, job)
    figures = figures.replaced(f"measured here, {found.device}", step_images_per_s=found.step_images_per_s)
    return figures.replaced(f"measured here, on {found.pictures}", core_images_per_s=found.core_images_per_s)


if __name__ == "__main__":
    run_command(main)
