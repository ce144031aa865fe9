"""Jobs on a cluster as clusters/ sets one up: a head that never trains, a token, and everything in an object store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import boto3
import pytest

from cluster_process import ClusterProcess, cluster_process
from commands import FAST, ROOT, SETTINGS
from moto_server import CREDENTIALS, moto_server
from same import assert_same_as_one_worker
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import read_rows

BIN = Path(sys.executable).parent
FLOAT64 = SETTINGS | {
    "data.train": "synthetic:512",
    "train.precision": "float64",
    "train.epochs": 120,
    "evaluate.every-epochs": 0,
    "resources.min-workers": 1,
    "resources.max-workers": 2,
    "resources.cpus-per-worker": 1.5,
    "saving.every-steps": 1000,
    "saving.every-s": 4,
    "resources.cache-gib": 0.0,
}


@dataclass(frozen=True)
class Jobs:
    """A cluster, what a laptop needs to reach it, and the storage of its runs."""

    cluster: ClusterProcess
    laptop: dict[str, str]
    storage: str

    def ray(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        line = [str(BIN / "ray"), "job", *words]
        return subprocess.run(line, env=self.laptop | environment, capture_output=True, text=True, timeout=400)

    def submit(self, *words: str, job: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        flags = [] if wait else ["--no-wait"]
        return self.ray("submit", *flags, "--submission-id", job, "--working-dir", str(ROOT), "--", *words)

    def pretrain(self, job: str, run: str, *, wait: bool, **changes: object) -> subprocess.CompletedProcess[str]:
        flags = [word for key, value in (FLOAT64 | changes).items() for word in (f"--{key}", str(value))]
        line = ["python", "experiments/pretrain.py", "quickstart", *flags, "--logging.ledger", "--name", run]
        return self.submit(*line, "--storage", self.storage, job=job, wait=wait)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    home = tmp_path_factory.mktemp("home")
    with moto_server() as url, pytest.MonkeyPatch.context() as patch:
        store = CREDENTIALS | {"AWS_ENDPOINT_URL": url}
        store.pop("NO_PROXY")  # nodes reach each other under other addresses
        for key, value in store.items():
            patch.setenv(key, value)  # the tests read the store too
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="bucket")
        nodes = FAST | store | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        with cluster_process(home, nodes) as cluster:
            laptop = os.environ | {"HOME": str(home), "RAY_AUTH_MODE": "token"}
            laptop |= {"RAY_API_SERVER_ADDRESS": cluster.dashboard}
            laptop.pop("RAY_ADDRESS")
            jobs = Jobs(cluster, laptop, "s3://bucket/runs")
            deadline = monotonic() + 60
            while (submitted := jobs.ray("submit", "--no-wait", "--", "true")).returncode:
                assert monotonic() < deadline, submitted.stderr[-2000:]
            yield jobs


def test_a_submission_without_the_token_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    refused = jobs.ray("submit", "--", "python", "-c", "print(1)", HOME=str(tmp_path), RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "Unauthorized" in refused.stdout + refused.stderr


def test_a_jobs_failure_is_passed_on(jobs: Jobs) -> None:
    wrong = jobs.submit("python", "experiments/pretrain.py", "quickstrt", job="wrong")
    assert wrong.returncode != 0
    assert "did you mean quickstart?" in wrong.stdout
    code = "from ray.job_submission import *; print(JobSubmissionClient().get_job_info('wrong').driver_exit_code)"
    queried = subprocess.run([sys.executable, "-c", code], env=jobs.laptop, capture_output=True, text=True, timeout=60)
    assert queried.stdout.strip() == "2", queried.stderr


@pytest.mark.slow
def test_a_run_survives_a_lost_node_and_a_stopped_job(jobs: Jobs, tmp_path: Path) -> None:
    for _ in range(2):
        jobs.cluster.add()
    run = open_location(f"{jobs.storage}/run")
    assert jobs.pretrain("first", "run", wait=False).returncode == 0
    wait_for(lambda: step_of(run) >= 20, "twenty steps by two workers", jobs, "first")
    assert [e["workers"] for e in read_rows(run / "events.jsonl") if e["event"] == "start"] == [2]

    jobs.cluster.kill(1)
    wait_for(lambda: restarts(run) == [1], "one worker has gone on", jobs, "first")
    before = step_of(run)
    wait_for(lambda: step_of(run) >= before + 20, "twenty more steps", jobs, "first")

    assert jobs.ray("stop", "first").returncode == 0
    again = jobs.pretrain("second", "run", wait=True)
    assert again.returncode == 0, again.stdout[-3000:]
    assert "done at step 480" in again.stdout
    assert restarts(run) == [1, 1]
    listed = subprocess.check_output(
        [sys.executable, str(ROOT / "experiments/status.py"), "--storage", jobs.storage], text=True
    )
    assert "finished" in listed
    assert_same_as_one_worker(run, tmp_path / "alone")


@pytest.mark.slow
def test_cpu_nodes_augment_for_a_training_node_without_spare_cpus(jobs: Jobs) -> None:
    """After the previous test one node of two CPUs is left, both of which the worker takes."""
    feeding = {jobs.cluster.add(1) for _ in range(2)}
    settings = {
        "resources.max-workers": 1,
        "resources.cpus-per-worker": 2,
        "resources.data-cpus": 2,
        "train.epochs": 120,
    }
    assert jobs.pretrain("fed", "fed", wait=False, **settings).returncode == 0
    run = open_location(f"{jobs.storage}/fed")
    wait_for(lambda: step_of(run) >= 20, "twenty steps", jobs, "fed")
    code = """
from ray.util.state import list_actors
for actor in list_actors(filters=[("state", "=", "ALIVE")], detail=True):
    print(actor.node_id, actor.class_name)
"""
    listed = subprocess.run([sys.executable, "-c", code], env=jobs.laptop, capture_output=True, text=True, timeout=60)
    placed = [line.split(maxsplit=1) for line in listed.stdout.splitlines()]
    loading = {node for node, name in placed if "_Load" in name}
    training = {node for node, name in placed if "RayTrainWorker" in name}
    assert jobs.ray("stop", "fed").returncode == 0
    assert loading == feeding, listed.stdout + listed.stderr
    assert len(training) == 1
    assert not training & feeding


def step_of(run: Location) -> int:
    """The last logged step; on an object store the log is written at each save."""
    rows = read_rows(run / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def restarts(run: Location) -> list[int]:
    return [event["workers"] for event in read_rows(run / "events.jsonl") if event["event"] == "restore"]


def wait_for(happened: Any, what: str, jobs: Jobs, job: str, timeout_s: float = 200.0) -> None:
    deadline = monotonic() + timeout_s
    while not happened():
        assert monotonic() < deadline, f"timed out waiting for {what}: {jobs.ray('logs', job).stdout[-3000:]}"
        sleep(0.5)
