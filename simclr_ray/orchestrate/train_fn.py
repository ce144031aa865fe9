"""What Ray Train runs on every worker: one attempt at the run."""

from __future__ import annotations

import ctypes
import warnings
from dataclasses import dataclass

import ray
import torch
import torch.distributed as dist

from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.storage import Location
from simclr_ray.evaluate.during import knn_check
from simclr_ray.export import export_encoder
from simclr_ray.orchestrate.cluster import Share, data_cpus
from simclr_ray.orchestrate.failure import last_failure
from simclr_ray.orchestrate.lease import holds
from simclr_ray.orchestrate.stream import blocks, plan_stream
from simclr_ray.orchestrate.worker import RayWorker
from simclr_ray.train.attempt import order_of, run_attempt


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a worker is told: values and addresses."""

    config: Config
    dataset: Dataset
    bank: Dataset | None
    test: Dataset | None
    """Of the kNN check; None without one."""
    run: Location
    driver: str
    share: Share

    @property
    def progress_key(self) -> str:
        return f"simclr_ray/progress/{self.driver}"


def train_fn(settings: dict[str, Task]) -> None:
    """Ray Train calls this on every worker, at every attempt."""
    task = settings["task"]
    config, worker = task.config, RayWorker(task.progress_key, task.share)
    if not holds(task.run, task.driver):
        raise BadInput(f"{task.run} cannot be seen from every node: give --storage a shared folder or an object store")
    _require_precision(config.train.precision, worker.device)
    threads = config.machine.threads or max(1, int(config.machine.cpus_per_worker))
    torch.set_num_threads(threads)
    if worker.device.type == "cpu":
        _keep_freed_memory()
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    cpus = data_cpus(config.machine, worker.size, ray.cluster_resources()["CPU"])
    plan = plan_stream(config, task.dataset, order_of(config, task.dataset), worker.size, cpus)
    evaluate = None
    if task.bank and task.test:
        evaluate = knn_check(config, task.bank, task.test, worker.device, threads)
    try:
        with worker.listening():
            state = run_attempt(
                config,
                task.dataset,
                task.run,
                worker,
                lambda positions: blocks(plan, positions),
                still_ours=lambda: holds(task.run, task.driver),
                evaluate=evaluate,
                last_failure=last_failure(task.driver),
            )
        if worker.rank == 0:
            export_encoder(state.model.encoder, config, task.run)
    finally:
        # A group left behind would keep its ports and threads into the next attempt.
        if dist.is_initialized():
            dist.destroy_process_group()


def _keep_freed_memory() -> None:
    """Lets glibc reuse a step's tensors: it would map and unmap each, and page faults made a CPU step 1.6x slower."""
    trim_threshold, mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)  # never


def _require_precision(precision: str, device: torch.device) -> None:
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise BadInput(f"{torch.cuda.get_device_name(device)} has no bf16: set train.precision float32")
