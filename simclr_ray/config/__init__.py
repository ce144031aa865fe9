"""A run's settings: frozen dataclasses grouped by consequence, their checks, and their JSON."""

from simclr_ray.config.checks import BadInput
from simclr_ray.config.machine import MachineConfig
from simclr_ray.config.run import ADDRESSES, FORMAT, Config, config_types, format_of, science_changes
from simclr_ray.config.science import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

__all__ = [
    "ADDRESSES",
    "FORMAT",
    "AugmentConfig",
    "BadInput",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "MachineConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "config_types",
    "format_of",
    "science_changes",
]
