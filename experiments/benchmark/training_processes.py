"""The processes that train a run on a cluster that this process has started."""

from __future__ import annotations

from contextlib import suppress

import psutil

from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import TENSORBOARD


def training_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            line = " ".join(process.cmdline())
            if "RayTrainWorker" in line or "JoiningWorker" in line:
                found.append(process)
    return found


def rank_0_of(run: Location) -> int:
    """The id of its process, which writes TensorBoard's files: their names end in .PID.NUMBER."""
    return int(sorted(entry.name for entry in (run / TENSORBOARD).files())[-1].split(".")[-2])
