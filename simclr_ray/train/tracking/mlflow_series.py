"""A run's series at MLflow. The environment has the rest: MLFLOW_TRACKING_URI and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simclr_ray.config import Config
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.tracking.series import scalars, series_id, series_name

TAG = "simclr_ray.series"
"""MLflow gives runs ids of its own: the series is found by this tag."""
MOST_METRICS, MOST_PARAMETERS, MOST_LETTERS = 1000, 100, 6000
"""Of one request, and of a parameter's value: what every MLflow server takes."""


class MlflowSeries:
    """The run of `experiment` whose tag is `series_id`. Its config is logged once, as parameters.

    Each row also has its step as a metric, the last one: the step of the last whole row is read from it.
    """

    def __init__(self, experiment: str, run: Location, config: Config) -> None:
        from mlflow import MlflowClient  # takes two seconds, and is optional

        self._client: Any = MlflowClient()
        known = self._client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else self._client.create_experiment(experiment)
        series = series_id(run)
        found = self._client.search_runs([place], f"tags.`{TAG}` = '{series}'", max_results=1)
        ours = found[0] if found else self._client.create_run(place, tags={TAG: series}, run_name=series_name(run))
        self._id, self.last_step = ours.info.run_id, int(ours.data.metrics.get("step", -1))
        self._client.update_run(self._id, status="RUNNING")
        if not ours.data.params:
            self._log_config(config)

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, round(1000 * row["time"]), row["step"])
            for row in rows
            for key, value in (scalars(row) | {"step": row["step"]}).items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + MOST_METRICS])

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _log_config(self, config: Config) -> None:
        from mlflow.entities import Param

        parameters = [Param(key, str(value)[:MOST_LETTERS]) for key, value in config.flat().items()]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + MOST_PARAMETERS])
