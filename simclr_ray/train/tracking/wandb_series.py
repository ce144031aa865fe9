"""A run's series at Weights & Biases. The environment has the rest: WANDB_API_KEY, WANDB_MODE and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simclr_ray.config import Config
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.tracking.series import scalars, series_id, series_name

FINISH_S = 30.0
"""For which the process waits at its end for uploads; by wandb's default it would wait for ever."""


class WandbSeries:
    """The run `series_id` of `project`. Its config is logged once; a row's step is wandb's step.

    Offline, wandb cannot go on with a run: each start writes another folder, with the rows from the first step on.
    """

    def __init__(self, project: str, run: Location, config: Config) -> None:
        import wandb  # takes a second, and is optional

        settings = wandb.Settings(
            console="off", silent=True, save_code=False, reinit="create_new", finish_timeout=FINISH_S
        )
        folder = str(run.local) if run.local else None
        self._run: Any = wandb.init(
            project=project, id=series_id(run), name=series_name(run), resume="allow", dir=folder, settings=settings
        )
        if not self._run.config.keys():
            self._run.config.update(config.flat())
        self.last_step = self._run.starting_step - 1

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(scalars(row) | {"_timestamp": row["time"]}, step=row["step"], commit=True)

    def close(self) -> None:
        self._run.finish()
