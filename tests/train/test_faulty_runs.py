"""A run whose object store fails for half a minute: saves are delayed, training goes on, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import sleep

import pytest

from commands import finish, start, wait_until
from faulty_store import BUCKET, Fault, FaultyStore, faulty_store, moto_with_bucket
from same import assert_same_as_one_worker
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows

OUTAGE_S = 30.0
FLOAT64 = {
    "train.precision": "float64",
    "train.epochs": 40,
    "evaluate.every-epochs": 0,
    "resources.cpus-per-worker": 1,
    "resources.data-cpus": 1,
    "resources.cache-gib": 0,
    "saving.every-s": 3,
    "saving.every-steps": 1000,
    "logging.ledger": True,
}


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyStore]:
    with moto_with_bucket() as endpoint, faulty_store(endpoint) as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
        yield store


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault.ANSWER, Fault.STALL])
def test_an_outage_in_the_middle_delays_and_loses_nothing(fault: Fault, store: FaultyStore, tmp_path: Path) -> None:
    storage = f"s3://{BUCKET}/{fault.name.lower()}"
    run = open_location(f"{storage}/run")
    process = start(storage, "run", 1, **FLOAT64)
    wait_until(lambda: len(read_rows(run / "metrics.jsonl")) >= 10, process, "ten steps are saved")
    store.fail(fault, count=1_000_000, stall_s=OUTAGE_S)
    sleep(OUTAGE_S)
    store.fail(fault, count=0)
    code, _, err = finish(process, 300)
    assert code == 0, err
    events = read_rows(run / "events.jsonl")
    assert [e["event"] for e in events if e["event"] in ("attempt", "failure")] == ["attempt"], "no restart"
    slowest = max(event["seconds"] for event in events if event["event"].startswith("save"))
    failed = sum(event["event"] == "save_failed" for event in events)
    print(f"{fault.name}: the slowest save took {slowest:.0f} s, {failed} failed")
    assert slowest > 5, "the outage met a save"
    assert_same_as_one_worker(run, tmp_path / "alone")
