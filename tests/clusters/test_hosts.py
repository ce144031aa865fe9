"""A run over three hosts with addresses of their own, of which one freezes or is cut off: no connection breaks."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from commands import command_line, trains_with, wait_until
from hosts import Host, connected_hosts, why_not
from simclr_ray.config import Config
from simclr_ray.data.dataset import open_dataset
from simclr_ray.data.order import order_of
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows

PORT = 6379
NODE_CPUS = 2  # one worker and its data workers
NODE = ["--block", f"--num-cpus={NODE_CPUS}", "--object-store-memory=200000000", "--disable-usage-stats"]
SETTINGS = {
    "train.epochs": 100_000,
    "evaluate.every-epochs": 0,
    "resources.min-workers": 1,
    "resources.max-workers": 3,
    "resources.cpus-per-worker": 1.5,
    "saving.every-steps": 1000,
    "saving.every-s": 8,
    "logging.ledger": True,
}
FAULTS: dict[str, tuple[int, Callable[[Host], None], Callable[[Host], None], int]] = {
    "a host is cut off": (2, Host.unplug, Host.plug_in, 2),
    "a host freezes": (1, Host.freeze, Host.thaw, 2),
    "the head is cut off": (0, Host.unplug, Host.plug_in, 1),  # to the others it is they who are cut off
}
"""Whom it meets, how it begins and ends, and how many workers go on."""
FAULT_S = 20.0
LIMIT_S = 150.0


class Trial:
    """A Ray node on each host, the first one's the head, and there the command of a run of three workers."""

    def __init__(self, hosts: list[Host], folder: Path) -> None:
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text(secrets.token_hex(32))
        self.hosts, self.run, self._folder = hosts, folder / "run", folder
        self._environment = os.environ | {"HOME": str(folder), "RAY_AUTH_MODE": "token"}
        del self._environment["RAY_ADDRESS"]
        head = f"{hosts[0].address}:{PORT}"
        self.start_node(hosts[0], "--head", f"--port={PORT}", "--include-dashboard=false")
        for host in hosts[1:]:
            self.start_node(host, f"--address={head}")
        line = [sys.executable, *command_line(folder, "run", **SETTINGS)]
        self.process = self._start(hosts[0], "run", line, RAY_ADDRESS=head)

    def start_node(self, host: Host, *flags: str) -> None:
        """Returns once it is up."""
        ray = str(Path(sys.executable).with_name("ray"))
        name = f"node-{host.address}"
        process = self._start(host, name, [ray, "start", f"--node-ip-address={host.address}", *flags, *NODE])
        wait_until(lambda: "Ray runtime started" in self.output(name), process, f"Ray is up on {host.address}", 60)

    def _start(self, host: Host, name: str, line: list[str], **environment: str) -> Any:
        with open(self._folder / f"{name}.txt", "w") as output:
            return host.start(line, env=self._environment | environment, stdout=output, stderr=output)

    def output(self, name: str) -> str:
        return (self._folder / f"{name}.txt").read_text()

    def trains_with(self, workers: int) -> None:
        trains_with(self.run, self.process, workers, LIMIT_S)

    def interrupt(self) -> int:
        """The exit code of the run after Ctrl-C."""
        [command] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(command), signal.SIGINT)
        return self.process.wait(LIMIT_S)


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with connected_hosts(3, tmp_path) as hosts:
        yield Trial(hosts, tmp_path)


def assert_every_sample_once(run: Path) -> None:
    """Step for step the ledger has the samples of the order, which knows nothing of workers."""
    config = Config.from_json((run / "config.json").read_text())
    dataset = open_dataset(config.data.train)
    order = order_of(config, dataset)
    rows, folder = order.slice_rows, open_location(str(run))
    ledger = read_rows(folder / "ledger.jsonl")
    assert [row["step"] for row in ledger] == list(range(1, len(ledger) + 1))
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [row["step"] for row in ledger]
    for step, row in enumerate(ledger):
        slices = sorted(order.slice_at(position)[1] for position in order.worker_positions(step, step + 1, 0, 1))
        assert row["ids"] == [rows * number + index for number in slices for index in range(rows)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_others_go_on_and_all_train_again_once_it_is_over(trial: Trial, fault: str) -> None:
    number, begin, end, left = FAULTS[fault]
    trial.trains_with(3)
    start = monotonic()
    begin(trial.hosts[number])
    trial.trains_with(left)
    went_on_s = monotonic() - start
    sleep(max(0.0, FAULT_S - went_on_s))
    over = monotonic()
    end(trial.hosts[number])
    trial.trains_with(3)
    print(f"{fault}: ten steps by {left} after {went_on_s:.0f} s, by all {monotonic() - over:.0f} s after its end")
    assert trial.interrupt() == 130
    assert_every_sample_once(trial.run)
