"""An object store is read and written through its faults, and never holds half a file."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import boto3
import pyarrow as pa
import pytest

from faulty_store import BUCKET, SECRETS, Fault, FaultyStore, faulty_store, moto_with_bucket
from simclr_ray.config import BadInput
from simclr_ray.data.dataset import Dataset, SliceReader, open_dataset
from simclr_ray.data.prepare.build import in_threads, ordered_work, write_dataset
from simclr_ray.data.prepare.source import open_source
from simclr_ray.data.prepare.writer import require_writable
from simclr_ray.storage import object_store
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.object_store import Refused, with_retries
from store_contents import assert_keeps_files

PART = 10 * 2**20  # what pyarrow sends at once


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_with_bucket() as url:
        yield url


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The proxy; all patience is ours, for the client gives up a request after a second and tries no other."""
    monkeypatch.setattr(object_store, "REQUEST_TIMEOUT_S", 1.0)
    monkeypatch.setattr(object_store, "CLIENT_ATTEMPTS", 1)
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.05)
    with faulty_store(endpoint) as store:
        yield store


def uri(store: FaultyStore, path: str) -> str:
    return f"s3://{BUCKET}/{path}?endpoint_override={store.address}&scheme=http"


@pytest.fixture
def folder(store: FaultyStore, request: pytest.FixtureRequest) -> Location:
    """A prefix of its own for each test."""
    return open_location(uri(store, f"{abs(hash(request.node.name)):x}"))


def test_what_was_written_is_read_listed_and_deleted(folder: Location) -> None:
    assert_keeps_files(folder, large=2 * PART + 1)
    pickled = pickle.dumps(folder)
    assert not any(secret.encode() in pickled for secret in SECRETS)


def test_a_file_is_read_from_anywhere(folder: Location) -> None:
    (folder / "x").write_bytes(bytes(range(100)))
    with (folder / "x").reading() as file:
        assert (file.read(3), file.tell()) == (b"\0\1\2", 3)
        assert (file.seek(-10, io.SEEK_END), file.read(4), file.read()) == (90, b"Z[\\]", bytes(range(94, 100)))
        assert (file.read(5), file.seek(200), file.read()) == (b"", 200, b"")
        assert (file.seek(10), file.seek(5, io.SEEK_CUR), file.read(1), file.closed) == (10, 15, b"\x0f", False)
    assert file.closed


def test_small_files_take_one_request(store: FaultyStore, folder: Location) -> None:
    store.fail(Fault.ANSWER, 0)
    (folder / "x").write_bytes(b"x" * 1000)
    assert [request.split()[0] for request in store.requests] == ["PUT"]


OPERATIONS: dict[str, tuple[str, Callable[[Location], object]]] = {
    "info": ("HEAD", lambda folder: (folder / "x").size()),
    "read": ("GET", lambda folder: (folder / "x").read_bytes()),
    "list": ("GET", lambda folder: [entry.name for entry in folder.files()]),
    "folders": ("GET", lambda folder: folder.folders()),
    "write": ("PUT", lambda folder: (folder / "y").write_bytes(b"y")),
    "large": ("PUT", lambda folder: (folder / "y").write_bytes(b"y" * (PART + 1))),
    "delete": ("DELETE", lambda folder: (folder / "x").delete()),
    "empty": ("POST", lambda folder: folder.delete()),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", [Fault.ANSWER, Fault.RESET])
def test_every_operation_outlasts_a_fault(store: FaultyStore, folder: Location, operation: str, fault: Fault) -> None:
    (folder / "x").write_bytes(b"content")
    method, run = OPERATIONS[operation]
    expected = run(folder)
    (folder / "x").write_bytes(b"content")
    store.fail(fault, 3, method)
    assert run(folder) == expected
    assert sum(request.startswith(f"{method} ") for request in store.requests) > 3


@pytest.mark.parametrize(("method", "fault"), [("GET", Fault.STALL), ("GET", Fault.CUT), ("PUT", Fault.STALL)])
def test_a_connection_that_stalls_or_breaks_is_given_up(
    store: FaultyStore, folder: Location, method: str, fault: Fault
) -> None:
    content = os.urandom(100_000)
    (folder / "x").write_bytes(content)
    store.fail(fault, 1 if method == "PUT" else 3, method, stall_s=30.0)
    start = monotonic()
    if method == "PUT":
        (folder / "x").write_bytes(content)
    assert (folder / "x").read_bytes() == content
    assert monotonic() - start < 15.0


def test_patience_has_an_end_and_one_line(
    store: FaultyStore, folder: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_S", 2.0)
    store.fail(Fault.ANSWER, 1000)
    start = monotonic()
    with pytest.raises(OSError, match=r"^s3://bucket/\S+: AWS Error SLOW_DOWN during PutObject") as raised:
        (folder / "x").write_bytes(b"x")
    assert 1.0 < monotonic() - start < 8.0
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, BadInput)
    assert len(caplog.messages) == 1
    assert "trying again for 2 s" in caplog.messages[0]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken"])
def test_a_refusal_is_told_at_once(
    store: FaultyStore, folder: Location, monkeypatch: pytest.MonkeyPatch, operation: str, code: str
) -> None:
    monkeypatch.setattr(object_store, "REFUSAL_PATIENCE_S", 0.2)
    (folder / "x").write_bytes(bytes(1000))  # of a read shorter than the refusal, pyarrow reports another error
    method, run = OPERATIONS[operation]
    store.fail(Fault.ANSWER, 1000, method, status=400 if code == "ExpiredToken" else 403, code=code)
    start = monotonic()
    with pytest.raises(Refused, match=r"^s3://bucket/\S+: AWS Error \w+ .*during") as raised:
        run(folder)
    assert isinstance(raised.value, BadInput)
    assert "\n" not in str(raised.value)
    assert monotonic() - start < 2.0
    assert pickle.loads(pickle.dumps(raised.value)).args == raised.value.args  # it comes from Ray's workers


def test_a_bucket_that_is_not_there_is_refused(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "REFUSAL_PATIENCE_S", 0.2)
    missing = open_location(uri(store, "x").replace(f"//{BUCKET}", "//nobody"))
    with pytest.raises(Refused, match="NO_SUCH_BUCKET"):
        missing.write_bytes(b"x")
    with pytest.raises(BadInput, match="cannot write to s3://nobody/x"):
        require_writable(missing)


@pytest.mark.parametrize(
    ("text", "kind"),
    [  # as pyarrow 26 said them
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of ...)", OSError),
        ("... Azure Error: [ServerBusy] 503 Service Unavailable\nwords\nRequest ID: r", OSError),
        ("... Azure Error: [] Fail to get a new connection for: http://127.0.0.1:1.", OSError),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", OSError),
        ("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation: No response body.", OSError),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached", OSError),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: No response body.", Refused),
        ("... Azure Error: [AuthenticationFailed] 403 Forbidden\n\nRequest ID: r", Refused),
        ("... Azure Error: [ContainerNotFound] 404 Not Found\nwords\nRequest ID: r", Refused),
        ("AWS Error RESOURCE_NOT_FOUND during GetObject operation: ", FileNotFoundError),
    ],
)
def test_the_words_of_other_stores_are_understood(
    text: str, kind: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.0)
    monkeypatch.setattr(object_store, "REFUSAL_PATIENCE_S", 0.0)

    def fails() -> None:
        raise OSError(text)

    with pytest.raises(OSError) as raised:  # noqa: PT011
        with_retries("where", fails)
    assert type(raised.value) is kind
    with pytest.raises(Refused):
        with_retries(
            "where", lambda: (_ for _ in ()).throw(PermissionError(13, "google::cloud::Status(PERMISSION_DENIED"))
        )


@pytest.mark.parametrize("size", [10, 2 * PART + 1])
def test_an_error_while_writing_leaves_the_old_file(endpoint: str, folder: Location, size: int) -> None:
    file = folder / "x"
    file.write_bytes(b"old")

    def write_half() -> None:
        with file.writing() as stream:
            stream.write(b"n" * size)
            raise KeyError("half way")

    with pytest.raises(KeyError):
        write_half()
    assert file.read_bytes() == b"old"
    with file.writing() as stream:
        stream.write(b"n" * size)
    assert file.read_bytes() == b"n" * size
    client = boto3.client("s3", endpoint_url=endpoint)
    prefix = file.path.partition("/")[2]
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)


def test_an_upload_that_fails_leaves_the_old_file(
    store: FaultyStore, folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_S", 1.0)
    file = folder / "x"
    file.write_bytes(b"old")
    for method, path in (("PUT", "partNumber=2"), ("POST", "uploadId=")):
        store.fail(Fault.ANSWER, 1000, method, path)
        with pytest.raises(OSError, match="SLOW_DOWN"):
            file.write_bytes(b"n" * (3 * PART))
        store.fail(Fault.ANSWER, 0)
        assert file.read_bytes() == b"old"


def prepared(spec: str, dest: Location) -> Dataset:
    source = open_source(spec)
    require_writable(dest)
    checked = in_threads(source, ordered_work(source, 0), None)
    return write_dataset(source, dest, checked, seed=0, max_side=None, slice_rows=8)


def rows(dataset: Dataset) -> pa.Table:
    return pa.concat_tables(SliceReader(dataset).rows(0, dataset.rows))


def test_a_dataset_is_made_and_read_through_faults(store: FaultyStore, folder: Location, tmp_path: Path) -> None:
    expected = prepared("synthetic:64", open_location(str(tmp_path / "here")))
    store.fail(Fault.ANSWER, 4)
    dataset = prepared("synthetic:64", folder / "there")
    assert dataset.fingerprint == expected.fingerprint
    reader, tables = SliceReader(pickle.loads(pickle.dumps(open_dataset((folder / "there").uri)))), []
    for g in range(8):
        store.fail([Fault.CUT, Fault.RESET][g % 2], 2, "GET")
        tables.append(reader.read_slice(g))
    assert pa.concat_tables(tables) == rows(expected)


@pytest.mark.parametrize("kind", ["images", "Parquet", "tars"])
def test_sources_are_read_through_faults(store: FaultyStore, folder: Location, tmp_path: Path, kind: str) -> None:
    made = rows(prepared("synthetic:24", open_location(str(tmp_path / "made"))))
    place = folder / "in"
    if kind == "Parquet":
        (place / "a.parquet").write_bytes((tmp_path / "made" / "shard-00000.parquet").read_bytes())
    elif kind == "images":
        for path, image in zip(made["path"], made["image"], strict=True):
            (place / f"class {path.as_py().replace('/', '-')[-1]}/{path}.png").write_bytes(image.as_py())
    else:
        with (place / "a.tar").writing() as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            for i, image in enumerate(made["image"].to_pylist()):
                member = tarfile.TarInfo(f"{i:03d}.png")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))
    source = open_source(place.uri)
    store.fail(Fault.ANSWER, 3, "GET")
    read = pa.concat_tables(source.read(source.work))
    assert sorted(read["image"].to_pylist()) == sorted(made["image"].to_pylist())
