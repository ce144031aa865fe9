"""Keys of the release before: configs, command lines and sweeps written with them are still understood."""

from __future__ import annotations

import json

import pytest

from simclr_ray.cli.command import given_keys, present_flags
from simclr_ray.config import Config, config_types
from simclr_ray.config.renamed import RENAMED
from simclr_ray.sweep.space import parse_space


def test_every_renamed_key_leads_to_a_setting() -> None:
    assert set(RENAMED.values()) <= config_types().keys()
    assert not RENAMED.keys() & config_types().keys()


def test_a_config_of_the_last_release_keeps_its_values() -> None:
    groups = json.loads(Config().to_json())
    groups["optim"]["temperature"] = groups.pop("method")["temperature"] * 2
    for group in ("resources", "saving", "elasticity", "logging"):
        del groups[group]
    groups["machine"] = {"save_every_s": 7.0, "max_workers": 3, "gone": 1}
    config = Config.from_json(json.dumps(groups))
    assert (config.method.temperature, config.saving.every_s, config.resources.max_workers) == (0.2, 7.0, 3)


def test_old_flags_are_taken_under_their_new_names(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--optim.temperature", "0.2", "--machine.save-every-s=9", "--name", "r", "--machine.ledger"]
    present = ["--method.temperature", "0.2", "--saving.every-s=9", "--name", "r", "--logging.ledger"]
    assert present_flags(flags) == present
    assert "--machine.save-every-s is now --saving.every-s" in capsys.readouterr().err
    assert given_keys(flags) == {"method.temperature", "saving.every_s", "logging.ledger"}
    assert list(parse_space(["optim.temperature=0.1:1"], Config())) == ["method.temperature"]
