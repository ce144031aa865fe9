"""Seconds from the command to the first step, by part: `pretrain.py quickstart` as a user types it.

    python experiments/benchmark/start.py [--runs 5] [--resume] [--workers 2] [--against OTHER_CHECKOUT]

Every start is a fresh process and a fresh local Ray cluster; with --resume it restores a checkpoint. The marks are the
command's first line (which comes after its imports), then the events of the run folder. A run beforehand, not counted,
prepares the data and fills the caches of files, pixels and compiled functions. A run is interrupted after its first
step. `--against` measures another checkout too, in turns. The first mark is read within 0.05 s.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import time

from checkout import HERE, Run, pretrain
from simclr_ray.cli.command import parse, run_command
from simclr_ray.storage.run_folder import EVENTS


@dataclass(frozen=True, kw_only=True)
class Arguments:
    runs: int = 5
    resume: bool = False
    """Measure starts from a checkpoint."""
    workers: int = 1
    """Training workers, of one thread each if several."""
    against: Path | None = None
    """Another checkout of this repository."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    checkouts = {"ours": HERE}
    if arguments.against:
        checkouts[f"ours in {arguments.against.name}"] = arguments.against.resolve()
    flags = ["quickstart", *_worker_flags(arguments.workers)]
    starts: dict[str, list[dict[str, float]]] = {label: [] for label in checkouts}
    with TemporaryDirectory() as folder:
        for label, checkout in checkouts.items():
            _started(checkout, flags, Path(folder) / label, "first")
        for i in range(arguments.runs):
            for label, checkout in checkouts.items():
                name = "first" if arguments.resume else f"run-{i}"
                starts[label].append(_started(checkout, flags, Path(folder) / label, name))
    kind = "restored" if arguments.resume else "fresh"
    print(f"{arguments.runs} {kind} starts, {arguments.workers} workers, {len(os.sched_getaffinity(0))} CPUs")
    _print(starts)


def _worker_flags(workers: int) -> list[object]:
    """Room on this machine for several workers and their data."""
    if workers == 1:
        return []
    cpus = min(1.0, 0.75 * len(os.sched_getaffinity(0)) / workers)
    flags: list[object] = ["--resources.min-workers", workers, "--resources.max-workers", workers]
    return [*flags, "--resources.cpus-per-worker", cpus, "--resources.threads", 1]


def _started(checkout: Path, flags: Sequence[object], storage: Path, name: str) -> dict[str, float]:
    """The seconds of each part of one start."""
    storage.mkdir(exist_ok=True)
    run = pretrain(checkout, flags, storage, name)
    try:
        run.wait_until(lambda: b"\n" in run.output.read_bytes())
        first_line = time()
        run.wait_until(run.first_step_done)
    finally:
        run.interrupt()
    return _parts(run, first_line)


def _parts(run: Run, first_line: float) -> dict[str, float]:
    marks = [("command", run.began), ("first line", first_line)]
    for event in run.rows(EVENTS):
        marks.append((event["event"], event["time"]))
        if event["event"] == "first_step":
            break
    parts = {f"{before[0]} -> {after[0]}": after[1] - before[1] for before, after in pairwise(marks)}
    return parts | {"total": marks[-1][1] - run.began}


def _print(starts: dict[str, list[dict[str, float]]]) -> None:
    for label, runs in starts.items():
        print(f"\n{label + ', seconds':<36}{'median':>8}{'min':>8}{'max':>8}")
        for part in runs[0]:
            seconds = [run[part] for run in runs]
            print(f"{part:<36}{median(seconds):>8.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}")


if __name__ == "__main__":
    run_command(main)
