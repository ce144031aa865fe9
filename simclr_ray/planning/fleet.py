"""The machines of a plan, shared out as a run on them would do it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from simclr_ray.config import BadInput, ResourcesConfig
from simclr_ray.planning.machines import LOCAL, Instance, instance
from simclr_ray.planning.shares import data_cpus, share_of, times_it_fits


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


def nodes_for(workers: int, machine: Instance, resources: ResourcesConfig) -> int:
    """The fewest nodes that hold so many workers. Raises BadInput if a node holds none, or there is only this one."""
    if machine.gpus and resources.gpus_per_worker != 0:
        fit = min(
            times_it_fits(machine.gpus, resources.gpus_per_worker or 1),
            times_it_fits(machine.vcpus, resources.cpus_per_worker),
        )
    else:
        fit = times_it_fits(machine.vcpus, resources.cpus_per_worker + (resources.data_cpus or 0.1))
    if fit < 1 or (machine.name == LOCAL and fit < workers):
        raise BadInput(
            f"{machine.name}, with {machine.vcpus} CPUs and {machine.gpus} GPUs, holds {fit} of {workers:,} workers: "
            "take another --instance, fewer --workers, or a lower resources.cpus_per_worker or resources.data_cpus"
        )
    return ceil(workers / fit)


def fleet_of(
    resources: ResourcesConfig, workers: int, machine: Instance, cpu_instance: str | None = None, cpu_nodes: int = 0
) -> Fleet:
    """The fewest nodes of type `machine` that hold `workers`, and `cpu_nodes` that only augment. Raises BadInput."""
    if cpu_nodes and not cpu_instance:
        raise BadInput("--cpu-workers without --cpu-instance: name the type of the nodes that only augment")
    nodes = nodes_for(workers, machine, resources)
    fleet = Fleet(
        workers=workers,
        nodes=nodes,
        machine=machine,
        cpu_nodes=cpu_nodes,
        cpu_machine=instance(cpu_instance) if cpu_instance else None,
        cpus_per_worker=resources.cpus_per_worker,
        data_cpus=0.0,
        elastic=nodes > 1 and resources.min_workers <= workers * (nodes - 1) // nodes,
    )
    share_of(replace(resources, min_workers=workers, max_workers=workers), fleet.vcpus, nodes * machine.gpus)
    return replace(fleet, data_cpus=data_cpus(resources, workers, fleet.vcpus, on_gpu=machine.gpus > 0))
