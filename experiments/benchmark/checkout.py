"""The commands of a checkout of this repository as processes, so that one benchmark can compare two checkouts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep, time

from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import EVENTS, Row, read_rows

HERE = Path(__file__).parents[2]
POLL_S = 0.05
TIMEOUT_S = 600.0
END_S = 60.0
"""From Ctrl-C to the end of a run, its save included."""


def environment(checkout: Path) -> dict[str, str]:
    """Its package before an installed one; a local Ray cluster of its own."""
    path = os.pathsep.join([str(checkout), str(checkout / "experiments")])
    return os.environ | {"PYTHONPATH": path, "RAY_ADDRESS": "local"}


def prepare(checkout: Path, source: str, dest: Path) -> None:
    command = [sys.executable, str(checkout / "experiments/prepare.py"), source, str(dest)]
    subprocess.run(command, env=environment(checkout), check=True, stdout=subprocess.DEVNULL)


@dataclass(frozen=True)
class Run:
    """A pretraining run in its own process."""

    process: subprocess.Popen[bytes]
    began: float
    folder: Path
    output: Path

    def rows(self, file: str) -> list[Row]:
        """The rows of events.jsonl or metrics.jsonl that this process wrote."""
        return [row for row in read_rows(open_location(str(self.folder)) / file) if row["time"] >= self.began]

    def first_step_done(self) -> bool:
        return any(event["event"] == "first_step" for event in self.rows(EVENTS))

    def wait_until(self, happened: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        deadline = time() + timeout_s
        while not happened():
            if time() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{self.process.args} got no further than:\n{self.output.read_text()}")
            sleep(POLL_S)

    def interrupt(self) -> None:
        """Ctrl-C, after which the run saves and ends; killed if it does not."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def pretrain(checkout: Path, flags: Sequence[object], storage: Path, name: str) -> Run:
    """Starts `pretrain.py` with these arguments; the recipe comes first."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has its children ignore it
    command = [sys.executable, str(checkout / "experiments/pretrain.py"), *map(str, flags)]
    output, began = storage / f"{name}.txt", time()
    with open(output, "wb") as stream:
        process = subprocess.Popen(
            [*command, "--name", name, "--storage", str(storage)],
            env=environment(checkout),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    return Run(process, began, storage / name, output)
