"""A generation: the workers that train together, in rank order, until one is lost, leaves or joins."""

from __future__ import annotations

from dataclasses import dataclass

Progress = tuple[int, int]
"""(steps done, 1 if the check of the last one is done): the state of the highest is the one that goes on."""

FROZEN_S = 10.0
"""A worker that has not been heard of for so long is taken for lost. Ended processes are noticed at once."""
BEAT_S = 0.5
UNHEARD_S = 60.0
"""The same where no other worker is heard of either: then the driver is cut off, and nobody has gone on without it.
Ray's nodes wait as long for their head."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the coordinator tells each of its workers."""

    number: int
    names: list[str]
    """Of the workers, in rank order. Those that have been in the generation before are first, in their old order."""
    progress: list[Progress | None]
    """In rank order; None for a worker without a state: it has just started."""
    rank: int
    """This worker's."""

    @property
    def size(self) -> int:
        return len(self.names)

    @property
    def most_advanced(self) -> int | None:
        """The rank whose state the others take; None if no worker has one."""
        known = [(progress, -rank) for rank, progress in enumerate(self.progress) if progress is not None]
        return -max(known)[1] if known else None

    @property
    def in_step(self) -> bool:
        """Whether all have the same state already."""
        return None not in self.progress and len(set(self.progress)) == 1
