"""gs:// against an emulator: files, folders, faults, refusals, and a run that is killed and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty_store import Fault
from google_store import GoogleStore, google_store
from simclr_ray.config import BadInput
from simclr_ray.data.prepare.writer import require_writable
from simclr_ray.storage import object_store
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.object_store import Refused
from store_contents import OPERATIONS, assert_a_killed_run_ends_as_one_in_a_folder, assert_keeps_files


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
    assert_a_killed_run_ends_as_one_in_a_folder(folder, tmp_path, lambda: store.fail(Fault.ANSWER, 2))
