"""Where a group of workers starts again: on the nodes that are there, and as many as they hold."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from simclr_ray.orchestrate import placement
from simclr_ray.orchestrate.placement import (
    LOOKUP_ERRORS,
    CorrectedPlacement,
    corrected_workers,
    pin,
    places,
    unrestricted_selector,
    usable_nodes,
)
from simclr_ray.planning.shares import Share
from simclr_ray.train.memory import TooLittleMemory

SHARE = Share(min_workers=2, max_workers=4, cpus=1.5, gpus=0.0)
WHOLE, ONE = {"CPU": 4.0}, {"CPU": 1.5}  # a node holds two workers


def node(node_id: str, port: int, *, alive: bool = True) -> dict[str, Any]:
    where = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
    return where | {"NodeID": node_id, "Alive": alive, "Resources": WHOLE}


@pytest.fixture
def raylet() -> Iterator[int]:
    """The port of somebody who listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def silent() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_a_node_counts_that_is_alive_and_stays_and_answers(raylet: int, silent: int) -> None:
    nodes = [node("a", raylet), node("b", raylet, alive=False), node("c", raylet), node("d", silent)]
    assert usable_nodes(nodes, ["c"]) == {"a": WHOLE}


@pytest.mark.parametrize(
    ("usable", "reserved", "workers"),
    [
        ("ab", {"a": {"CPU": 3.0}, "b": ONE}, 3),
        ("a", {"a": {"CPU": 3.0}, "b": ONE}, 2),  # b was lost
        ("ac", {"a": {"CPU": 3.0}, "b": ONE}, 3),  # c stands in for it, and for no more than was lost
        ("abc", {"a": {"CPU": 3.0}}, 2),  # others have reserved the rest
        ("b", {"a": {"CPU": 3.0}, "b": ONE}, 2),  # one fits: min_workers wait for a node
        ("", {"a": {"CPU": 3.0}}, None),  # not even one node answers: the question is at fault
        ("a", {}, None),
    ],
)
def test_workers_are_those_reserved_on_nodes_that_are_left(
    usable: str, reserved: dict[str, dict[str, float]], workers: int | None
) -> None:
    assert corrected_workers(SHARE, dict.fromkeys(usable, WHOLE), reserved) == workers


def started(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]]) -> tuple[int, list[dict[str, str]]]:
    """The number of workers and their selectors of a group that Ray wants 4 workers for, rank 0 on a node of its own.

    "a" and "b" are reserved; "b" drains.
    """
    monkeypatch.setattr(placement.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(placement, "draining", lambda: {"b": 0.0})
    monkeypatch.setattr(placement, "reserved_resources", lambda name: {"a": {"CPU": 3.0}, "b": {"CPU": 3.0}})
    selectors = unrestricted_selector(SHARE)
    selectors[0]["ray.io/market-type"] = "on-demand"
    callback, decision = CorrectedPlacement(SHARE), SimpleNamespace(num_workers=4)
    callback.after_controller_start(SimpleNamespace(run_id="1"))
    callback.before_controller_execute_resize_decision(decision)
    callback.before_worker_group_start(SimpleNamespace(label_selector=selectors[: decision.num_workers]))
    return decision.num_workers, selectors[: decision.num_workers]


def test_a_group_is_kept_off_the_nodes_that_do_not_count(
    monkeypatch: pytest.MonkeyPatch, raylet: int, silent: int
) -> None:
    nodes = [node("a", raylet), node("d", silent), node("b", raylet), node("e", raylet, alive=False)]
    off = {"ray.io/node-id": "!in(b, d)"}
    assert started(monkeypatch, nodes) == (2, [{"ray.io/market-type": "on-demand"} | off, off])


def test_each_worker_is_bound_to_a_place_of_the_run_first_and_rank_0_to_one_with_its_label() -> None:
    found = places(SHARE, {"a": WHOLE, "b": WHOLE, "c": WHOLE}, {"b": ONE, "c": {"CPU": 3.0}, "gone": ONE})
    assert found == ["b", "c", "c", "a", "a"]
    stays = {"ray.io/market-type": "on-demand"}
    selectors = [dict(stays), {"ray.io/node-id": "!in(x)"}, {}, {}]
    pin([("b", {}), ("c", stays), ("c", stays)], selectors)
    bound = [selector.get("ray.io/node-id") for selector in selectors]
    assert bound == ["c", "b", "c", None], "the last one waits for a node"
    assert selectors[0] == stays | {"ray.io/node-id": "c"}


def test_beside_others_that_train_a_group_of_one_is_started_wherever_it_fits(
    monkeypatch: pytest.MonkeyPatch, raylet: int
) -> None:
    monkeypatch.setattr(placement.ray, "nodes", lambda: [node("a", raylet), node("b", raylet)])
    monkeypatch.setattr(placement, "draining", lambda: {"b": 0.0})
    monkeypatch.setattr(placement, "reserved_resources", lambda name: {"a": {"CPU": 3.0}})
    others = [False, True]
    callback = CorrectedPlacement(SHARE, lambda: others[0])
    callback.after_controller_start(SimpleNamespace(run_id="1"))

    def start() -> tuple[int, list[str | None]]:
        decision = SimpleNamespace(num_workers=4)
        callback.before_controller_execute_resize_decision(decision)
        selectors: list[dict[str, str]] = [{} for _ in range(decision.num_workers)]
        callback.before_worker_group_start(SimpleNamespace(label_selector=selectors))
        return decision.num_workers, [selector.get("ray.io/node-id") for selector in selectors]

    assert start() == (2, ["a", "a"])
    assert start() == (2, ["!in(b)", "!in(b)"]), "the first start has failed"
    callback.after_worker_group_start(None)
    others.pop(0)
    assert start() == (1, ["!in(b)"])


def test_a_group_too_small_for_its_memory_is_followed_by_a_larger_one(
    monkeypatch: pytest.MonkeyPatch, raylet: int
) -> None:
    monkeypatch.setattr(placement.ray, "nodes", lambda: [node("a", raylet), node("b", raylet)])
    monkeypatch.setattr(placement, "draining", dict)
    monkeypatch.setattr(placement, "reserved_resources", lambda name: {"a": {"CPU": 3.0}})
    callback = CorrectedPlacement(SHARE)
    callback.after_controller_start(SimpleNamespace(run_id="1"))
    for workers, following in ((0, 2), (2, 3), (2, 3), (3, 4), (4, 4)):
        error = TooLittleMemory("a pass does not fit")
        error.workers = workers
        decision = SimpleNamespace(num_workers=2)
        callback.after_worker_group_poll_status(SimpleNamespace(errors={0: error}))
        callback.before_controller_execute_resize_decision(decision)
        assert decision.num_workers == following


@pytest.mark.parametrize("error", [*LOOKUP_ERRORS, GetTimeoutError])
def test_what_cannot_be_looked_up_leaves_ray_its_decision(
    monkeypatch: pytest.MonkeyPatch, raylet: int, error: type[Exception]
) -> None:
    class Unknown(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise error("no such thing")

    unchanged = 4, [{"ray.io/market-type": "on-demand"}, {}, {}, {}]
    assert started(monkeypatch, [node("a", raylet), Unknown()]) == unchanged
    assert started(monkeypatch, []) == unchanged
