"""The address alone names a store, credentials come from the standard places, and no secret is repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from faulty_store import BUCKET, SECRETS, Fault, FaultyStore, faulty_store, moto_with_bucket
from simclr_ray.config import BadInput
from simclr_ray.data.dataset import SliceReader, open_dataset
from simclr_ray.storage import object_store
from simclr_ray.storage.location import open_location

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SCRIPT = Path(__file__).parents[2] / "experiments" / "prepare.py"


@pytest.fixture(scope="module", autouse=True)
def endpoint() -> Iterator[str]:
    with moto_with_bucket() as url:
        yield url


@pytest.fixture
def store(endpoint: str) -> Iterator[FaultyStore]:
    with faulty_store(endpoint) as store:
        yield store


@pytest.mark.parametrize(
    "bad",
    [
        f"s3://AKIAEXAMPLE:{SECRET}@bucket/x?region=us-east-1",
        f"s3://AKIAEXAMPLE:{SECRET.replace('/', '')}@bucket/x?region=us-east-1",
        f"s3://{SECRET}@bucket/x",
        f"s3://bucket/x?region=us-east-1&secret_key={SECRET}",
        f"s3://bucket/x?access_key=A&secret_key={SECRET}&session_token={SECRET}",
        f"s3://bucket/x?{SECRET}",
        f"s3://bucket/x?endpoint_override=http://me:{SECRET}@127.0.0.1:9",
        f"s3://A:b#{SECRET}@bucket/x",
        f"s3://[{SECRET}/x",
        f"gs://me:{SECRET}@bucket/x",
        f"gs://bucket/x?access_token={SECRET}",
        f"abfs://:{SECRET}@account.dfs.core.windows.net/x",
        f"abfs://c@account.dfs.core.windows.net/x?sig={SECRET}",
        f"abfs://c@account.dfs.core.windows.net/x?client_id=a&tenant_id=b&client_secret={SECRET}",
        f"s4://me:{SECRET}@bucket/x",
    ],
)
def test_a_uri_with_a_secret_is_refused_and_not_repeated(bad: str) -> None:
    with pytest.raises(BadInput, match="cannot open") as raised:
        open_location(bad)
    assert "\n" not in str(raised.value)
    for part in SECRET.split("/"):
        assert part not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None  # no traceback shows it either


def test_the_addresses_of_every_kind_of_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, path in [
        ("s3://bucket/a%20b/c/?region=eu-west-1", "bucket/a b/c"),
        ("s3://bucket/a b/é?region=eu-west-1", "bucket/a b/é"),
        ("gs://anonymous@bucket/x/y", "bucket/x/y"),
        ("gs://anonymous@bucket/x?endpoint_override=127.0.0.1:1&scheme=http", "bucket/x"),
        ("abfs://container@account.dfs.core.windows.net/x?credential_kind=anonymous", "container/x"),
        ("abfss://container@account.dfs.core.windows.net/x?credential_kind=anonymous", "container/x"),
    ]:
        location = open_location(address)
        assert (location.path, location.local, str(location)) == (path, None, address)
    with pytest.raises(BadInput, match="give s3://BUCKET/PATH, after a . any of the options region, endpoint_override"):
        open_location("s3://bucket/x?regoin=eu-west-1")


def test_the_endpoint_may_stand_in_the_environment(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
    store.fail(Fault.ANSWER, 0)
    open_location(f"s3://{BUCKET}/environment").write_bytes(b"x")
    assert store.requests == [f"PUT /{BUCKET}/environment"]


def test_without_an_endpoint_the_bucket_tells_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.0)
    monkeypatch.setattr(object_store, "REFUSAL_PATIENCE_S", 0.0)
    monkeypatch.setattr(object_store.fs, "resolve_s3_region", lambda bucket: f"of-{bucket}")
    assert open_location("s3://bucket/x").filesystem.region == "of-bucket"

    def fails(bucket: str) -> str:
        raise OSError(f"Bucket '{bucket}' not found")

    monkeypatch.setattr(object_store.fs, "resolve_s3_region", fails)
    with pytest.raises(BadInput, match="Bucket 'nobody' not found"):
        open_location("s3://nobody/x")


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ | environment,
    )


def test_the_command_writes_to_a_store(endpoint: str) -> None:
    done = command("synthetic:64", f"s3://{BUCKET}/command", AWS_ENDPOINT_URL=endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"64 images, labelled, 10 classes, in s3://{BUCKET}/command" in done.stdout
    address = f"s3://{BUCKET}/command?endpoint_override={endpoint}"
    assert sum(table.num_rows for table in SliceReader(open_dataset(address)).rows(0, 64)) == 64
    assert not any(secret in done.stdout for secret in SECRETS)
    for entry in open_location(address).files():
        content = (open_location(address) / entry.name).read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS)


@pytest.fixture
def authentication(endpoint: str) -> Iterator[None]:
    """moto asks who is there, as AWS does."""

    def after(requests: bytes) -> None:
        plain = {"Content-Type": "text/plain"}
        urlopen(Request(f"{endpoint}/moto-api/reset-auth", data=requests, headers=plain), timeout=10).close()

    after(b"0")
    yield
    after(b"inf")


@pytest.mark.parametrize("place", ["destination", "source"])
def test_wrong_credentials_are_one_line_and_exit_2(
    endpoint: str, authentication: None, tmp_path: Path, place: str
) -> None:
    address = f"s3://{BUCKET}/wrong?endpoint_override={endpoint}"
    arguments = ("synthetic:64", address) if place == "destination" else (address, str(tmp_path / "x"))
    wrong = {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": f"token-{SECRET}"}
    done = command(*arguments, **wrong)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: cannot ")
    assert f"s3://{BUCKET}/wrong" in done.stderr
    assert "AWS Error" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any(part in done.stdout + done.stderr for part in SECRET.split("/"))
