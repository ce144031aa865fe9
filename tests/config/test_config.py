"""Configs: checked when they are made, the same after JSON, and clear about what is science."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from simclr_ray.config import METHODS, BadInput, Config, config_types, format_of, science_changes


def test_json_gives_the_same_config_back() -> None:
    config = Config().with_overrides({"method.temperature": 0.2, "data.mean": [0.1, 0.2, 0.3], "resources.threads": 3})
    assert Config.from_json(config.to_json()) == config
    assert config.data.mean == (0.1, 0.2, 0.3)


def test_configs_of_the_first_format_can_still_be_read() -> None:
    config = Config().with_overrides({"method.temperature": 0.2})
    groups = json.loads(config.to_json())
    assert (groups.pop("format"), format_of(config.to_json())) == (2, 2)
    assert format_of(json.dumps(groups)) == 1
    assert Config.from_json(json.dumps(groups)) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.temprature", 0.1),
        ("nothing", 1),
        ("method.temperature", "0.1"),
        ("method.temperature", -1.0),
        ("train.epochs", 1.5),
        ("train.epochs", True),
        ("model.arch", "vgg16"),
        ("model.width", 0.3),
        ("train.pass_size", 3000),
        ("augment.blur_p", 1.5),
        ("data.std", [0.1, 0.0, 0.1]),
        ("evaluate.every_epochs", -1),
        ("resources.max_workers", 0),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(BadInput, match=key.split(".")[-1]):
        Config().with_overrides({key: value})


def test_machine_and_addresses_are_not_science_and_all_else_is() -> None:
    config = Config()
    other = config.with_overrides({"resources.max_workers": 7, "data.train": "elsewhere", "evaluate.test": "there"})
    assert science_changes(config, other) == {}
    changed = config.with_overrides({"method.temperature": 0.3, "train.seed": 1})
    assert science_changes(config, changed) == {"method.temperature": (0.1, 0.3), "train.seed": (0, 1)}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_comes_with_its_own_settings_and_is_science(name: str) -> None:
    config = Config().with_overrides({"method.name": name})
    assert config.method == METHODS[name]()
    assert Config.from_json(config.to_json()) == config
    assert ("method.name" in science_changes(Config(), config)) == (name != "simclr")
    assert {key for key in config.flat() if key.startswith("method.")} <= config_types().keys()


def test_every_setting_is_frozen_typed_and_explained_by_its_group() -> None:
    groups = [getattr(Config(), f.name) for f in dataclasses.fields(Config) if f.name != "method"]
    names = {f.name for method in METHODS.values() for f in dataclasses.fields(method)}
    assert len(config_types()) == sum(len(dataclasses.fields(group)) for group in groups) + len(names)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 3  # type: ignore[misc]
