"""A worker's own Ray Data stream: from positions to blocks of augmented views, for the rest of the run.

Actors, not tasks: a worker process idles between two map tasks, while actors keep work in flight (84 % of the rate
without Ray against 48 %, measured on 2 cores). One array of positions feeds the stream for hours, so there is no gap
between epochs, and a restart needs only the position.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from simclr_ray.config import AugmentConfig, BadInput, Config
from simclr_ray.data.bridge import bridged
from simclr_ray.data.cache import open_cache
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.load import SliceLoader
from simclr_ray.data.order import Order, Positions

BLOCK_BYTES = 32 << 20
HORIZON = 1 << 20
"""Positions of one Ray Data stream: 8 MiB in the object store and 33 million samples, hours on any device. Then the
next stream begins, after seconds. Without it 51 MiB of positions stalled nodes with a small store."""
STORE_BYTES = 2 << 30
"""Bytes of views that a worker's stream may hold in the object store."""
MOST_PREFETCHED = STORE_BYTES // BLOCK_BYTES // 2
"""Blocks; the other half is for those being made."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What the data workers of one training worker load, and with how many CPUs."""

    dataset: Dataset
    order: Order
    augment: AugmentConfig
    cache_gib: float
    cache_dir: str | None
    block_slices: int
    step_blocks: int
    """So many hold this worker's part of a step."""
    prefetched_blocks: int
    """Ready for the training worker: as many as hold its part of a step, within MOST_PREFETCHED."""
    cpus: float
    """CPUs of all data workers of this training worker."""
    labels: bool
    """Whether training needs them."""


class _Load:
    """A data worker: the Ray Data actor that loads blocks."""

    def __init__(self, plan: StreamPlan) -> None:
        self._plan = plan
        self._loader: SliceLoader | None = None

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            # Not in the constructor: an actor that fails to start looks like a lost node, and is retried for ever.
            self._loader = self._loader or _loader(self._plan, build_cache=True)
            return self._loader(block["position"])
        except BadInput as error:
            return {"error": np.array([str(error)])}  # as data: Ray Data would turn it into a traceback


def _loader(plan: StreamPlan, *, build_cache: bool) -> SliceLoader:
    cache = open_cache(plan.dataset, plan.cache_gib, plan.cache_dir, build=build_cache)
    return SliceLoader(plan.dataset, plan.order, plan.augment, cache, labels=plan.labels)


def plan_stream(config: Config, dataset: Dataset, order: Order, workers: int, cpus: float) -> StreamPlan:
    """Blocks hold about 32 MiB of views, but at most a worker's part of a step: training waits for whole blocks."""
    augment = config.augment
    slice_bytes = 3 * (2 * augment.size**2 + augment.local_views * augment.local_size**2) * order.slice_rows
    step_slices = math.ceil(order.slices_per_pass / workers) * (order.global_batch // order.pass_size)
    block_slices = min(max(1, BLOCK_BYTES // slice_bytes), step_slices)
    step_blocks = math.ceil(step_slices / block_slices)
    return StreamPlan(
        dataset=dataset,
        order=order,
        augment=augment,
        cache_gib=config.resources.cache_gib,
        cache_dir=config.resources.cache_dir,
        block_slices=block_slices,
        step_blocks=step_blocks,
        prefetched_blocks=min(max(2, step_blocks), MOST_PREFETCHED),
        cpus=cpus,
        labels=config.reads_labels,
    )


def blocks(plan: StreamPlan, positions: Positions) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of `positions`, in their order (see SliceLoader). Raises BadInput if data cannot be read.

    The first ones are loaded in this process, so that the first step does not wait for actors.
    """
    loaders: list[SliceLoader] = []

    def load(part: np.ndarray) -> dict[str, np.ndarray]:
        if not loaders:
            loaders.append(_loader(plan, build_cache=False))
        return loaders[0](part)

    return bridged(
        positions,
        load,
        lambda rest: streamed(plan, rest),
        block_slices=plan.block_slices,
        slice_rows=plan.order.slice_rows,
        blocks_before=2 * plan.step_blocks,  # the second step's are made while the first is trained
    )


def streamed(plan: StreamPlan, positions: Positions) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of `positions`, all loaded by Ray Data."""
    for start in range(0, len(positions), HORIZON):
        yield from _stream(plan, np.asarray(positions[start : start + HORIZON]))


def _stream(plan: StreamPlan, positions: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    import ray.data  # takes seconds, which the first step must not wait for

    actors = max(1, int(plan.cpus))
    cpus_each = min(1.0, plan.cpus)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs every execution, in the user's own process
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        cpu=actors * cpus_each, object_store_memory=STORE_BYTES
    )
    # `from_blocks` puts the array from here; `from_numpy` would need a task, and so a CPU that may be taken.
    split = ray.data.from_blocks([pa.table({"position": positions})]).repartition(
        target_num_rows_per_block=plan.block_slices
    )
    # Splitting an array of numbers takes hardly any CPU time, but Ray would wait for a whole CPU, for ever if the
    # workers have taken them all; `repartition` has no public argument for it (Ray 2.60).
    split._logical_plan.dag.ray_remote_args["num_cpus"] = 0
    dataset = split.map_batches(
        _Load,
        fn_constructor_args=(plan,),
        batch_size=None,
        num_cpus=cpus_each,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=plan.prefetched_blocks):
        if "error" in block:
            raise BadInput(str(block["error"][0]))
        yield block
