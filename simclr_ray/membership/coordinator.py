"""The coordinator of a run's workers: a thread of the driver, which forms one generation after the other.

Each worker holds a TCP connection to it. The end of a connection is a worker's death, known within milliseconds; a
worker that is frozen, or beyond a broken network, is not heard of for FROZEN_S. If no other is heard of either, it is
this machine that is cut off, and it waits for them. The coordinator knows nothing of training: only who is there, and
whose state is how old.
"""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import threading
from dataclasses import dataclass, field
from time import monotonic

from simclr_ray.membership.generation import BEAT_S, FROZEN_S, UNHEARD_S
from simclr_ray.membership.messages import Connection, Message

SEND_S = 2.0
POLL_S = 0.05
HEARD_S = 4 * BEAT_S


@dataclass(eq=False)
class _Peer:
    connection: Connection
    heard: float = field(default_factory=monotonic)
    name: str = ""
    """Empty until it has joined."""
    slots: int = 1
    ready: bool = False
    """It waits for the next generation."""
    left: bool = False
    progress: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Members:
    """What others may know of the group at a time."""

    training: int = 0
    """Workers with a state that have not left."""
    names: tuple[str, ...] = ()
    """Of all that have joined and not left, those that wait for a generation included."""
    idle: tuple[str, ...] = ()
    """Of those without a state, which wait for their first generation."""
    finished: bool = False
    """A worker has trained to the end: there is nothing to start again for."""


class Coordinator:
    """`min_workers`: fewer do not train. `max_workers`: more wait for the loss of another. `wait_s`: how long a
    generation that has lost or sent away workers waits for others in their place. `start_wait_s`: the same for the
    first one, whose workers all start at the same time.
    """

    def __init__(
        self, *, min_workers: int = 1, max_workers: int | None = None, wait_s: float = 0.0, start_wait_s: float = 30.0
    ) -> None:
        self._min_workers, self._max_workers = min_workers, max_workers
        self._wait_s, self._start_wait_s = wait_s, start_wait_s
        self.token = secrets.token_hex(16)
        """Only who knows it may join."""
        self._listener = socket.create_server(("", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: list[_Peer] = []
        self._generation: list[_Peer] = []
        self._number, self._told_waiting = 0, 0
        self._incomplete_since: float | None = None
        self._unheard = monotonic()
        """When no worker was heard of last: once one is, the others get time to be heard of, too."""
        self._finished, self._closed = False, threading.Event()
        self._thread = threading.Thread(target=self._serve, name="coordinator", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    @property
    def members(self) -> Members:
        here = [peer for peer in list(self._peers) if peer.name and not peer.left]
        idle = tuple(peer.name for peer in here if peer.progress is None)
        names = tuple(peer.name for peer in here)
        return Members(training=len(names) - len(idle), names=names, idle=idle, finished=self._finished)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        for peer in self._peers:
            peer.connection.close()
        self._peers, self._finished = [], True  # nobody waits for those that are gone
        self._listener.close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select(POLL_S):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            self._lose_unheard()
            self._form()

    def _lose_unheard(self) -> None:
        now = monotonic()
        if not any(now - peer.heard < HEARD_S for peer in self._peers if peer.name):
            self._unheard = now
        for peer in list(self._peers):
            if now - max(peer.heard, self._unheard) > FROZEN_S or now - peer.heard > UNHEARD_S:
                self._lose(peer)

    def _accept(self) -> None:
        try:
            end, _ = self._listener.accept()
            end.settimeout(SEND_S)
            peer = _Peer(Connection(end))
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        except OSError:  # too many open files: who knocks waits, and those that are here are still served
            self._closed.wait(POLL_S)
            return
        self._peers.append(peer)

    def _read(self, peer: _Peer) -> None:
        try:
            for message in peer.connection.receive():
                peer.heard = monotonic()
                self._take(peer, message)
        except (OSError, ValueError, KeyError, TypeError):
            self._lose(peer)

    def _take(self, peer: _Peer, message: Message) -> None:
        kind = message["kind"]
        if kind == "join":
            if not hmac.compare_digest(message["token"], self.token):
                raise ValueError("a stranger")
            peer.name, peer.slots, peer.ready = message["name"], message["slots"], True
            if self._finished:
                self._send(peer, {"kind": "finished"})
        elif not peer.name and kind != "beat":  # a worker's beats begin before it joins
            raise ValueError("a stranger")
        elif kind == "ready":
            peer.progress, peer.ready = message["progress"], True
            if message["lost"]:
                self._break()  # the others may still wait for it
        elif kind == "trained":
            peer.progress = message["progress"]
        elif kind == "leave":
            peer.left, peer.ready = True, False
            self._finished = self._finished or message["finished"]
        self._send(peer, {"kind": "beat", "sent": message.get("sent")})

    def _send(self, peer: _Peer, message: Message) -> None:
        try:
            peer.connection.send(message)
        except OSError:
            self._lose(peer)

    def _lose(self, peer: _Peer) -> None:
        """Whether it is dead or only thought to be: it is not of this run any more."""
        if peer not in self._peers:
            return
        self._peers.remove(peer)
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer in self._generation and not peer.left:
            self._break()

    def _break(self) -> None:
        """Tells the workers of this generation that it has ended."""
        for other in list(self._generation):
            if other in self._peers and not other.left and not other.ready:
                self._send(other, {"kind": "broken", "number": self._number})

    def _form(self) -> None:
        """The next generation, once all that are left of the last one have come out of it."""
        before = [peer for peer in self._generation if peer in self._peers and not peer.left]
        joining = [peer for peer in self._peers if peer.ready and peer not in before]
        if self._finished and not before:
            for peer in joining:  # more than the run could have
                peer.ready = False
                self._send(peer, {"kind": "finished"})
            return
        if self._max_workers is not None:
            joining = joining[: max(0, self._max_workers - len(before))]
        if any(not peer.ready for peer in before):
            self._tell_waiting(before, len(joining))
            return
        workers = [*before, *joining]
        if not workers:
            self._incomplete_since = None
            return
        if self._complete(workers, starting=not before):
            self._begin(workers)

    def _complete(self, workers: list[_Peer], *, starting: bool) -> bool:
        now = monotonic()
        self._incomplete_since = self._incomplete_since or now
        wait_s = self._start_wait_s if starting else self._wait_s
        over = now - self._incomplete_since >= wait_s
        whole = max(0 if starting else len(self._generation), *(peer.slots for peer in workers))
        return len(workers) >= self._min_workers and (over or len(workers) >= whole)

    def _begin(self, workers: list[_Peer]) -> None:
        self._number += 1
        self._incomplete_since, self._told_waiting = None, 0
        self._generation = workers
        message = {
            "kind": "generation",
            "number": self._number,
            "names": [peer.name for peer in workers],
            "progress": [peer.progress for peer in workers],
        }
        for rank, peer in enumerate(workers):
            peer.ready = False
            self._send(peer, message | {"rank": rank})

    def _tell_waiting(self, training: list[_Peer], waiting: int) -> None:
        if waiting != self._told_waiting:
            self._told_waiting = waiting
            for peer in training:
                self._send(peer, {"kind": "waiting", "count": waiting})
