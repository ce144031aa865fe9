"""A run's settings: frozen dataclasses grouped by consequence, with checks and JSON."""

from simclr_ray.config.checks import BadInput
from simclr_ray.config.machine import ElasticityConfig, LoggingConfig, ResourcesConfig, SavingConfig
from simclr_ray.config.method import (
    CLASSIFYING,
    LABELLED,
    METHODS,
    BarlowTwinsConfig,
    BYOLConfig,
    DINOConfig,
    DistillationConfig,
    MethodConfig,
    MoCoConfig,
    NNCLRConfig,
    SimCLRConfig,
    SimSiamConfig,
    SupervisedConfig,
    SwAVConfig,
    VICRegConfig,
)
from simclr_ray.config.renamed import current_key
from simclr_ray.config.run import FORMAT, Config, as_resolved, config_types, format_of, is_science, science_changes
from simclr_ray.config.science import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

__all__ = [
    "CLASSIFYING",
    "FORMAT",
    "LABELLED",
    "METHODS",
    "AugmentConfig",
    "BYOLConfig",
    "BadInput",
    "BarlowTwinsConfig",
    "Config",
    "DINOConfig",
    "DataConfig",
    "DistillationConfig",
    "ElasticityConfig",
    "EvaluateConfig",
    "LoggingConfig",
    "MethodConfig",
    "MoCoConfig",
    "ModelConfig",
    "NNCLRConfig",
    "OptimConfig",
    "ResourcesConfig",
    "SavingConfig",
    "SimCLRConfig",
    "SimSiamConfig",
    "SupervisedConfig",
    "SwAVConfig",
    "TrainConfig",
    "VICRegConfig",
    "as_resolved",
    "config_types",
    "current_key",
    "format_of",
    "is_science",
    "science_changes",
]
