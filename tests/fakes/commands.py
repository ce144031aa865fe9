"""Runs the commands of the README as processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from forked import start_forked
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300.0
# Ray's default timeouts are for clouds; on one machine nothing takes so long.
FAST = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
}
# The quickstart made small: STEPS steps of 128 images.
SMALL = {
    "data.train": "synthetic:1024",
    "augment.size": 16,
    "model.width": 0.0625,
    "model.head-dim": 16,
    "train.epochs": 3,
    "train.global-batch": 128,
    "resources.threads": 1,
}
SETTINGS = SMALL | {
    "evaluate.every-epochs": 2,
    "evaluate.test": "synthetic:256:test",
    "logging.every-steps": 1,
    "saving.every-steps": 3,
    "resources.cpus-per-worker": 0.5,
    "resources.data-cpus": 0.5,
}
STEPS = 24


def start(
    folder: Path, name: str, workers: int, *, ray_address: str = "local", fast: bool = True, **changes: object
) -> Any:
    """`pretrain.py quickstart` with small settings, on a cluster of its own unless an address is given.

    `fast`: with less patience than Ray's own.
    """
    settings = {"resources.min-workers": workers, "resources.max-workers": workers} | changes
    environment = os.environ | (FAST if fast else {}) | {"RAY_ADDRESS": ray_address}
    return start_forked(command_line(folder, name, **settings), env=environment)


def command_line(folder: Path, name: str, **changes: object) -> list[str]:
    """What `start` runs, without the interpreter."""
    words = [*flags(SETTINGS | changes), "--name", name, "--storage", str(folder)]
    return [str(ROOT / "experiments/pretrain.py"), "quickstart", *words]


def flags(settings: Mapping[str, object]) -> list[str]:
    """They as words of a command line."""
    return [
        word
        for key, value in settings.items()
        for word in ([f"--{key}"] if value is True else [f"--{key}", str(value)])
    ]


def finish(process: Any, timeout_s: float = TIMEOUT_S) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return process.returncode, out, err


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run without what the machine decides."""
    machine_facts = ("images_per_s", "data_wait_fraction", "time")
    found = read_rows(open_location(str(folder)) / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in machine_facts} for row in found]


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    found = read_rows(open_location(str(folder)) / "events.jsonl")
    return [event for event in found if not kinds or event["event"] in kinds]


def wait_until(happened: Callable[[], bool], process: Any, what: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline = monotonic() + timeout_s
    while not happened():
        assert monotonic() < deadline, f"timed out after {timeout_s:.0f} s waiting until {what}"
        assert process.poll() is None, process.communicate()
        sleep(0.05)


def starts(run: Path) -> list[dict[str, Any]]:
    return events(run, "start", "restore")


def sizes(run: Path) -> list[int]:
    """Workers of every group that has trained, in order."""
    found = events(run, "start", "restore", "regroup")
    return [row["workers"]["to"] if row["event"] == "regroup" else row["workers"] for row in found]


def trains_with(run: Path, process: Any, workers: int, timeout_s: float = TIMEOUT_S) -> None:
    """Waits until the newest group has so many workers and has done ten steps."""

    def happened() -> bool:
        rows = metrics(run)
        return sizes(run)[-1:] == [workers] and rows != [] and rows[-1]["step"] >= last_change(run) + 10

    wait_until(happened, process, f"ten steps with {workers} workers", timeout_s)


def last_change(run: Path) -> int:
    return events(run, "start", "restore", "regroup")[-1]["step"]
