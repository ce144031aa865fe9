"""Pretraining under Ray, as a user starts it: one command, killed in the middle of an epoch, and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from safetensors.torch import load_file

import simclr_ray
from simclr_ray.data.rows import read_rows
from simclr_ray.data.storage import open_location
from simclr_ray.train.checkpoint import newest_valid

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 150
SETTINGS = {
    "data.train": "synthetic:1024",
    "augment.size": 16,
    "model.width": 0.0625,
    "model.head-dim": 16,
    "train.epochs": 3,
    "train.global-batch": 128,
    "evaluate.every-epochs": 2,
    "evaluate.test": "synthetic:256:test",
    "machine.log-every-steps": 1,
    "machine.save-every-steps": 3,
    "machine.cpus-per-worker": 0.5,
    "machine.data-cpus": 0.5,
}
STEPS = 24


def start(folder: Path, name: str, workers: int, **changes: object) -> subprocess.Popen[str]:
    """The command of the README on a cluster of its own, with its settings as flags."""
    settings = SETTINGS | {"machine.min-workers": workers, "machine.max-workers": workers} | changes
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    line = [sys.executable, str(ROOT / "experiments/pretrain.py"), "quickstart", *flags, "--name", name]
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    return subprocess.Popen(
        [*line, "--storage", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return process.returncode, out, err


def rows(folder: Path, name: str) -> list[dict]:
    machine_facts = ("images_per_s", "data_wait_fraction", "time")
    found = read_rows(open_location(str(folder / name)) / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in machine_facts} for row in found]


def kill_after(process: subprocess.Popen[str], folder: Path, name: str, step: int) -> None:
    deadline = monotonic() + TIMEOUT_S
    while not any(row["step"] >= step for row in rows(folder, name)):
        assert monotonic() < deadline, "the run did not come to its step"
        assert process.poll() is None, process.communicate()
        sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_driver_resumes_to_the_same_bits(storage: Path, workers: int) -> None:
    whole, cut = f"whole-{workers}", f"cut-{workers}"
    code, out, err = finish(start(storage, whole, workers))
    assert code == 0, err
    assert "simclr_ray.load(" in out
    assert f"step {STEPS}/{STEPS}" in err
    process = start(storage, cut, workers)
    kill_after(process, storage, cut, 13)
    assert not (storage / cut / "encoder.safetensors").exists()
    code, out, err = finish(start(storage, cut, workers))
    assert code == 0, err
    events = read_rows(open_location(str(storage / cut)) / "events.jsonl")
    restored = next(event for event in events if event["event"] == "restore")
    assert 9 <= restored["step"] < STEPS
    assert rows(storage, cut) == rows(storage, whole)
    one, other = (newest_valid(open_location(str(storage / name)))[0] for name in (whole, cut))
    assert one is not None
    assert other is not None
    for part in ("model", "optimizer"):
        for name, value in getattr(one, part).items():
            assert torch.equal(value, getattr(other, part)[name]), name
    encoders = [load_file(storage / name / "encoder.safetensors") for name in (whole, cut)]
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[0])
    assert simclr_ray.load(str(storage / cut))(torch.zeros(1, 3, 16, 16)).shape == (1, 32)


def test_a_finished_run_is_left_as_it_is(storage: Path) -> None:
    before = (storage / "whole-1" / "events.jsonl").read_bytes()
    code, out, err = finish(start(storage, "whole-1", 1))
    assert (code, f"done at step {STEPS}" in out) == (0, True), err
    assert (storage / "whole-1" / "events.jsonl").read_bytes() == before


def test_a_changed_science_value_is_refused_by_name(storage: Path) -> None:
    code, _, err = finish(start(storage, "whole-1", 1, **{"optim.temperature": 0.2}))
    assert code == 2
    assert "optim.temperature was 0.5, is now 0.2" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.global-batch": 100}, "no multiple of the dataset's slices of 32"),
        ({"train.global-batch": 2048}, "more than the data holds"),
        (
            {"machine.max-workers": 9, "machine.cpus-per-worker": 0.1, "machine.data-cpus": 0.1},
            "more than the 4 slices of a pass",
        ),
        ({"machine.max-workers": 2, "machine.cpus-per-worker": 1}, "leave 0 of 2 CPUs"),
        ({"data.train": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(storage: Path, changes: dict[str, object], says: str) -> None:
    code, _, err = finish(start(storage, "bad", 1, **changes))
    lines = [line for line in err.strip().splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in err


def test_unwritable_storage_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = finish(start(tmp_path / "file", "run", 1))
    assert code == 2
    assert "cannot write to --storage" in err
    assert len(err.strip().splitlines()) == 1
