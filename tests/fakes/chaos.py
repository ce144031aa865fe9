"""Scripted faults on real worker processes: a gloo group for each attempt, and a supervisor that starts the next.

The script lists which fault happens at which step; afterwards weights, ledger and metrics are compared with those of an
undisturbed run.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist

from gloo import join
from simclr_ray import collective
from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.order import Positions, order_of
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import read_rows
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.checkpoint import newest_valid, steps_in
from simclr_ray.train.control import ClusterSignals, Interrupted
from simclr_ray.train.worker import LocalWorker
from small_runs import local_blocks
from worker_processes import worker_context

ATTEMPT_TIMEOUT_S = 300.0
INTERRUPTED = 3


@dataclass(frozen=True)
class WorkerFault:
    """What happens when the run reaches `step`, and how many workers the next attempt has."""

    step: int
    kind: Literal["kill", "cut save", "grow", "notice", "flip"]
    workers: int
    ranks: tuple[int, ...] = (0,)
    """Ranks that are killed, all in the same step."""
    bytes: int = 0
    """Cut save: rank 0 dies when a save has written so many bytes. Flip: which byte of the newest checkpoint."""


@dataclass(frozen=True)
class _ScriptedWorker(LocalWorker):
    """A worker whose cluster signals follow the fault once its step has come."""

    fault: WorkerFault | None
    run: Location

    def poll_signals(self) -> ClusterSignals:
        if self.fault is None or not self._step_has_come():
            return ClusterSignals()
        if self.fault.kind == "grow":
            # Another number for each fault: one that was refused would be ignored.
            return ClusterSignals(available_workers=self.size + self.fault.step)
        if self.fault.kind == "notice":
            return ClusterSignals(deadline=0.0, nodes=("this",))
        return ClusterSignals()

    def _step_has_come(self) -> bool:
        assert self.fault is not None
        ledger = read_rows(self.run / "ledger.jsonl")
        return bool(ledger) and ledger[-1]["step"] >= self.fault.step


def run_with_faults(config: Config, dataset: Dataset, folder: Path, workers: int, faults: Sequence[WorkerFault]) -> int:
    """Runs to the end with all the faults, in the order of their steps; returns the number of attempts."""
    pending, attempts = list(faults), 0
    while True:
        fault = pending.pop(0) if pending else None
        attempts += 1
        codes = _attempt(config, dataset, folder, workers, fault)
        if fault is None:
            assert codes == [0] * workers, codes
            return attempts
        assert any(codes), f"{fault} did not happen"
        if fault.kind == "flip":
            _flip(open_location(str(folder)), fault.bytes)
        workers = fault.workers


def _attempt(config: Config, dataset: Dataset, folder: Path, workers: int, fault: WorkerFault | None) -> list[int]:
    """Exit codes by rank. Once one process has ended the others are killed, as Ray does."""
    context, store = worker_context(), dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        context.Process(target=_main, args=(rank, workers, store.port, config, dataset, folder, fault))
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    multiprocessing.connection.wait([process.sentinel for process in processes], timeout=ATTEMPT_TIMEOUT_S)
    for process in processes:
        process.join(2.0)  # planned ends are simultaneous
    ended = [process.exitcode for process in processes]
    if not any(ended):
        for process in processes:
            process.join(ATTEMPT_TIMEOUT_S)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode or 0 for process in processes]


def _main(
    rank: int, size: int, port: int, config: Config, dataset: Dataset, folder: Path, fault: WorkerFault | None
) -> None:
    torch.set_num_threads(1)
    run = open_location(str(folder))
    join(port, rank, size)
    if fault and fault.kind == "cut save" and rank == 0:
        _die_while_saving(fault)

    def blocks(positions: Positions) -> Iterator[dict[str, np.ndarray]]:
        order = order_of(config, dataset)
        slices = len(order.worker_positions(0, 1, rank, size))
        step = config.train.epochs * order.steps_per_epoch - len(positions) // slices
        for served, block in enumerate(local_blocks(config, dataset, positions, slices)):
            if fault and fault.kind in ("kill", "flip") and rank in fault.ranks and step + served >= fault.step:
                os.kill(os.getpid(), signal.SIGKILL)
            yield block

    try:
        run_attempt(config, dataset, run, _ScriptedWorker(torch.device("cpu"), fault, run), blocks)
    except Interrupted:
        os._exit(INTERRUPTED)
    collective.wait_for_all()


def _die_while_saving(fault: WorkerFault) -> None:
    """From the fault's step on, the process dies when a save has written `fault.bytes`, wherever that is."""
    whole, left = Location.write_bytes, fault.bytes

    def cut(self: Location, content: bytes) -> None:
        nonlocal left
        folder = Path(self.path).parent.name
        if folder.startswith("step-") and int(folder.removeprefix("step-")) >= fault.step:
            if len(content) > left:
                # Past the atomic rename, as an object store's or a dying disk's might show it.
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
                Path(self.path).write_bytes(content[:left])
                os.kill(os.getpid(), signal.SIGKILL)
            left -= len(content)
        whole(self, content)

    Location.write_bytes = cut  # type: ignore[method-assign]


def _flip(run: Location, offset: int) -> None:
    folder = Path(run.path) / f"step-{steps_in(run)[-1]:08d}"
    files = sorted(folder.iterdir())
    file = files[offset % len(files)]
    content = bytearray(file.read_bytes())
    content[-1 - offset % len(content)] ^= 0x10
    file.write_bytes(content)


def random_faults(seed: int, count: int, steps: int, workers: Sequence[int]) -> list[WorkerFault]:
    """`count` faults of all kinds, at rising steps, with changing numbers of workers."""
    rng = random.Random(seed)
    at = sorted(rng.sample(range(2, steps - 1), count))
    faults, now = [], workers[0]
    for step in at:
        kind = rng.choice(["kill", "kill", "cut save", "grow", "notice", "flip"])
        then = rng.choice(list(workers))
        faults.append(
            WorkerFault(
                step, kind, then, ranks=tuple(rng.sample(range(now), rng.randint(1, now))), bytes=rng.randrange(200_000)
            )
        )  # type: ignore[arg-type]
        now = then
    return faults


def final(folder: Path) -> dict[str, Any]:
    """A run's last checkpoint, its ledger, and its metrics without those that depend on the machine."""
    run = open_location(str(folder))
    saved, _ = newest_valid(run)
    assert saved is not None
    machine_facts = ("images_per_s", "data_wait_fraction", "time", "workers")
    metrics = [{k: v for k, v in row.items() if k not in machine_facts} for row in read_rows(run / "metrics.jsonl")]
    return {
        "tensors": {**saved.model, **saved.optimizer},
        "step": saved.step,
        "ledger": read_rows(run / "ledger.jsonl"),
        "metrics": metrics,
    }


def assert_bitwise(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["step"] == expected["step"]
    assert got["ledger"] == expected["ledger"]
    assert got["metrics"] == expected["metrics"]
    for name, value in expected["tensors"].items():
        assert torch.equal(got["tensors"][name], value), name


def assert_same_mathematics(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Another number of workers: the ledger is the same, losses, checks and weights but for float64's rounding."""
    assert got["ledger"] == expected["ledger"]
    assert [row["step"] for row in got["metrics"]] == [row["step"] for row in expected["metrics"]]
    for row, other in zip(got["metrics"], expected["metrics"], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-8)
        assert row.get("rankme", 0.0) == pytest.approx(other.get("rankme", 0.0), rel=1e-8)
    for name, value in expected["tensors"].items():
        torch.testing.assert_close(got["tensors"][name], value, rtol=1e-6, atol=1e-6, msg=name)
