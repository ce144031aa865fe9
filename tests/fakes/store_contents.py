"""What every kind of object store must do with files and folders, and with a run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simclr_ray.storage.location import Location
from small_runs import TINY, Killed, attempt, synthetic_dataset, weights

OPERATIONS: dict[str, Callable[[Location], object]] = {
    "size": lambda folder: (folder / "x").size(),
    "read": lambda folder: (folder / "x").read_bytes(),
    "list": lambda folder: [entry.name for entry in folder.files()],
    "write": lambda folder: (folder / "y").write_bytes(b"y"),
    "delete": lambda folder: (folder / "x").delete(),
}


def assert_keeps_files(folder: Location, large: int) -> None:
    """Writes, reads, lists, replaces and deletes files in an empty folder, one of them of `large` bytes."""
    contents = {"a.json": b"{}", "b/large": os.urandom(large), "b/odd name%?#+é": b"1", ".hidden": b"", "z": b""}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    assert [entry.name for entry in folder.files()] == sorted(contents.keys() - {".hidden"})
    assert {entry.name: entry.size for entry in folder.files()}["b/large"] == large
    assert (folder.folders(), folder.is_folder(), (folder / "b").is_folder()) == (["b"], True, True)
    for name, content in contents.items():
        again = pickle.loads(pickle.dumps(folder / name))  # for another process: the URI alone
        assert (again.read_bytes(), again.size(), again.exists()) == (content, len(content), True)
    (folder / "a.json").write_bytes(b"new")
    assert (folder / "a.json").read_bytes() == b"new"
    (folder / "b").delete()
    (folder / "a.json").delete()
    (folder / "never").delete()
    assert [entry.name for entry in folder.files()] == ["z"]
    assert folder.folders() == []
    assert not (folder / "a.json").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "a.json").read_bytes()


def assert_a_killed_run_ends_as_one_in_a_folder(folder: Location, tmp_path: Path, fail: Callable[[], object]) -> None:
    """Bitwise. `fail` lets the store fail at the requests with which the killed run starts again."""
    config = TINY.with_overrides({"saving.every_steps": 3})
    here = synthetic_dataset(tmp_path / "data", 96)
    there = synthetic_dataset((folder / "data").uri, 96)
    assert there.fingerprint == here.fingerprint
    expected = weights(attempt(config, here, tmp_path / "run"))
    with pytest.raises(Killed):
        attempt(config, there, (folder / "run").uri, die_after_step=4)
    fail()
    got = attempt(config, there, (folder / "run").uri)
    for name, value in expected.items():
        assert torch.equal(weights(got)[name], value), name
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_bytes().splitlines()]
    assert [event["step"] for event in events if event["event"] == "restore"] == [3]
