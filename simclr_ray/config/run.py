"""The config of a run: its groups, dotted keys, JSON, and which values are science.

A science value affects the result: it must not change between two starts of a run. The groups of machine.py, and the
addresses of the data, may.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from simclr_ray.config.checks import checked, require
from simclr_ray.config.machine import ElasticityConfig, LoggingConfig, ResourcesConfig, SavingConfig
from simclr_ray.config.method import (
    CLASSIFYING,
    LABELLED,
    METHODS,
    MULTI_CROP,
    MethodConfig,
    SimCLRConfig,
    method_config,
)
from simclr_ray.config.renamed import current_key
from simclr_ray.config.science import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

FORMAT = 2
"""Format of a run folder, raised when runs of the previous one cannot be resumed: 2 has another order of samples."""
ADDRESSES = frozenset({"data.train", "evaluate.train", "evaluate.test", "model.init", "method.teacher"})
MACHINE = (ResourcesConfig, SavingConfig, ElasticityConfig, LoggingConfig)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=SimCLRConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)
    elasticity: ElasticityConfig = field(default_factory=ElasticityConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        require(
            isinstance(self.method, MULTI_CROP) or not self.augment.local_views,
            f"augment.local_views are for the methods {' and '.join(cls.name for cls in MULTI_CROP)}, "
            f"not for {self.method.name}: set it to 0",
        )
        require(
            not (self.evaluate.projections and isinstance(self.method, CLASSIFYING)),
            f"evaluate.projections needs a projection head, which {self.method.name} does not have: leave it out",
        )
        queue = getattr(self.method, "queue", 0)  # whole batches go through the queues of all methods that have one
        batch = self.train.global_batch
        require(
            queue % batch == 0,
            f"method.queue {queue} is no multiple of train.global_batch {batch}: set it to {16 * batch}",
        )

    @property
    def reads_labels(self) -> bool:
        """Whether training needs the labels of its images."""
        return isinstance(self.method, LABELLED) or self.evaluate.probe

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=2) + "\n"

    def flat(self) -> dict[str, Any]:
        """Every value by dotted key."""
        return _flatten(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`, in any format; removed keys that were not science are ignored."""
        groups = {key: value for key, value in json.loads(text).items() if key != "format"}
        values, types = {current_key(key): value for key, value in _flatten(groups).items()}, config_types()
        return cls().with_overrides({k: value for k, value in values.items() if k in types or is_science(k)})

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """A copy with values replaced by dotted key, such as {"method.temperature": 0.2}; checked like any config."""
        start = {group: getattr(self, group) for group in _GROUPS}
        name = overrides.get("method.name", self.method.name)
        if name != self.method.name:
            start["method"] = method_config(name)  # another method starts from its own defaults
        types = {key: hint for group, values in start.items() for key, hint in _types_of(group, type(values)).items()}
        groups: dict[str, dict[str, Any]] = {}
        for key, value in overrides.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = checked(key, types.get(key), value)
        replaced = {group: dataclasses.replace(start[group], **values) for group, values in groups.items()}
        return type(self)(**(start | replaced))


_GROUPS = typing.get_type_hints(Config)
MACHINE_GROUPS = {group for group, cls in _GROUPS.items() if cls in MACHINE} | {"machine"}
"""With the group that the last release had in their place."""


def format_of(text: str) -> int:
    """The format of the run folder whose config.json holds `text`; format 1 did not write the key."""
    return json.loads(text).get("format", 1)


def config_types() -> dict[str, Any]:
    """The declared type of every dotted key, those of all methods included."""
    types: dict[str, Any] = {}
    for group, cls in _GROUPS.items():
        for one in METHODS.values() if group == "method" else (cls,):
            types |= _types_of(group, one)
    return types | {"method.name": typing.Literal[tuple(METHODS)]}


def _types_of(group: str, cls: type) -> dict[str, Any]:
    return {f"{group}.{name}": hint for name, hint in typing.get_type_hints(cls).items()}


def is_science(key: str) -> bool:
    """Whether the value of a dotted key affects the result of a run."""
    return key not in ADDRESSES and key.partition(".")[0] not in MACHINE_GROUPS


def science_changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose science value differs, with both values."""
    before, after = old.flat(), new.flat()
    keys = [key for key in before | after if is_science(key)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def as_resolved(config: Config, earlier: Config) -> Config:
    """`config` with what the first start of its run, whose config is `earlier`, resolved and this one leaves open."""
    opened: dict[str, Any] = {"train.precision": "auto", "method.classes": None, "evaluate.probe_classes": None}
    now, before = config.flat(), earlier.flat()
    for address in ("model.init", "method.teacher"):
        if now.get(address) == before.get(address):
            opened[f"{address}_sha256"] = None
    known = {key for key, value in opened.items() if key in now and key in before and now[key] == value}
    return config.with_overrides({key: before[key] for key in known})


def _flatten(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
