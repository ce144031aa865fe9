"""Which failures of an attempt end the run, for errors as Ray Train builds them."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from torch.distributed import DistNetworkError

from simclr_ray.config import BadInput
from simclr_ray.membership.coordinator import Members
from simclr_ray.orchestrate import failure, group, group_failure, interrupt
from simclr_ray.orchestrate.failure import ATTEMPTS
from simclr_ray.orchestrate.group_failure import GivenUp, StopOnFailure, cause_of, lost_while_starting
from simclr_ray.orchestrate.survivors import RunEnded
from simclr_ray.planning.shares import Share
from simclr_ray.storage.location import open_location
from simclr_ray.train.control import Interrupted
from simclr_ray.train.memory import TooLittleMemory

WORKER_DIED = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
MOST_WORKERS = 4
NODE_DIED = "The actor died because its node has died. Node Id: 0ab0a9"


def died(words: str) -> Exception:
    """A worker's death as the controller's poll reports it."""
    error = ActorDiedError()
    error.error_msg = words
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=error)


def raised(error: Exception) -> Exception:
    return UserExceptionWithTraceback(error, traceback_str="")


@pytest.fixture
def stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int | None]:
    """After how many attempts with these errors the run ends; `losing`: each attempt also loses a node."""

    def attempts(*errors: Exception, losing: bool = False, most: int = 3 * ATTEMPTS) -> int | None:
        nodes = {str(number) for number in range(most + 1)}
        monkeypatch.setattr(group_failure, "_nodes", lambda: set(nodes))
        monkeypatch.setattr(failure.internal_kv, "_internal_kv_put", lambda *_, **__: None)
        monkeypatch.setattr(group_failure, "members_of", lambda driver: Members())
        callback = StopOnFailure(open_location(str(tmp_path)), "driver", MOST_WORKERS)
        for attempt in range(1, most + 1):
            if losing:
                nodes.pop()
            try:
                callback.after_exception(None, dict(enumerate(errors)))
            except GivenUp:
                return attempt
        return None

    return attempts


def test_a_worker_that_others_survive_never_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = [1] * 9 + [0] * ATTEMPTS
    monkeypatch.setattr(group_failure, "_nodes", lambda: {"node"})
    monkeypatch.setattr(failure.internal_kv, "_internal_kv_put", lambda *_, **__: None)
    monkeypatch.setattr(group_failure, "members_of", lambda driver: Members(training=training.pop(0)))
    callback = StopOnFailure(open_location(str(tmp_path)), "driver", MOST_WORKERS)
    for _ in range(9 + ATTEMPTS - 1):
        callback.after_exception(None, {0: died(WORKER_DIED)})
    with pytest.raises(GivenUp):
        callback.after_exception(None, {0: died(WORKER_DIED)})


def test_lost_nodes_and_planned_ends_never_end_a_run(stop: Callable[..., int | None]) -> None:
    assert stop(died(NODE_DIED), raised(RuntimeError("Connection closed by peer"))) is None
    assert stop(died(WORKER_DIED), losing=True) is None
    assert stop(raised(Interrupted("RESIZE"))) is None
    lost = WorkerHealthCheckFailedError("A worker health check failed.", failure=ActorUnavailableError("gone", None))
    assert stop(lost) is None


def test_repeated_failures_end_the_run_at_the_third_attempt(stop: Callable[..., int | None]) -> None:
    assert stop(died(WORKER_DIED), raised(RuntimeError("Connection closed by peer"))) == ATTEMPTS
    assert stop(raised(ValueError("a bug"))) == ATTEMPTS


def test_bad_input_ends_the_run_at_once(stop: Callable[..., int | None]) -> None:
    assert stop(died(NODE_DIED), raised(BadInput("no such file"))) == 1


def too_little_memory(workers: int) -> Exception:
    error = TooLittleMemory("a pass does not fit")
    error.workers = workers
    return raised(pickle.loads(pickle.dumps(error)))


def test_too_few_workers_for_a_pass_are_no_bad_input_while_more_may_come(stop: Callable[..., int | None]) -> None:
    assert stop(too_little_memory(3), too_little_memory(3)) == ATTEMPTS  # more have not come: the same again
    assert stop(too_little_memory(MOST_WORKERS)) == 1
    assert stop(too_little_memory(0)) == 1


def test_each_larger_group_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_failure, "_nodes", set)
    monkeypatch.setattr(failure.internal_kv, "_internal_kv_put", lambda *_, **__: None)
    monkeypatch.setattr(group_failure, "members_of", lambda driver: Members())
    callback = StopOnFailure(open_location(str(tmp_path)), "driver", 2 * ATTEMPTS)
    for workers in range(1, 2 * ATTEMPTS):
        callback.after_exception(None, {0: too_little_memory(workers)})
    with pytest.raises(GivenUp):
        callback.after_exception(None, {0: too_little_memory(2 * ATTEMPTS)})


def test_the_cause_is_the_dead_worker_not_the_others_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_failure, "_nodes", set)
    monkeypatch.setattr(failure.internal_kv, "_internal_kv_put", lambda *_, **__: None)
    monkeypatch.setattr(group_failure, "members_of", lambda driver: Members())
    callback = StopOnFailure(open_location(str(tmp_path)), "driver", MOST_WORKERS)
    errors = {0: raised(RuntimeError("Connection closed by peer")), 1: died(WORKER_DIED)}
    for _ in range(ATTEMPTS - 1):
        callback.after_exception(None, errors)
    with pytest.raises(GivenUp) as given_up:
        callback.after_exception(None, errors)
    passed_on = pickle.loads(pickle.dumps(ControllerError(given_up.value)))
    assert isinstance(cause_of(passed_on), RayActorError)
    assert not lost_while_starting(passed_on)


def test_a_worker_lost_while_a_group_starts_is_distinguished_from_giving_up() -> None:
    timed_out = DistNetworkError("the client socket has timed out")
    assert lost_while_starting(ControllerError(timed_out))
    assert lost_while_starting(ControllerError(ActorDiedError()))
    assert not lost_while_starting(ControllerError(GivenUp(timed_out)))
    assert not lost_while_starting(ControllerError(ValueError("a bug")))
    assert not lost_while_starting(ValueError("a bug"))


@pytest.mark.parametrize(("losses", "ends"), [(ATTEMPTS - 1, True), (ATTEMPTS, False)])
def test_a_group_that_could_not_start_is_started_again(
    losses: int, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [ControllerError(DistNetworkError("connection timed out"))] * losses

    def fit() -> None:
        if outcomes:
            raise outcomes.pop()

    monkeypatch.setattr(group, "_trainer", lambda task: SimpleNamespace(fit=fit))
    share = SimpleNamespace(gpus=0, max_workers=1)
    task = SimpleNamespace(run=open_location(str(tmp_path)), share=share)
    if ends:
        group.train_in_group(task)  # type: ignore[arg-type]
        return
    with pytest.raises(DistNetworkError, match="connection timed out"):
        group.train_in_group(task)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        ControllerError(DistNetworkError("a worker was lost while others were started")),
        ControllerError(RunEnded()),  # a lost worker was not replaced
    ],
)
def test_after_ctrl_c_a_run_is_interrupted_whatever_ends_ray_train(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, outcomes = Event(), [error]

    def fit() -> None:
        if outcomes:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.wait(10)
            raise outcomes.pop()
        coordinator.members = Members(finished=True)

    monkeypatch.setattr(group, "_trainer", lambda task: SimpleNamespace(fit=fit))
    monkeypatch.setattr(interrupt, "request_end", lambda run: asked.set())
    task: Any = SimpleNamespace(
        run=open_location(str(tmp_path)), share=Share(min_workers=2, max_workers=2, cpus=1.0, gpus=0.0)
    )
    coordinator: Any = SimpleNamespace(members=Members())
    with pytest.raises(KeyboardInterrupt):
        group._train_with_survivors(task, coordinator)
    assert coordinator.members.finished
