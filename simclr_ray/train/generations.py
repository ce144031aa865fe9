"""Takes a worker from one generation to the next: it survives the loss of the others, with its state in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from simclr_ray import collective
from simclr_ray.group.gloo import form_group
from simclr_ray.group.mesh import PeerLost
from simclr_ray.membership.generation import Generation
from simclr_ray.membership.member import Member
from simclr_ray.train.committed import Committed
from simclr_ray.train.control import Ended, Interrupted, Left, Regroup

CHANGES = (PeerLost, Regroup)
"""End a generation, and not this worker."""


class Change:
    """What has changed since the last generation of this worker, for the event that rank 0 writes."""

    def __init__(self, before: list[str], ended: float) -> None:
        self._before = set(before)
        self._ended = self.agreed = self.formed = ended

    def fields(self, generation: Generation) -> dict[str, Any]:
        """The pause is told by part: until the next generation was agreed on, formed, and had its state."""
        now, shared = set(generation.names), monotonic()
        return {
            "workers": {"from": len(self._before), "to": len(now)},
            "lost": len(self._before - now),
            "joined": len(now - self._before),
            "pause_s": round(shared - self._ended, 3),
            "agree_s": round(self.agreed - self._ended, 3),
            "form_s": round(self.formed - self.agreed, 3),
            "state_s": round(shared - self.formed, 3),
        }


def over_generations(
    member: Member, committed: Committed, timeout_s: float, train: Callable[[Generation, Change], None]
) -> None:
    """Calls `train` as a worker of each generation, until one ends otherwise than by a change of its workers.

    `timeout_s`: how long a collective may take at most. What else ends a generation is raised, and but for an end of
    the whole group the others go on: `member` is closed then, so that this worker does not write any more.
    """
    generation, change = member.join(), Change([], monotonic())
    try:
        while generation is not None:
            try:
                change.agreed, name = monotonic(), f"generation-{generation.number}"
                group = form_group(member.address.store, name, generation.rank, generation.size, member.lost, timeout_s)
                collective.join_group(group)
                change.formed = monotonic()
                train(generation, change)
                collective.wait_for_all()  # or who is lost now takes what it had to write with it
                member.leave(finished=True)
                return
            except CHANGES as end:
                change, lost = Change(generation.names, monotonic()), isinstance(end, PeerLost)
                if lost:
                    committed.put_back()
            generation = member.next(committed.progress, lost=lost)
    except (Interrupted, Ended) as end:
        member.leave(finished=isinstance(end, Ended))
        raise
    except BaseException as error:
        if isinstance(error, Left):
            member.leave()
        member.close()
        raise
    finally:
        collective.leave_group()


@contextmanager
def closing_aside(stream: Generator[Any]) -> Iterator[Generator[Any]]:
    """Closes `stream` at the end; beside the next generation, which must not wait for that, where one follows."""
    try:
        yield stream
    except CHANGES:
        threading.Thread(target=stream.close, name="close-stream", daemon=True).start()
        raise
    except BaseException:
        stream.close()
        raise
    stream.close()
