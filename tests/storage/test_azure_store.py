"""abfs:// against Azurite (npm install azurite): as test_google_store. Without `azurite-blob` in the PATH: skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from azure_store import AZURITE, KEY, azure_store, open_there, uri
from faulty_store import Fault, FaultyStore
from simclr_ray.config import BadInput
from simclr_ray.data.prepare.writer import require_writable
from simclr_ray.storage import location, object_store
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.object_store import Refused
from store_contents import OPERATIONS, assert_a_killed_run_ends_as_one_in_a_folder, assert_keeps_files

pytestmark = pytest.mark.skipif(AZURITE is None, reason="azurite-blob is not installed")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStore]:
    with azure_store(tmp_path_factory.mktemp("azurite")) as store:
        yield store


@pytest.fixture
def folder(store: FaultyStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Location]:
    """A prefix of its own for each test."""
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(object_store, "REFUSAL_PATIENCE_S", 0.1)
    monkeypatch.setattr(location, "open_store", lambda address: open_there(store, address))
    yield open_location(uri(f"{abs(hash(request.node.name)):x}"))
    store.fail(Fault.ANSWER, 0)


def test_what_was_written_is_read_listed_and_deleted(folder: Location) -> None:
    assert_keeps_files(folder, large=5_000_000)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_outlasts_a_fault_and_tells_a_refusal_at_once(
    store: FaultyStore, folder: Location, operation: str
) -> None:
    run = OPERATIONS[operation]
    (folder / "x").write_bytes(b"content")
    for status, code in ((401, "AuthenticationFailed"), (403, "AuthorizationFailure")):
        store.fail(Fault.ANSWER, 1000, status=status, code=code)
        with pytest.raises(Refused, match=rf"^abfs://\S+: .*{code}"):
            run(folder)
    store.fail(Fault.ANSWER, 1, status=503, code="ServerBusy")
    run(folder)
    assert len(store.requests) > 1


def test_a_wrong_key_is_refused(store: FaultyStore, folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = KEY.replace("E", "F")
    monkeypatch.setattr(location, "open_store", lambda address: open_there(store, address, wrong))
    for operation in OPERATIONS.values():
        with pytest.raises(Refused, match="AuthorizationFailure"):
            operation(open_location(folder.uri))


def test_a_container_that_is_not_there_is_refused(folder: Location) -> None:
    missing = open_location(uri("x", container="nobody"))
    with pytest.raises(Refused, match="ContainerNotFound"):
        missing.write_bytes(b"x")
    with pytest.raises(BadInput, match="cannot write to abfs://nobody@"):
        require_writable(missing)


def test_a_run_that_is_killed_in_a_faulty_store_ends_as_one_in_a_folder(
    store: FaultyStore, folder: Location, tmp_path: Path
) -> None:
    assert_a_killed_run_ends_as_one_in_a_folder(
        folder, tmp_path, lambda: store.fail(Fault.ANSWER, 2, code="ServerBusy")
    )
