"""Who trains: generations form, end by losses, leave and grow; the frozen are fenced, and strangers kept out."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import pytest

from simclr_ray.membership import coordinator as coordinator_module
from simclr_ray.membership.coordinator import Coordinator, Members
from simclr_ray.membership.generation import Generation
from simclr_ray.membership.member import Address, Fenced, Member

WAIT_S = 10.0


class Group:
    """A coordinator, and members each with a thread of its own for what blocks."""

    def __init__(self, **settings: Any) -> None:
        self.coordinator = Coordinator(**settings)
        self._pool = ThreadPoolExecutor(16)
        token, port = self.coordinator.token, self.coordinator.port
        self.address = Address(host="127.0.0.1", port=port, token=token, store="")

    def member(self, name: str, slots: int) -> Member:
        return Member(self.address, name, slots)

    def start(self, call: Callable[[], Any]) -> Future[Any]:
        return self._pool.submit(call)

    def together(self, *names: str) -> list[Member]:
        """Members of one generation."""
        members = [self.member(name, len(names)) for name in names]
        self.joined(*members)
        return members

    def joined(self, *members: Member) -> list[Generation]:
        return [each.result(WAIT_S) for each in [self.start(member.join) for member in members]]

    def next(self, *members: Member, progress: tuple[int, int] = (5, 1), lost: bool = True) -> list[Generation]:
        waiting = [self.start(lambda m=member: m.next(progress, lost=lost)) for member in members]
        return [each.result(WAIT_S) for each in waiting]


@contextmanager
def group(**settings: Any) -> Iterator[Group]:
    found = Group(**settings)
    try:
        yield found
    finally:
        found.coordinator.close()


def until(condition: Callable[[], Any]) -> None:
    end = monotonic() + WAIT_S
    while not condition():
        assert monotonic() < end
        sleep(0.01)


def test_the_first_generation_waits_for_all_and_has_no_state() -> None:
    with group() as ours:
        a, b = ours.member("a", 2), ours.member("b", 2)
        first = ours.start(a.join)
        sleep(0.3)
        assert not first.done()
        (of_b,) = ours.joined(b)
        assert [first.result(WAIT_S).rank, of_b.rank] == [0, 1]
        assert of_b.names == a.names == ["a", "b"]
        assert of_b.most_advanced is None
        assert not of_b.in_step


def test_a_loss_ends_the_generation_at_once_and_the_most_advanced_gives_its_state() -> None:
    with group() as ours:
        a, b, c = ours.together("a", "b", "c")
        b.close()
        until(lambda: a.lost() and c.lost())
        left = ours.start(lambda: a.next((7, 0), lost=True)), ours.start(lambda: c.next((7, 1), lost=True))
        of_a, of_c = (each.result(WAIT_S) for each in left)
        assert set(of_a.names) == {"a", "c"}
        assert of_a.names[of_a.most_advanced] == "c"  # at the same step, with its evaluation done
        assert not a.lost()
        assert {of_a.rank, of_c.rank} == {0, 1}


def test_one_that_was_cut_off_ends_the_generation_for_the_others() -> None:
    with group() as ours:
        a, b = ours.together("a", "b")
        again = ours.start(lambda: a.next((3, 1), lost=True))
        until(b.lost)
        assert not again.done(), "b has not come out of it yet"
        ours.next(b, progress=(3, 1))
        assert again.result(WAIT_S).in_step


def test_others_wait_until_the_generation_lets_them_in_and_come_last() -> None:
    with group(wait_s=0.0) as ours:
        a, b = ours.together("a", "b")
        first = a.names
        new = ours.member("c", 2)
        waiting = ours.start(new.join)
        until(lambda: a.waiting == b.waiting == 1)
        assert not waiting.done()
        ours.next(a, b, progress=(9, 1), lost=False)
        found = waiting.result(WAIT_S)
        assert found.names == [*first, "c"]
        assert found.progress == [(9, 1), (9, 1), None]
        assert a.waiting == 0


def test_more_than_the_most_wait_for_the_loss_of_another() -> None:
    with group(max_workers=2) as ours:
        a, b = ours.together("a", "b")
        spare = ours.member("c", 2)
        waiting = ours.start(spare.join)
        until(lambda: "c" in ours.coordinator.members.names)
        sleep(0.2)
        assert a.waiting == 0
        assert not waiting.done()
        b.close()
        until(a.lost)
        ours.next(a)
        assert waiting.result(WAIT_S).names == ["a", "c"]


def test_those_that_the_run_has_no_room_for_end_with_it() -> None:
    with group(max_workers=1, start_wait_s=0.0) as ours:
        (a,) = ours.together("a")
        a.trained((1, 1))
        waiting = ours.start(ours.member("b", 1).join)
        until(lambda: ours.coordinator.members.idle == ("b",))
        a.leave(finished=True)
        assert waiting.result(WAIT_S) is None


def test_after_a_planned_end_of_all_a_smaller_group_starts_at_once() -> None:
    with group(start_wait_s=60.0) as ours:
        for member in ours.together("a", "b"):
            member.leave()
            member.close()
        until(lambda: not ours.coordinator.members.names)
        assert ours.joined(ours.member("c", 1))[0].names == ["c"]


def test_a_group_that_has_grown_waits_for_as_many_as_it_had() -> None:
    with group(wait_s=0.5) as ours:
        a, b = ours.together("a", "b")
        new = ours.member("c", 3)
        joining = ours.start(new.join)
        until(lambda: a.waiting == 1)
        ours.next(a, b, lost=False)
        assert joining.result(WAIT_S).size == 3
        new.close()
        until(a.lost)
        start = monotonic()
        assert ours.next(a, b)[0].size == 2
        assert monotonic() - start >= 0.5


def test_survivors_wait_for_another_in_the_place_of_a_lost_one_and_for_the_least_number() -> None:
    with group(wait_s=0.5) as ours:
        a, b = ours.together("a", "b")
        b.close()
        until(a.lost)
        start = monotonic()
        (alone,) = ours.next(a)
        assert monotonic() - start >= 0.5
        assert alone.size == 1
    with group(min_workers=2) as ours:
        a, b = ours.together("a", "b")
        b.close()
        until(a.lost)
        waiting = ours.start(lambda: a.next((5, 1), lost=True))
        sleep(0.5)
        assert not waiting.done()
        ours.joined(ours.member("c", 2))
        assert waiting.result(WAIT_S).names == ["a", "c"]


def test_one_that_leaves_breaks_nothing_and_after_the_end_nobody_is_let_in() -> None:
    with group() as ours:
        a, b = ours.together("a", "b")
        b.leave()
        b.close()
        sleep(0.3)
        assert not a.lost()
        (alone,) = ours.next(a, lost=False)
        assert alone.names == ["a"]
        assert not ours.coordinator.members.finished
        a.leave(finished=True)
        until(lambda: ours.coordinator.members.finished)
        assert ours.start(ours.member("c", 2).join).result(WAIT_S) is None


def test_one_that_is_not_heard_of_is_fenced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "FROZEN_S", 1.0)
    with group() as ours:
        a, b = ours.together("a", "b")
        assert b.holds()
        b._sending.acquire()  # its beats stop, as those of a frozen process
        until(a.lost)
        b._sending.release()
        until(lambda: not b.holds())
        with pytest.raises(Fenced):
            b.next((5, 1), lost=True)
        (alone,) = ours.next(a)
        assert alone.names == ["a"]


def test_while_none_is_heard_of_the_coordinator_waits_and_then_gives_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "FROZEN_S", 1.0)
    monkeypatch.setattr(coordinator_module, "HEARD_S", 0.6)
    with group() as ours:
        a, b = ours.together("a", "b")
        with a._sending, b._sending:  # the driver's machine is cut off
            sleep(2.0)
        until(a.holds)
        with b._sending:  # its connection comes back later
            sleep(0.7)
        assert a.holds()
        assert b.holds()
        assert not a.lost()
        monkeypatch.setattr(coordinator_module, "UNHEARD_S", 1.5)
        with a._sending, b._sending:
            until(lambda: ours.coordinator.members == Members() and not ours.coordinator._peers)


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"kind": "join"}\n', b"x" * (1 << 21)])
def test_strangers_are_turned_away(line: bytes) -> None:
    with group() as ours, socket.create_connection(("127.0.0.1", ours.coordinator.port), timeout=WAIT_S) as stranger:
        a = ours.member("a", 1)
        try:
            stranger.sendall(line)
            assert stranger.recv(1 << 16) == b""
        except ConnectionError:
            pass
        assert ours.joined(a)[0].names == ["a"]


@pytest.mark.parametrize(
    "line", [b'{"kind": "leave", "finished": true}\n', b'{"kind": "ready", "progress": [9, 1], "lost": true}\n']
)
def test_one_that_has_not_joined_changes_nothing(line: bytes) -> None:
    with group() as ours, socket.create_connection(("127.0.0.1", ours.coordinator.port), timeout=WAIT_S) as stranger:
        (a,) = ours.together("a")
        before = ours.coordinator.members
        stranger.sendall(line)
        assert stranger.recv(1 << 16) == b""
        assert ours.coordinator.members == before
        assert not a.lost()


def test_a_process_with_too_many_open_files_lets_workers_in_later(monkeypatch: pytest.MonkeyPatch) -> None:
    accept, refused = socket.socket.accept, []

    def full(listener: socket.socket) -> Any:
        if len(refused) < 3:
            refused.append(listener)
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", full)
    with group() as ours:
        assert ours.together("a")[0].names == ["a"]
    assert len(refused) == 3


def test_a_wrong_token_is_refused() -> None:
    with group() as ours:
        other = Member(replace(ours.address, token="guessed"), "b", 1)
        with pytest.raises(Fenced):
            other.join()
        assert ours.joined(ours.member("a", 1))[0].names == ["a"]
