"""Fifty faults in one elastic run under Ray: no sample is lost or repeated, and the result is that of one worker."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Timer
from time import sleep, time
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from benchmark import load_benchmark
from commands import events, finish, sizes, start, wait_until
from same import assert_same_as_one_worker
from simclr_ray.orchestrate.preemption.drain import drain_here
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows

processes = load_benchmark("training_processes")

WORKERS = 3
NODE_CPUS = 2  # one worker and its data workers
NOTICE_S = 5.0
FROZEN_S = 15.0
"""Longer than others wait for one that says nothing."""
KINDS = {
    "worker": 12,
    "rank 0": 8,
    "two at once": 7,
    "another while re-forming": 7,
    "rank 0 three times in a row": 2,
    "node": 5,
    "notice": 4,
    "frozen": 2,
    "all": 3,
}
# A calm rate: training itself amplifies float64's rounding.
SETTINGS = {
    "train.precision": "float64",
    "train.epochs": 10_000,
    "optim.lr-per-256": 0.1,
    "evaluate.every-epochs": 4,
    "resources.min-workers": 1,
    "resources.max-workers": WORKERS,
    "resources.cpus-per-worker": 1.5,
    "saving.every-steps": 100_000,
    "saving.every-s": 5,
    "logging.ledger": True,
}


class Disturbed:
    """A run on a cluster of a head, which never trains, and a node for each worker."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._rng = cluster, random.Random(5)
        self._last = 0.0
        self._nodes = [cluster.add_node(num_cpus=NODE_CPUS) for _ in range(WORKERS)]
        self.run = folder / "elastic"
        self.process = start(folder, "elastic", 1, ray_address=cluster.address, fast=False, **SETTINGS)

    def disturb(self) -> None:
        kinds = [kind for kind, times in KINDS.items() for _ in range(times)]
        self._rng.shuffle(kinds)
        faults: dict[str, Callable[[], None]] = {
            "worker": lambda: self._kill(self._workers()[1:2]),
            "rank 0": lambda: self._kill(self._workers()[:1]),
            "two at once": lambda: self._kill(self._rng.sample(self._workers(), 2)),
            "another while re-forming": self._while_reforming,
            "rank 0 three times in a row": self._rank_0_three_times,
            "node": self._lose_node,
            "notice": self._notice,
            "frozen": self._freeze,
            "all": lambda: self._kill(self._workers()),
        }
        for number, kind in enumerate(kinds):
            self.wait_for(2)
            sleep(self._rng.uniform(0.0, 2.0))
            self._last = time()
            print(f"{number}: {kind}, step {self._rows()[-1]['step']}, workers {sizes(self.run)[-1]}", flush=True)
            faults[kind]()
            self._last = time()  # some take seconds

    def wait_for(self, workers: int) -> None:
        """Until at least so many train, and they have done a step since the last call."""

        def happened() -> bool:
            rows, changes = self._rows(), events(self.run, "start", "restore", "regroup")
            if not rows or rows[-1]["time"] < max(self._last, changes[-1]["time"]):
                return False
            return sizes(self.run)[-1] >= workers and len(self._workers()) >= workers

        wait_until(happened, self.process, f"{workers} workers train")
        self._last = time()

    def _rows(self) -> list[dict[str, Any]]:
        return read_rows(open_location(str(self.run)) / "metrics.jsonl")

    def _workers(self) -> list[psutil.Process]:
        """Processes that train, that of rank 0 first."""
        rank_0 = processes.rank_0_of(open_location(str(self.run)))
        return sorted(processes.training_processes(), key=lambda process: process.pid != rank_0)

    def _kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with suppress(psutil.Error):
                process.kill()

    def _while_reforming(self) -> None:
        self._kill(self._workers()[1:2])
        sleep(self._rng.uniform(0.0, 0.5))
        self._kill(self._workers()[:1])

    def _rank_0_three_times(self) -> None:
        for _ in range(3):
            self.wait_for(2)
            self._kill(self._workers()[:1])

    def _lose_node(self) -> None:
        self._replace(self._rng.choice(self._nodes))

    def _notice(self) -> None:
        node = self._rng.choice(self._nodes)
        drain_here(self._cluster.address, node.node_id, "spot", time() + NOTICE_S)
        sleep(NOTICE_S)
        self._replace(node)

    def _replace(self, node: Any) -> None:
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=NODE_CPUS))

    def _freeze(self) -> None:
        process = self._rng.choice(self._workers())
        process.suspend()
        wake = Timer(FROZEN_S, lambda: process.is_running() and process.resume())
        wake.start()
        wake.join()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_fifty_faults_under_ray_omit_and_repeat_no_sample(cluster: Cluster, tmp_path: Path) -> None:
    disturbed = Disturbed(cluster, tmp_path)
    assert sum(KINDS.values()) == 50
    disturbed.disturb()
    disturbed.wait_for(1)
    disturbed.process.send_signal(signal.SIGINT)
    code, _, err = finish(disturbed.process)
    assert code == 130, err
    print(Counter(event["event"] for event in events(disturbed.run)))
    last = events(disturbed.run, "stop")[-1]["step"]
    assert_same_as_one_worker(open_location(str(disturbed.run)), tmp_path / "alone", steps=last)
