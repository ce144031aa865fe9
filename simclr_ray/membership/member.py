"""A worker's connection to the coordinator: it joins, learns of each generation, and of the end of each."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from simclr_ray.membership.generation import BEAT_S, FROZEN_S, Generation, Progress
from simclr_ray.membership.messages import Connection, Message

CONNECT_S = 30.0


class Fenced(RuntimeError):
    """The others have gone on without this worker, as it was not heard of for too long; or the driver is gone."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the coordinator listens, and the token with which a worker joins."""

    host: str
    port: int
    token: str
    store: str
    """HOST:PORT of the TCPStore by which the workers of a generation find each other."""


class Member:
    """`name`: unique among the workers. `slots`: with how many workers the group has been started.

    A thread reads what the coordinator sends and answers for this process; it ends with the connection.
    """

    def __init__(self, address: Address, name: str, slots: int) -> None:
        self.address, self._name, self.slots = address, name, slots
        end = socket.create_connection((address.host, address.port), timeout=CONNECT_S)
        end.settimeout(CONNECT_S)
        self._connection, self._sending = Connection(end), threading.Lock()
        self._changed = threading.Condition()
        self._generation: Generation | None = None
        self._broken = -1
        self._gone = self._finished = False
        self._confirmed = monotonic()
        self.waiting = 0
        """Workers that could join."""
        threading.Thread(target=self._listen, name="membership", daemon=True).start()

    @property
    def names(self) -> list[str]:
        """Of the workers of this generation, in rank order."""
        return self._generation.names if self._generation else []

    def join(self) -> Generation | None:
        """The first generation of this worker; it waits for those that are in one to let it in. None: they are done."""
        self._send({"kind": "join", "token": self.address.token, "name": self._name, "slots": self.slots})
        return self._next(0)

    def next(self, progress: Progress | None, *, lost: bool) -> Generation | None:
        """The generation after the one that has ended. `progress`: of this worker's state, if it has one.

        `lost`: whether it was cut off from another worker, which the coordinator may not know of. Raises Fenced.
        """
        number = self._generation.number if self._generation else 0
        self._send({"kind": "ready", "progress": progress, "lost": lost})
        return self._next(number)

    def trained(self, progress: Progress | None) -> None:
        """Tells that this worker has a state, so that it need not be read from a checkpoint again."""
        self._send({"kind": "trained", "progress": progress})

    def leave(self, *, finished: bool = False) -> None:
        """For a planned end, of this worker or (`finished`) of the run: the others do not take it for a loss."""
        with self._sending:
            if not self._gone:
                self._connection.send({"kind": "leave", "finished": finished})

    def lost(self) -> bool:
        """Whether the generation has ended by the loss of a worker, or of this one to the others."""
        return self._gone or (self._generation is not None and self._broken >= self._generation.number)

    def holds(self) -> bool:
        """Whether this worker still is of the run, which a process that was frozen must ask before it writes.

        It is for FROZEN_S from the last beat that the coordinator has answered; later it waits for an answer.
        """
        with self._changed:
            if monotonic() - self._confirmed < FROZEN_S / 2:
                return not self._gone
            asked = monotonic()
            self._changed.wait_for(lambda: self._gone or self._confirmed >= asked)
            return not self._gone

    def close(self) -> None:
        """Without leaving, it counts as a loss."""
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)  # the thread that reads it closes it

    def _next(self, number: int) -> Generation | None:
        def found() -> Generation | None:
            return self._generation if self._generation and self._generation.number > number else None

        with self._changed:
            self._changed.wait_for(lambda: self._gone or self._finished or found())
            if self._gone:
                raise Fenced("the run has gone on without this worker, or its driver has ended")
            return found()

    def _send(self, message: Message) -> None:
        try:
            with self._sending:
                self._connection.send(message | {"sent": monotonic()})
        except OSError:
            self._fence()

    def _listen(self) -> None:
        beat = 0.0
        try:
            while not self._gone:
                if monotonic() - beat >= BEAT_S:
                    beat = monotonic()
                    self._send({"kind": "beat"})
                if select.select([self._connection], [], [], BEAT_S / 2)[0]:
                    for message in self._connection.receive():
                        self._take(message)
        except (OSError, ValueError):
            self._fence()

    def _take(self, message: Message) -> None:
        with self._changed:
            if message["kind"] == "generation":
                self._generation = _generation(message)
                self.waiting = 0
            elif message["kind"] == "broken":
                self._broken = max(self._broken, message["number"])
            elif message["kind"] == "finished":
                self._finished = True
            elif message["kind"] == "waiting":
                self.waiting = message["count"]
            elif message["kind"] == "beat" and message["sent"] is not None:
                self._confirmed = max(self._confirmed, message["sent"])
            self._changed.notify_all()

    def _fence(self) -> None:
        with self._changed:
            self._gone = True
            self._changed.notify_all()
        self._connection.close()


def _generation(message: Message) -> Generation:
    progress = [None if each is None else (each[0], each[1]) for each in message["progress"]]
    names, rank = message["names"], message["rank"]
    return Generation(number=message["number"], names=names, progress=progress, rank=rank)
