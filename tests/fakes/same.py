"""Compares a disturbed run with an undisturbed one by a single worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from simclr_ray.config import Config
from simclr_ray.data.dataset import open_dataset
from simclr_ray.data.order import order_of
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import read_rows
from simclr_ray.train.checkpoint import newest_valid
from small_runs import attempt


def assert_same_as_one_worker(run: Location, alone: Path, steps: int | None = None) -> None:
    """In float64: the same samples in every step, the same losses and weights up to rounding; prints differences.

    `steps`: after which the run was ended; None: it was not.
    """
    config = Config.from_json((run / "config.json").read_bytes().decode())
    if steps is not None:
        per_epoch = order_of(config, open_dataset(config.data.train)).steps_per_epoch
        config = config.with_overrides({"saving.stop_after_epochs": steps / per_epoch})
    # Two undisturbed runs, of one and of two threads, went apart by 1e-7 in one step of 880: a unit at a ReLU's kink.
    torch.set_num_threads(config.resources.threads or torch.get_num_threads())
    attempt(config, open_dataset(config.data.train), alone)
    undisturbed = open_location(str(alone))
    assert read_rows(run / "ledger.jsonl") == read_rows(undisturbed / "ledger.jsonl")
    got, expected = _losses(run), _losses(undisturbed)
    assert got.keys() == expected.keys()
    for step, loss in expected.items():
        assert got[step] == pytest.approx(loss, rel=1e-8), step
    saved, wanted = newest_valid(run)[0], newest_valid(undisturbed)[0]
    assert saved is not None
    assert wanted is not None
    for name, value in wanted.model.items():
        torch.testing.assert_close(saved.model[name], value, rtol=1e-6, atol=1e-6, msg=name)
    loss = max(abs(got[step] / expected[step] - 1) for step in expected)
    weights = max(float((saved.model[name] - value).abs().max()) for name, value in wanted.model.items())
    print(f"{len(expected)} steps as one worker's: losses differ by at most {loss:.1e}, weights by {weights:.1e}")


def _losses(run: Location) -> dict[int, Any]:
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows}), "every step once"
    return {row["step"]: row["loss"] for row in rows}
