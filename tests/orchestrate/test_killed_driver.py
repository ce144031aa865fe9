"""Pretraining under Ray: one command, killed in the middle of an epoch, and run again."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

import simclr_ray
from commands import STEPS, events, finish, metrics, start, wait_until
from simclr_ray.storage.location import open_location
from simclr_ray.train.checkpoint import newest_valid


def kill_after(process: Any, run: Path, step: int) -> None:
    wait_until(lambda: any(row["step"] >= step for row in metrics(run)), process, f"step {step} is done")
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_whose_driver_was_killed_resumes_bitwise_equal(storage: Path, workers: int) -> None:
    """Of two workers, one is lost before; the other waits for its replacement with the state in memory."""
    whole, cut = f"whole-{workers}", f"cut-{workers}"
    code, out, err = finish(start(storage, whole, workers))
    assert code == 0, err
    assert "simclr_ray.load(" in out
    assert f"step {STEPS}/{STEPS}" in err
    process = start(storage, cut, workers)
    if workers == 2:
        lose_a_worker(process, storage / cut)
    kill_after(process, storage / cut, 13)
    assert not (storage / cut / "encoder.safetensors").exists()
    code, out, err = finish(start(storage, cut, workers))
    assert code == 0, err
    assert 9 <= events(storage / cut, "restore")[0]["step"] < STEPS
    assert metrics(storage / cut) == metrics(storage / whole)
    assert_same_bits(storage, cut, whole)
    assert simclr_ray.load(str(storage / cut))(torch.zeros(1, 3, 16, 16)).shape == (1, 32)


def lose_a_worker(process: Any, run: Path) -> None:
    wait_until(lambda: len(metrics(run)) >= 6, process, "step 6 is done")
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in family if "RayTrainWorker" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    wait_until(lambda: bool(events(run, "regroup")), process, "the group goes on")
    (change,) = events(run, "regroup")
    assert (change["lost"], change["joined"]) == (1, 1), "min-workers is 2"
    assert not events(run, "failure", "restore")


def assert_same_bits(storage: Path, name: str, other: str) -> None:
    one, two = (newest_valid(open_location(str(storage / run)))[0] for run in (name, other))
    assert one is not None
    assert two is not None
    for part in ("model", "optimizer"):
        for key, value in getattr(one, part).items():
            assert torch.equal(value, getattr(two, part)[key]), key
    encoders = [load_file(storage / run / "encoder.safetensors") for run in (name, other)]
    assert all(torch.equal(encoders[0][key], encoders[1][key]) for key in encoders[0])


def test_a_changed_science_value_is_refused_by_name(storage: Path) -> None:
    code, _, err = finish(start(storage, "whole-1", 1, **{"method.temperature": 0.2}))
    assert code == 2
    assert "method.temperature was 0.5, is now 0.2" in err
    assert len(err.strip().splitlines()) == 1
