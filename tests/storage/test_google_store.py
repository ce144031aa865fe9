"""gs:// against an emulator: files, folders, faults, refusals, and a run that is killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from faulty_store import Fault
from google_store import GoogleStore, google_store
from simclr_ray.config import BadInput
from simclr_ray.data.prepare.writer import require_writable
from simclr_ray.storage import object_store
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.object_store import Refused
from small_runs import TINY, Killed, attempt, synthetic_dataset, weights
from store_contents import assert_keeps_files

OPERATIONS: dict[str, Callable[[Location], object]] = {
    "size": lambda folder: (folder / "x").size(),
    "read": lambda folder: (folder / "x").read_bytes(),
    "list": lambda folder: [entry.name for entry in folder.files()],
    "write": lambda folder: (folder / "y").write_bytes(b"y"),
    "delete": lambda folder: (folder / "x").delete(),
}


@pytest.fixture(scope="module")
def store() -> Iterator[GoogleStore]:
    pytest.importorskip("gcp_storage_emulator")
    with google_store() as store:
        yield store


@pytest.fixture
def folder(store: GoogleStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Location]:
    """A prefix of its own for each test."""
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(object_store, "REFUSAL_PATIENCE_S", 0.1)
    yield open_location(store.uri(f"{abs(hash(request.node.name)):x}"))
    store.fail(Fault.ANSWER, 0)


def test_what_was_written_is_read_listed_and_deleted(folder: Location) -> None:
    assert_keeps_files(folder, large=5_000_000)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_outlasts_a_fault_and_tells_a_refusal_at_once(
    store: GoogleStore, folder: Location, operation: str
) -> None:
    run = OPERATIONS[operation]
    (folder / "x").write_bytes(b"content")
    for status, word in ((401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED")):  # http: has no credentials to be wrong
        store.fail(Fault.ANSWER, 1000, status=status)
        with pytest.raises(Refused, match=rf"^gs://\S+: .*{word}[^{{]*$"):
            run(folder)
    store.fail(Fault.ANSWER, 1, status=503)
    run(folder)
    assert len(store.fail(Fault.ANSWER, 0)) > 1


def test_a_bucket_that_is_not_there_is_refused(store: GoogleStore, folder: Location) -> None:
    missing = open_location(store.uri("x", bucket="nobody"))
    with pytest.raises(Refused, match="Bucket 'nobody' not found"):
        missing.write_bytes(b"x")
    with pytest.raises(BadInput, match="cannot write to gs://anonymous@nobody/x"):
        require_writable(missing)


def test_a_run_that_is_killed_in_a_faulty_store_ends_as_one_in_a_folder(
    store: GoogleStore, folder: Location, tmp_path: Path
) -> None:
    config = TINY.with_overrides({"saving.every_steps": 3})
    here = synthetic_dataset(tmp_path / "data", 96)
    there = synthetic_dataset((folder / "data").uri, 96)
    assert there.fingerprint == here.fingerprint
    expected = weights(attempt(config, here, tmp_path / "run"))
    with pytest.raises(Killed):
        attempt(config, there, (folder / "run").uri, die_after_step=4)
    store.fail(Fault.ANSWER, 2)
    got = attempt(config, there, (folder / "run").uri)
    for name, value in expected.items():
        assert torch.equal(weights(got)[name], value), name
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_bytes().splitlines()]
    assert [event["step"] for event in events if event["event"] == "restore"] == [3]
