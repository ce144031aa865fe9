"""What Ray Train's controller is told of lost workers, and where others may join beside its own; without a cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from simclr_ray.config import BadInput
from simclr_ray.membership.coordinator import Members
from simclr_ray.orchestrate import newcomers, survivors
from simclr_ray.orchestrate.newcomers import Newcomers, room
from simclr_ray.orchestrate.survivors import ReplaceLost, RunEnded
from simclr_ray.planning.shares import Share
from simclr_ray.train.control import Interrupted

SHARE = Share(min_workers=1, max_workers=4, cpus=1.5, gpus=0.0)
ONE, TWO = {"CPU": 1.5}, {"CPU": 3.0}


@dataclass
class Status:
    """As Ray Train's WorkerStatus."""

    running: bool = True
    error: Exception | None = None


class Poll:
    """As Ray Train's WorkerGroupPollStatus."""

    def __init__(self, *statuses: Status) -> None:
        self.worker_statuses = dict(enumerate(statuses))

    @property
    def errors(self) -> dict[int, Exception]:
        return {rank: status.error for rank, status in self.worker_statuses.items() if status.error}


@pytest.fixture
def replaceable(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Ranks whose nodes are still there; the test may change it."""
    ranks: set[int] = set()
    monkeypatch.setattr(survivors, "members_of", lambda driver: Members(training=1))
    monkeypatch.setattr(ReplaceLost, "_can_be_replaced", lambda self, rank: rank in ranks)
    return ranks


class Replica:
    """As Ray Train's ReplicaGroup."""

    def __init__(self) -> None:
        self.active = True

    def is_active(self) -> bool:
        return self.active

    def shutdown(self) -> None:
        self.active = False


def polled(*statuses: Status) -> tuple[ReplaceLost, Poll]:
    callback, poll = ReplaceLost("driver"), Poll(*statuses)
    replicas = [Replica() for _ in statuses]
    worker_group = SimpleNamespace(
        get_workers=lambda: replicas, get_replica_groups=lambda: replicas, get_latest_poll_status=lambda: poll
    )
    callback.after_worker_group_start(worker_group)
    callback.after_worker_group_poll_status(poll)
    return callback, poll


def lost() -> Status:
    return Status(running=False, error=ActorDiedError())


def test_a_worker_whose_node_is_gone_counts_as_training_until_the_others_have_ended(replaceable: set[int]) -> None:
    _, poll = polled(Status(), lost(), Status(running=False))
    assert poll.worker_statuses[1] == Status()
    _, poll = polled(Status(running=False), lost())
    assert poll.worker_statuses[1] == Status(running=False), "the run has ended well"


def test_a_worker_that_died_on_a_node_which_is_there_is_replaced_whatever_else_is_lost(replaceable: set[int]) -> None:
    replaceable.add(1)
    callback, poll = polled(Status(), lost(), lost())
    assert set(poll.errors) == {1}
    decision = SimpleNamespace(num_workers=2)
    callback.before_controller_execute_resize_decision(decision)
    assert decision.num_workers == 3, "another number would be a restart"
    replicas = callback._group.get_replica_groups()
    assert [replica.active for replica in replicas] == [True, False, False], "Ray asks all others for an answer"


def test_what_ends_a_run_is_never_hidden(replaceable: set[int]) -> None:
    _, poll = polled(Status(), Status(running=False, error=BadInput("another fingerprint")))
    assert set(poll.errors) == {1}


def test_a_planned_end_is_that_of_all(replaceable: set[int]) -> None:
    _, poll = polled(Status(), Status(running=False, error=Interrupted("STOP")), lost())
    assert set(poll.errors) == {0, 1, 2}
    assert not any(status.running for status in poll.worker_statuses.values())


def test_a_replacement_waits_until_its_node_is_there_and_is_left_with_the_run(
    replaceable: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    replaceable.add(1)
    callback, _ = polled(Status(), lost())
    replaceable.clear()
    told = [Members(training=1), Members(training=1), Members(training=1), Members(training=1, finished=True)]
    monkeypatch.setattr(survivors, "MEMBERS_POLL_S", 0.0)
    monkeypatch.setattr(survivors, "members_of", lambda driver: told.pop(0))
    with pytest.raises(RunEnded):
        callback.before_controller_execute_resize_decision(SimpleNamespace(num_workers=2))
    assert not told


def test_with_all_its_own_lost_ray_starts_a_group_again_unless_the_others_have_finished(
    replaceable: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, poll = polled(lost(), lost())
    assert set(poll.errors) == {0, 1}
    decision = SimpleNamespace(num_workers=1)
    callback.before_controller_execute_resize_decision(decision)
    assert decision.num_workers == 1, "what CorrectedPlacement has found"
    monkeypatch.setattr(survivors, "members_of", lambda driver: Members(finished=True))
    with pytest.raises(RunEnded):
        callback.before_controller_execute_resize_decision(decision)


@pytest.mark.parametrize(
    ("fits", "reserved", "there", "found"),
    [
        ({"a": 1, "b": 2}, {}, {}, "abb"),  # nothing is reserved: whatever is free
        ({"a": 0, "b": 1}, {"a": ONE, "b": ONE}, {"a": 1}, "b"),
        ({"a": 0, "b": 2}, {"a": ONE, "b": ONE}, {"a": 1}, "b"),  # the rest of b is another run's
        ({"a": 0, "b": 1}, {"a": ONE}, {"a": 1}, ""),
        ({"a": 0, "c": 2}, {"a": ONE, "gone": ONE}, {"a": 1}, "c"),  # in the place of what was lost, and no more
        ({"a": 0, "c": 1}, {"a": ONE, "gone": ONE}, {"a": 1, "c": 1}, ""),
        ({"a": 0, "c": 1, "d": 1}, {"a": ONE, "gone": TWO}, {"a": 1, "gone": 1}, "cd"),  # its death is not noticed yet
        ({"a": 1}, {"a": TWO}, {"a": 1}, "a"),
    ],
)
def test_others_join_where_the_run_has_room(
    fits: dict[str, int], reserved: dict[str, Any], there: dict[str, int], found: str
) -> None:
    assert room(fits, SHARE, reserved, Counter(there)) == list(found)


def test_a_lost_worker_keeps_its_place_for_ray_s_replacement_but_not_beyond_the_loss_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(newcomers.ray, "nodes", list)
    monkeypatch.setattr(newcomers, "draining", set)
    monkeypatch.setattr(newcomers, "usable_nodes", lambda nodes, draining: {"a", "b"})
    monkeypatch.setattr(Newcomers, "_room", lambda self, present: ["a", "b"])
    started: list[str] = []
    monkeypatch.setattr(Newcomers, "_start", lambda self, node, slots: started.append(node))
    coordinator = SimpleNamespace()
    task: Any = SimpleNamespace(share=Share(min_workers=1, max_workers=2, cpus=1.5, gpus=0.0))
    found = Newcomers(task, coordinator)  # type: ignore[arg-type]
    for training, names in ((2, ("a/1", "b/2")), (1, ("a/1",))):
        coordinator.members = Members(training=training, names=names)
        found.refresh()
    assert started == []
    for training, names in ((0, ()), (1, ("a/3",))):
        coordinator.members = Members(training=training, names=names)
        found.refresh()
    assert started == ["a"]
