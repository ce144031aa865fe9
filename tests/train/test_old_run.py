"""A run folder written by the release before (other keys in config.json and state.json) goes on as that release would.

`old_run` holds a run of six float64 steps that was killed after the fourth (its newest checkpoint is that of step 3),
its data, and the losses of the same run undisturbed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from simclr_ray.config import FORMAT, Config, format_of
from simclr_ray.data.dataset import open_dataset
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows
from small_runs import attempt

OLD = Path(__file__).parent / "old_run"


def test_a_run_of_the_last_release_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD / "run", run)
    text = (run / "config.json").read_text()
    config, dataset = Config.from_json(text), open_dataset(str(OLD / "data"))
    assert format_of(text) == FORMAT
    assert (config.method.temperature, config.saving.every_steps, config.logging.every_steps) == (0.3, 3, 1)
    attempt(config, dataset, run)
    (restored,) = (
        event for event in read_rows(open_location(str(run)) / "events.jsonl") if event["event"] == "restore"
    )
    assert restored["step"] == 3
    losses = [row["loss"] for row in read_rows(open_location(str(run)) / "metrics.jsonl")]
    # On the machine that wrote it the losses are the same to the bit; another CPU's kernels round otherwise.
    assert losses == pytest.approx(json.loads((OLD / "losses.json").read_text()), rel=1e-12)
    assert losses[:3] == json.loads((OLD / "losses.json").read_text())[:3]
