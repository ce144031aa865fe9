"""Where the time of a troubled run goes: a real local cluster, a run on it, and a fault every few minutes.

python experiments/benchmark/goodput.py [--minutes 15] [--fault-every-s 180]

The faults in turn: a node added, a node drained with 30 s notice and taken away, a node added, a node killed, the
driver killed. Waits that are made for clouds are shortened (FAST); the table says where every second went.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import sleep, time

from ray.cluster_utils import Cluster

from simclr_ray.command import parse, run_command
from simclr_ray.orchestrate.notice import drain_here
from simclr_ray.report.goodput import account, table
from simclr_ray.report.run import read_run

FAST = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2",
}
NODE_CPUS = 2
NOTICE_S = 30.0
SETTINGS = """quickstart --name troubled --train.epochs 10000 --evaluate.every-epochs 0 --model.width 0.125
--machine.max-workers 2 --machine.cpus-per-worker 1.5 --machine.data-cpus 0.5 --machine.threads 1
--machine.resize-every-s 20 --machine.save-every-s 15"""
COMMAND = [sys.executable, str(Path(__file__).parent.parent / "pretrain.py"), *SETTINGS.split()]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    minutes: float = 15.0
    fault_every_s: float = 180.0


class Trouble:
    """The cluster, the driver of the run on it, and what can be done to both."""

    def __init__(self, storage: str) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": NODE_CPUS})
        self._storage, self._second = storage, None
        self._driver = self._submit()

    def _submit(self) -> subprocess.Popen[bytes]:
        environment = os.environ | FAST | {"RAY_ADDRESS": self._cluster.address}
        return subprocess.Popen([*COMMAND, "--storage", self._storage], env=environment, stderr=subprocess.DEVNULL)

    def add_node(self) -> None:
        self._second = self._cluster.add_node(num_cpus=NODE_CPUS)

    def drain_node(self) -> None:
        drain_here(self._cluster.address, self._second.node_id, "spot", time() + NOTICE_S)
        sleep(NOTICE_S)
        self.kill_node()

    def kill_node(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)

    def kill_driver(self) -> None:
        self._driver.kill()
        self._driver.wait()
        self._driver = self._submit()

    def end(self) -> None:
        self._driver.kill()
        self._cluster.shutdown()

    def faults(self) -> Iterator[Callable[[], None]]:
        return cycle([self.add_node, self.drain_node, self.add_node, self.kill_node, self.kill_driver])


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv)
    with tempfile.TemporaryDirectory() as storage:
        trouble, began = Trouble(storage), time()
        for fault in trouble.faults():
            left = began + 60 * arguments.minutes - time()
            sleep(max(0.0, min(arguments.fault_every_s, left)))
            if left <= arguments.fault_every_s:
                break
            print(f"{time() - began:5.0f} s  {fault.__name__}", flush=True)
            fault()
        records = read_run(f"{storage}/troubled", time())
        trouble.end()
        print(table(account(records.events, records.rows)))


if __name__ == "__main__":
    run_command(main)
