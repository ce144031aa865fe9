"""One attempt at a run in a process connected to Ray: `run_attempt` with Ray Data streams and cluster signals."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from simclr_ray.config import BadInput, Config
from simclr_ray.data.order import Positions, order_of
from simclr_ray.evaluate.during import check_during
from simclr_ray.export.encoder import export_encoder, exported
from simclr_ray.membership.member import Member
from simclr_ray.methods.method import Method
from simclr_ray.orchestrate.failure import last_failure
from simclr_ray.orchestrate.stream import blocks, plan_stream
from simclr_ray.orchestrate.task import Task
from simclr_ray.orchestrate.worker import RayWorker
from simclr_ray.planning.shares import data_cpus, training_threads
from simclr_ray.storage.lease import holds, require_held
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import BEST
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.check import Evaluate
from simclr_ray.train.compiler import set_up_compiler
from simclr_ray.train.control import Ended, Interrupted
from simclr_ray.train.memory import keep_freed_memory, limit_memory
from simclr_ray.train.precision import this_gpu_has_bf16


def attempt(task: Task, device: torch.device, member: Member | None = None) -> None:
    """Trains on `device` until the run is done, an end is requested or it fails; rank 0 writes a done run's encoder.

    `member`: of a group whose workers survive each other.
    """
    config, on_gpu = task.config, device.type == "cuda"
    resources, order = config.resources, order_of(config, task.dataset)
    require_held(task.run, task.driver)
    _require_precision(config.train.precision, device)
    node_cpus = len(os.sched_getaffinity(0))
    _set_up_memory(task.share.gpus, device)

    cluster = ray.cluster_resources()

    def total_cpus() -> float:
        with suppress(RayError):  # the head is busy: as many as before
            cluster.update(ray.cluster_resources())  # nodes come and go
        return task.share.part * cluster["CPU"]

    def set_threads(workers: int) -> int:
        threads = training_threads(resources, workers, total_cpus(), node_cpus=node_cpus, on_gpu=on_gpu)
        torch.set_num_threads(threads)
        return threads

    def load(positions: Positions) -> Iterator[dict[str, np.ndarray]]:
        cpus = data_cpus(resources, worker.size, total_cpus(), on_gpu=on_gpu)
        return blocks(plan_stream(config, task.dataset, order, worker.size, cpus), positions)

    worker = RayWorker(device, task, member, set_threads)
    if resources.compiles(on_gpu=on_gpu):
        set_up_compiler(resources.cpus_per_worker + data_cpus(resources, worker.size, total_cpus(), on_gpu=on_gpu))
    workers = member.slots if member else worker.size
    # During a check the data workers idle.
    threads = set_threads(workers) + math.ceil(data_cpus(resources, workers, total_cpus(), on_gpu=on_gpu))
    check = check_during(config, task.bank, task.test, device, min(threads, node_cpus)) if task.bank else None
    best = BestEncoder(config, task.run)
    with suppress(Ended), worker.polling(), best.written():
        run_attempt(
            config,
            task.dataset,
            task.run,
            worker,
            load,
            still_ours=lambda: holds(task.run, task.driver),
            evaluate=best.before(check) if check else None,
            save_best=best.save,
            on_done=lambda model: export_encoder(model.encoder, config, task.run),
            last_failure=last_failure(task.driver),
        )


def _set_up_memory(gpus: float, device: torch.device) -> None:
    if device.type == "cpu":
        keep_freed_memory()
    limit_memory(gpus, device)
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # views are shared memory


class BestEncoder:
    """The file of evaluate.keep_best. A failing store is retried for a while; then training goes on, and the encoder is
    kept in memory: it is written before the next check, or when the attempt ends."""

    def __init__(self, config: Config, run: Location) -> None:
        self._config, self._run = config, run
        self._unwritten: bytes | None = None

    def save(self, model: Method) -> None:
        self._unwritten = exported(model.encoder, self._config)
        self._write()

    def before(self, evaluate: Evaluate) -> Evaluate:
        def evaluated(model: Method, step: int, check_control: Callable[[], None]) -> dict[str, float]:
            self._write(patience_s=0)
            return evaluate(model, step, check_control)

        return evaluated

    @contextmanager
    def written(self) -> Iterator[None]:
        """At the end, unless that is a failure: others may go on then, and know a better one."""
        try:
            yield
        except (Ended, Interrupted):
            self._write()
            raise
        self._write()

    def _write(self, patience_s: float | None = None) -> None:
        if self._unwritten is not None:
            with suppress(OSError):
                (self._run / BEST).write_bytes(self._unwritten, patience_s=patience_s)
                self._unwritten = None


def _require_precision(precision: str, device: torch.device) -> None:
    if precision == "bf16" and device.type == "cuda" and not this_gpu_has_bf16():
        raise BadInput(
            f"{torch.cuda.get_device_name(device)} has no bf16: set train.precision float32, under another --name"
        )
