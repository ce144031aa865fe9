"""How a cluster is shared out: what each training worker takes, and what its data workers get."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from simclr_ray.config import BadInput, ResourcesConfig

MIN_DATA_CPUS = 0.1
"""Less than this of a CPU for a worker's data is starvation, not sharing."""

EXECUTOR_CPUS = 1
"""Left for Ray Data's executor and for the thread that makes the batches, beside a GPU that has data CPUs enough."""
ENOUGH_DATA_CPUS = 4

LESS_THAN_A_CORE = 0.05
"""So much may lack in a core for a thread: a sweep's trial counts a hundredth of a CPU for itself, which is idle."""

TRAINING_PER_DATA_CPU = 8
"""On a CPU an image takes 30 to 100 times as long to train on as to load: one data CPU for so many that train."""


class TooSmall(BadInput):
    """The cluster has too little for the run, as yet: more machines would do."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What each training worker takes of the cluster."""

    min_workers: int
    max_workers: int
    cpus: float
    gpus: float
    part: float = 1.0
    """Of the cluster's CPUs and GPUs, what the run may count as its own."""


def share_of(resources: ResourcesConfig, total_cpus: float, total_gpus: float) -> Share:
    """Resolves what the config leaves open. Raises BadInput, and TooSmall where workers or their data lack room."""
    gpus = resources.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if total_gpus else 0.0
    most = resources.max_workers or max(resources.min_workers, times_it_fits(total_gpus, gpus) if gpus >= 1 else 1)
    if 0 < gpus < 1 and most > 1:
        raise BadInput(f"resources.gpus_per_worker {gpus:g}: NCCL wants a GPU for each worker of a run; set it to 1")
    share = Share(min_workers=resources.min_workers, max_workers=most, cpus=resources.cpus_per_worker, gpus=gpus)
    workers = workers_that_fit(share, [{"CPU": total_cpus, "GPU": total_gpus}])
    if workers < share.min_workers:
        raise TooSmall(
            f"resources.min_workers {share.min_workers} need {share.min_workers * share.cpus:g} CPUs and "
            f"{share.min_workers * gpus:g} GPUs, the cluster has {total_cpus:g} and {total_gpus:g}: "
            "lower resources.min_workers, resources.cpus_per_worker or resources.gpus_per_worker"
        )
    left, wanted = (total_cpus - workers * share.cpus) / workers, resources.data_cpus or MIN_DATA_CPUS
    if left < wanted:
        raise TooSmall(
            f"{workers} workers of {share.cpus:g} CPUs leave {left:g} of {total_cpus:g} CPUs for each one's data, "
            f"{wanted:g} are needed: lower resources.max_workers or resources.cpus_per_worker"
            + (", or resources.data_cpus" if resources.data_cpus else "")
        )
    return share


def workers_that_fit(share: Share, nodes: Iterable[dict[str, float]]) -> int:
    """Workers that nodes with these resources hold, counted as Ray's elastic policy does: node by node."""
    total = 0.0
    for node in nodes:
        by_gpu = times_it_fits(node.get("GPU", 0.0), share.gpus) if share.gpus else math.inf
        total += min(times_it_fits(node.get("CPU", 0.0), share.cpus), by_gpu)
    return int(min(total, share.max_workers))


def times_it_fits(whole: float, part: float) -> int:
    """How often `part` fits: 0.1 fits into 1.0 ten times, whatever floats make of it."""
    return int(whole / part + 1e-6)


def data_cpus(resources: ResourcesConfig, workers: int, total_cpus: float, *, on_gpu: bool) -> float:
    """CPUs that decode and augment for each of `workers`; 0 where training has taken all.

    On a GPU whatever is left but for the executor's, on a CPU what its training can use up. `share_of` refuses to start
    with none; a group that Ray has made larger since shares its CPUs rather than hang.
    """
    left = (total_cpus - workers * resources.cpus_per_worker) / workers
    if on_gpu:
        wanted = left - EXECUTOR_CPUS if left > ENOUGH_DATA_CPUS else left
    else:
        wanted = max(1.0, total_cpus / workers / TRAINING_PER_DATA_CPU)
    share = min(left, resources.data_cpus or wanted)
    return math.floor(share) if share >= 1 else max(0.0, math.floor(share * 100) / 100)


def training_threads(
    resources: ResourcesConfig, workers: int, total_cpus: float, *, node_cpus: int, on_gpu: bool
) -> int:
    """Torch's threads in a training worker: on a CPU its whole part of the cluster, up to what its node has.

    Data workers run between its threads: they need a few percent of the time, and a core of their own would idle.
    """
    if resources.threads:
        return resources.threads
    if on_gpu:
        return max(1, int(resources.cpus_per_worker))
    return max(1, min(node_cpus, int(total_cpus / workers + LESS_THAN_A_CORE)))
