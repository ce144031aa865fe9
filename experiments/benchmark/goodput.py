"""Where the time of a troubled run goes: a real local cluster, a run on it, and a fault every few minutes.

python experiments/benchmark/goodput.py [--minutes 15] [--fault-every-s 180] [--faults add drain add kill driver]

The faults in turn, again and again: a node added, the node drained with notice and taken away, the node killed, the
driver killed. Nothing but the size of the run is set: the waits are those that a user gets. The table says where every
second went. `--train-on` keeps the workers of a drained node training until it is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import sleep, time
from typing import Literal

from ray.cluster_utils import Cluster

from simclr_ray.cli.command import parse, run_command
from simclr_ray.orchestrate.preemption.drain import drain_here
from simclr_ray.report.goodput import account, table
from simclr_ray.report.run import read_run

NODE_CPUS = 2
SETTINGS = """quickstart --name troubled --train.epochs 10000 --evaluate.every-epochs 0 --model.width 0.125
--resources.max-workers 2 --resources.cpus-per-worker 1.5 --resources.data-cpus 0.5 --resources.threads 1
--saving.every-s 15"""
COMMAND = [sys.executable, str(Path(__file__).parent.parent / "pretrain.py"), *SETTINGS.split()]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    minutes: float = 15.0
    fault_every_s: float = 180.0
    faults: tuple[Literal["add", "drain", "kill", "driver"], ...] = ("add", "drain", "add", "kill", "driver")
    notice_s: float = 30.0
    """From a drain to the end of its node."""
    train_on: bool = False
    """Train on to the deadline of a notice, instead of stopping before it."""


class Trouble:
    """The cluster, the driver of the run on it, and what can be done to both."""

    def __init__(self, storage: str, notice_s: float, train_on: bool) -> None:
        self._notice_s, self._margin = notice_s, ["--elasticity.stop-margin-s", "None"] if train_on else []
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": NODE_CPUS})
        self._storage = storage
        self._driver = self._submit()

    def _submit(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"RAY_ADDRESS": self._cluster.address}
        return subprocess.Popen(
            [*COMMAND, *self._margin, "--storage", self._storage], env=environment, stderr=subprocess.DEVNULL
        )

    def add(self) -> None:
        self._second = self._cluster.add_node(num_cpus=NODE_CPUS)

    def drain(self) -> None:
        drain_here(self._cluster.address, self._second.node_id, "spot", time() + self._notice_s)
        sleep(self._notice_s)
        self.kill()

    def kill(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)

    def driver(self) -> None:
        self._driver.kill()
        self._driver.wait()
        self._driver = self._submit()

    @property
    def faults(self) -> dict[str, Callable[[], None]]:
        return {"add": self.add, "drain": self.drain, "kill": self.kill, "driver": self.driver}

    def end(self) -> None:
        self._driver.kill()
        self._cluster.shutdown()


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv)
    with tempfile.TemporaryDirectory() as storage:
        trouble, began = Trouble(storage, arguments.notice_s, arguments.train_on), time()
        for count, name in enumerate(cycle(arguments.faults), start=1):
            at = began + min(count * arguments.fault_every_s, 60 * arguments.minutes)
            sleep(max(0.0, at - time()))
            if time() >= began + 60 * arguments.minutes:
                break
            print(f"{time() - began:5.0f} s  {name}", flush=True)
            trouble.faults[name]()
        records = read_run(f"{storage}/troubled", time())
        trouble.end()
        print(table(account(records.events, records.rows)))


if __name__ == "__main__":
    run_command(main)
