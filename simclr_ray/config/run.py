"""Every knob of a run, validated on construction, and what counts as its science.

The group `machine` and the addresses in `ADDRESSES` must not change the result: they may differ between two
starts of the same run. Every other value is science; `science_changes` names those that differ.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any, Self

from simclr_ray.config.checks import checked
from simclr_ray.config.machine import MachineConfig
from simclr_ray.config.science import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

FORMAT = 2
"""Of a run folder. It is raised where runs of the version before cannot be resumed: 2 has another order of samples."""
ADDRESSES = frozenset({"data.train", "evaluate.train", "evaluate.test"})


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=2) + "\n"

    def flat(self) -> dict[str, Any]:
        """Every value by dotted key."""
        return _flatten(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`, in any format: `machine` keys that are no more change nothing."""
        groups = {key: value for key, value in json.loads(text).items() if key != "format"}
        values, known = _flatten(groups), config_types()
        return cls().with_overrides({k: v for k, v in values.items() if k in known or not k.startswith("machine.")})

    def with_overrides(self, overrides: dict[str, Any]) -> Self:
        """A copy with values replaced by dotted key, such as {"optim.temperature": 0.2}; checked like any config."""
        groups: dict[str, dict[str, Any]] = {}
        for key, value in overrides.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = checked(key, config_types().get(key), value)
        replaced = {group: dataclasses.replace(getattr(self, group), **values) for group, values in groups.items()}
        return dataclasses.replace(self, **replaced)


def format_of(text: str) -> int:
    """The format of the run folder whose config.json holds `text`: the first did not write it."""
    return json.loads(text).get("format", 1)


def config_types() -> dict[str, Any]:
    """The declared type of every dotted key."""
    groups = typing.get_type_hints(Config)
    return {f"{g}.{name}": hint for g, cls in groups.items() for name, hint in typing.get_type_hints(cls).items()}


def science_changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose science value differs, with both values."""
    before, after = old.flat(), new.flat()
    return {
        key: (before[key], after[key])
        for key in before
        if not key.startswith("machine.") and key not in ADDRESSES and before[key] != after[key]
    }


def _flatten(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
