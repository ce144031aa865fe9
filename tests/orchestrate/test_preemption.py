"""The watcher: each notice is acted on once, retried until accepted, and reaches rank 0 through a real cluster."""

from __future__ import annotations

import math
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from time import monotonic, sleep, time
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from fake_metadata import FakeMetadata, fake_metadata
from simclr_ray.cloud_notice import NoAnswer, Notice, Risk
from simclr_ray.orchestrate.preemption import watcher as preemption
from simclr_ray.orchestrate.preemption.drain import drain_here, draining, nodes_here, save_requested_at
from simclr_ray.orchestrate.preemption.watcher import watch

TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)
RISK, TIMEOUT = Risk("risk"), NoAnswer("timeout")


class Machine:
    """Poll, drain and save of a machine: polls give `answers`, then SIGINT; drain and save fail `fails` times first."""

    def __init__(self, *answers: Notice | Risk | NoAnswer | None, fails: int = 0) -> None:
        self.answers, self.fails = list(answers), fails
        self.drains: list[tuple[str, float]] = []
        self.saves = 0
        self.signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def poll(self) -> Notice | Risk | None:
        if not self.answers:
            self.signals.put(INT)
            return None
        answer = self.answers.pop(0)
        if isinstance(answer, NoAnswer):
            raise answer
        return answer

    def drain(self, reason: str, deadline: float) -> list[str]:
        self._may_fail()
        self.drains.append((reason, deadline))
        return ["node"]

    def save(self) -> None:
        self._may_fail()
        self.saves += 1

    def _may_fail(self) -> None:
        self.fails -= 1
        if self.fails >= 0:
            raise NoAnswer("no head")

    def watch(self, *, after: float | None = None, number: int = TERM, grace_s: float = 60.0) -> float:
        """Seconds until the watch ended; `after` so many seconds the signal `number` comes."""
        start = monotonic()
        if after is not None:
            threading.Timer(after, self.signals.put, [number]).start()
        watch(self.poll, self.drain, self.save, self.signals, poll_s=0.01, grace_s=grace_s)
        return monotonic() - start


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "RETRY_S", 0.05)
    monkeypatch.setattr(preemption, "LEAVE_BEFORE_S", 0.2)


def test_a_notice_drains_once_and_the_watch_ends_shortly_before_the_deadline() -> None:
    notice = Notice("spot", time() + 1.0)
    machine = Machine(None, notice)
    assert 0.5 < machine.watch() < 1.0
    assert machine.drains == [("spot", notice.deadline)]
    assert machine.saves == 0


def test_failed_requests_are_retried_and_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(TIMEOUT, TIMEOUT, TIMEOUT, None, None, TIMEOUT, Notice("spot", time()))
    machine.watch()
    assert len(machine.drains) == 1
    lines = [line.split("preemption: ")[1] for line in capsys.readouterr().err.splitlines()]
    assert lines[:3] == [
        "request failed, retrying: timeout",
        "requests succeed again",
        "request failed, retrying: timeout",
    ]
    assert lines[4:] == ["drained node", "the deadline ends the wait, drained"]


def test_each_risk_requests_one_save_and_drains_nothing() -> None:
    machine = Machine(RISK, RISK, None, RISK, Risk("another"), RISK)
    machine.watch()
    assert (machine.saves, machine.drains) == (2, [])


def test_a_failed_save_request_is_retried() -> None:
    machine = Machine(RISK, RISK, RISK, RISK, fails=2)
    machine.watch()
    assert machine.saves == 1


def test_a_drain_is_retried_until_it_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(Notice("spot", time() + 1.0), fails=3)
    machine.watch()
    assert len(machine.drains) == 1
    assert capsys.readouterr().err.count("not drained yet: no head") == 3


def test_a_drain_is_given_up_at_the_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(Notice("spot", time() + 0.6), fails=10**6)
    assert machine.watch() < 0.6
    assert 3 < 10**6 - machine.fails < 12
    assert "the deadline ends the wait, not drained" in capsys.readouterr().err


def test_a_deadline_that_has_passed_still_drains() -> None:
    machine = Machine(Notice("spot", time() - 5))
    machine.watch()
    assert len(machine.drains) == 1


def test_sigterm_is_a_notice_with_the_grace_period_as_deadline() -> None:
    machine = Machine(*[None] * 10**3)
    assert 0.6 < machine.watch(after=0.1, grace_s=0.8) < 0.9
    [(reason, deadline)] = machine.drains
    assert reason == "SIGTERM"
    assert deadline == pytest.approx(time() + 0.2, abs=0.15)


def test_sigterm_after_a_notice_moves_the_deadline_only_forward() -> None:
    machine = Machine(Notice("spot", time() + 60))
    assert machine.watch(after=0.1, grace_s=0.5) < 0.6
    assert [reason for reason, _ in machine.drains] == ["spot", "SIGTERM"]
    late = Notice("spot", time() + 0.5)
    machine = Machine(late)
    assert machine.watch(after=0.1, grace_s=60) < 0.5
    assert machine.drains == [("spot", late.deadline), ("SIGTERM", late.deadline)]


@pytest.mark.parametrize("numbers", [[TERM, TERM], [INT], [TERM, INT]])
def test_a_second_sigterm_or_a_sigint_ends_the_watch(numbers: list[int]) -> None:
    machine = Machine(None)
    for number in numbers:
        machine.signals.put(number)
    assert machine.watch() < 0.5
    assert len(machine.drains) == (TERM in numbers)


def test_sigint_ends_the_wait_for_a_deadline() -> None:
    machine = Machine(Notice("spot", time() + 60))
    assert machine.watch(after=0.1, number=INT) < 0.5
    assert [reason for reason, _ in machine.drains] == ["spot"]


@ray.remote(num_cpus=1)
class Busy:
    """Holds a node: an idle one would leave as soon as it is drained."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, list[str]]]:
    """The address, and the ids of two busy nodes beside the head."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        actors = [Busy.remote() for _ in range(2)]
        yield cluster.address, ray.get([actor.node.remote() for actor in actors], timeout=30)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def fake() -> Iterator[FakeMetadata]:
    with fake_metadata() as fake:
        yield fake


@pytest.fixture
def watcher(cluster: tuple[str, list[str]], fake: FakeMetadata) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command on the cluster and the fake metadata server, and waits until it watches."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        places = ["--metadata", fake.base, "--address", cluster[0], "--poll-s", "0.1"]
        command = [sys.executable, "-m", "simclr_ray.orchestrate.preemption", *places, *arguments]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        assert started[-1].stderr
        assert "watching" in started[-1].stderr.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(poll: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The result of `poll` once it is not empty. An assertion fails if it stays so."""
    until = monotonic() + seconds
    while not (value := poll()):
        assert monotonic() < until
        sleep(0.02)
    return value


def test_the_nodes_of_this_machine_are_found(cluster: tuple[str, list[str]]) -> None:
    address, busy = cluster
    head = ray.get_runtime_context().get_node_id()
    assert sorted(nodes_here(address, None)) == sorted([head, *busy])
    assert nodes_here(address, busy[1]) == [busy[1]]


def test_unknown_nodes_and_unreachable_clusters_raise_no_answer(cluster: tuple[str, list[str]]) -> None:
    with pytest.raises(NoAnswer, match="none of the cluster's 3 nodes is abab"):
        drain_here(cluster[0], "ab" * 28, "test", time() + 60)
    start = monotonic()
    with pytest.raises(NoAnswer, match="refused"):
        drain_here("127.0.0.1:1025", None, "test", time() + 60)
    assert monotonic() - start < 5
    assert draining() == {}


def test_a_recommendation_to_rebalance_reaches_rank_0_as_one_save(
    fake: FakeMetadata, watcher: Callable[..., subprocess.Popen[str]]
) -> None:
    assert save_requested_at() is None
    process = watcher("--cloud", "aws")
    fake.rebalance = {"noticeTime": "2026-11-20T11:58:00Z"}
    first = wait_for(save_requested_at)
    assert first == pytest.approx(time(), abs=2)
    sleep(0.5)
    assert (save_requested_at(), draining()) == (first, {})
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0


def test_a_notice_drains_the_watched_node_and_no_other(
    cluster: tuple[str, list[str]], fake: FakeMetadata, watcher: Callable[..., subprocess.Popen[str]]
) -> None:
    first = cluster[1][0]
    process = watcher("--cloud", "aws", "--node-id", first)
    assert draining() == {}
    deadline = int(time()) + 120
    start = monotonic()
    fake.instance_action = {
        "action": "terminate",
        "time": f"{datetime.fromtimestamp(deadline, UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    assert wait_for(draining) == {first: deadline}
    print(f"seen after {monotonic() - start:.3f} s")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0
    assert process.stderr
    assert re.fullmatch(
        r"\S+Z preemption: EC2 will terminate this spot instance: 1\d\d\.\d s left\n"
        rf"\S+Z preemption: drained {first}\n"
        r"\S+Z preemption: SIGINT ends the wait, drained\n",
        process.stderr.read(),
    )


def test_sigterm_drains_and_the_watcher_exits_by_itself(
    cluster: tuple[str, list[str]], watcher: Callable[..., subprocess.Popen[str]]
) -> None:
    first, second = cluster[1]
    process = watcher("--cloud", "none", "--node-id", second, "--grace-s", "3")
    start, deadline = monotonic(), time() + 3
    process.terminate()
    assert wait_for(lambda: draining().get(second)) == pytest.approx(deadline, abs=0.5)
    assert first in draining()
    assert process.wait(5) == 0
    assert 1 < monotonic() - start < 3


def test_a_drain_without_a_deadline_has_an_infinite_one(cluster: tuple[str, list[str]]) -> None:
    drain_here(cluster[0], cluster[1][1], "test", 0.0)
    assert draining()[cluster[1][1]] == math.inf


def test_an_invalid_address_is_an_error_of_one_line() -> None:
    command = [sys.executable, "-m", "simclr_ray.orchestrate.preemption", "--cloud", "none", "--address", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: --address nowhere: .*\n", done.stderr), done.stderr
