"""The names and readers of a run folder, and its lease as others see it."""

from __future__ import annotations

import json
from pathlib import Path

from simclr_ray.config import Config
from simclr_ray.storage import run_folder
from simclr_ray.storage.lease import PATIENCE_S, is_held
from simclr_ray.storage.location import open_location


def test_the_names_of_checkpoints_and_trials_are_those_that_their_patterns_match() -> None:
    for number in (0, 7, 1234, 123_456_789):
        match = run_folder.CHECKPOINT.fullmatch(run_folder.checkpoint_name(number))
        assert match
        assert int(match.group(1)) == number
        assert run_folder.TRIAL.fullmatch(run_folder.trial_name(number))


def test_a_config_is_read_back_or_there_is_none(tmp_path: Path) -> None:
    run = open_location(str(tmp_path))
    assert run_folder.read_config(run) is None
    config = Config().with_overrides({"train.epochs": 7})
    (tmp_path / run_folder.CONFIG).write_text(config.to_json())
    assert run_folder.read_config(run) == config


def test_a_lease_is_held_until_it_was_not_renewed_for_too_long(tmp_path: Path) -> None:
    run = open_location(str(tmp_path))
    assert not is_held(run, 1000.0)
    (tmp_path / run_folder.DRIVER).write_text(json.dumps({"driver": "d", "time": 1000.0}))
    assert is_held(run, 1000.0 + PATIENCE_S - 1)
    assert not is_held(run, 1000.0 + PATIENCE_S)
