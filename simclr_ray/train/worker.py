"""The training loop's interface to its process and cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from simclr_ray import collective
from simclr_ray.membership.member import Member
from simclr_ray.train.control import ClusterSignals


@runtime_checkable
class Worker(Protocol):
    """One process of the group that trains."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def member(self) -> Member | None:
        """Through which this worker goes from one generation to the next; None where its group ends with any worker."""

    def begin_generation(self) -> None:
        """Called at the start of each generation, when rank and size are those of it."""

    def report(self, row: dict[str, Any]) -> None:
        """Publishes the metrics row for the progress line. Rank 0 calls it at every metrics row."""

    def poll_signals(self) -> ClusterSignals:
        """The newest signals of the cluster. Rank 0 calls it after every step: it must not block."""


@dataclass(frozen=True)
class LocalWorker:
    """A worker without Ray: a single process, or one of a torch.distributed group that the caller has set up."""

    device: torch.device
    member: Member | None = field(default=None, kw_only=True)

    @property
    def rank(self) -> int:
        return collective.rank()

    @property
    def size(self) -> int:
        return collective.size()

    def begin_generation(self) -> None:
        pass

    def report(self, row: dict[str, Any]) -> None:
        pass

    def poll_signals(self) -> ClusterSignals:
        return ClusterSignals()
