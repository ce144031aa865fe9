"""What Ray Train runs on every worker: one attempt at the run."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from dataclasses import dataclass

import ray
import ray.train.torch
import torch
import torch.distributed as dist
from ray.experimental import internal_kv

from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.storage import Location
from simclr_ray.evaluate.during import check_during
from simclr_ray.export import export_encoder
from simclr_ray.orchestrate.claim import note_claim
from simclr_ray.orchestrate.cluster import Share, data_cpus, training_threads
from simclr_ray.orchestrate.failure import last_failure
from simclr_ray.orchestrate.lease import holds, require_held
from simclr_ray.orchestrate.stream import blocks, plan_stream
from simclr_ray.orchestrate.worker import RayWorker
from simclr_ray.train.attempt import order_of, run_attempt
from simclr_ray.train.control import Ended
from simclr_ray.train.memory import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a worker is told: values and addresses."""

    config: Config
    dataset: Dataset
    bank: Dataset | None
    test: Dataset | None
    """Of the check during training: no bank, no check; no test set: rows held out of the bank's."""
    run: Location
    driver: str
    share: Share
    alone: bool = False
    """Whether this process is the only worker, without Ray Train."""

    @property
    def progress_key(self) -> str:
        return f"simclr_ray/progress/{self.driver}"

    @property
    def end_key(self) -> str:
        return end_key(self.run)


def end_key(run: Location) -> str:
    return f"simclr_ray/end/{run.uri}"


def ask_to_end(run: Location) -> None:
    """Has a run that trains on this cluster save and end, within seconds; the same command goes on."""
    internal_kv._internal_kv_put(end_key(run), "", overwrite=True)


def train_fn(settings: dict[str, Task]) -> None:
    """Ray Train calls this on every worker, at every attempt."""
    task = settings["task"]
    config, worker = task.config, RayWorker(_device(task), task.progress_key, task.end_key, task.share)
    require_held(task.run, task.driver)
    if worker.rank == 0 and not task.alone:
        note_claim(task.run)
    _require_precision(config.train.precision, worker.device)
    on_gpu, total_cpus = worker.device.type == "cuda", task.share.part * ray.cluster_resources()["CPU"]
    node_cpus = len(os.sched_getaffinity(0))
    threads = training_threads(config.machine, worker.size, total_cpus, node_cpus=node_cpus, on_gpu=on_gpu)
    torch.set_num_threads(threads)
    if not on_gpu:
        keep_freed_memory()
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    cpus = data_cpus(config.machine, worker.size, total_cpus, on_gpu=on_gpu)
    order = order_of(config, task.dataset)
    plan = plan_stream(config, task.dataset, order, worker.size, cpus)
    evaluate = None
    if task.bank:
        evaluate = check_during(config, task.bank, task.test, worker.device, threads)
    try:
        with suppress(Ended), worker.listening():
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
            if worker.rank == 0 and state.step == config.train.epochs * order.steps_per_epoch:
                export_encoder(state.model.encoder, config, task.run)
    finally:
        # A group left behind would keep its ports and threads into the next attempt.
        if dist.is_initialized():
            dist.destroy_process_group()


def _device(task: Task) -> torch.device:
    if task.alone:
        return torch.device("cuda" if task.share.gpus else "cpu")
    return ray.train.torch.get_device()


def _require_precision(precision: str, device: torch.device) -> None:
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise BadInput(
            f"{torch.cuda.get_device_name(device)} has no bf16: set train.precision float32, under another --name"
        )
