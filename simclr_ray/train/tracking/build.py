"""The trackers that the config names."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

from simclr_ray.config import BadInput, Config, LoggingConfig
from simclr_ray.storage.location import Location
from simclr_ray.train.tracking.mlflow_series import MlflowSeries
from simclr_ray.train.tracking.tracker import Tracker
from simclr_ray.train.tracking.wandb_series import WandbSeries


def require_tracking(logging: LoggingConfig) -> None:
    """Raises BadInput for a tracker whose package is not installed."""
    for package, wanted in (("wandb", logging.wandb), ("mlflow", logging.mlflow)):
        if wanted is not None and find_spec(package) is None:
            raise BadInput(
                f"logging.{package} needs {package}, which is not installed: pip install 'simclr_ray[{package}]'"
            )


def trackers_of(config: Config, run: Location) -> list[Tracker]:
    """They do nothing before they are started."""
    project, experiment = config.logging.wandb, config.logging.mlflow
    trackers = []
    if project is not None:
        trackers.append(Tracker("wandb", run, partial(WandbSeries, project, run, config)))
    if experiment is not None:
        trackers.append(Tracker("mlflow", run, partial(MlflowSeries, experiment, run, config)))
    return trackers
