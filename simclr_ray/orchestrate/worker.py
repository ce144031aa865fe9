"""A training worker connected to Ray: publishes metrics rows, and polls the cluster's signals."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import time

import ray
import torch
from ray.exceptions import RayError
from ray.experimental import internal_kv

from simclr_ray import collective
from simclr_ray.membership.member import Member
from simclr_ray.orchestrate.preemption.drain import draining, save_requested_at, staying
from simclr_ray.orchestrate.task import Task, node_of
from simclr_ray.periodic import repeating
from simclr_ray.planning.shares import workers_that_fit
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.control import ClusterSignals

POLL_S = 1.0


class RayWorker:
    """`task` has the keys in Ray's key-value store of the newest metrics row, which the driver polls, and of requests.

    `set_up` is called with the number of workers whenever that may
    have changed.
    """

    def __init__(
        self,
        device: torch.device,
        task: Task,
        member: Member | None,
        set_up: Callable[[int], object],
    ) -> None:
        self._device, self._task = device, task
        self._member, self._set_up = member, set_up
        self._signals = ClusterSignals()
        self._checked: Row | None = None
        self._nodes: list[str] = []
        self._deadlines: dict[str, float] = {}

    @property
    def rank(self) -> int:
        return collective.rank()

    @property
    def size(self) -> int:
        return collective.size()

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def member(self) -> Member | None:
        return self._member

    def begin_generation(self) -> None:
        if self._member:
            self._nodes = [node_of(name) for name in self._member.names]
        else:
            self._nodes = collective.gather_objects(ray.get_runtime_context().get_node_id())
        self._signals = ClusterSignals()
        self._set_up(self.size)

    def report(self, row: Row) -> None:
        """Replaces the published row; the newest row with a check's results is added under `checked`."""
        if {"rankme", "probe_check"} & row.keys():
            self._checked = row
        internal_kv._internal_kv_put(
            self._task.progress_key, json.dumps(row | {"checked": self._checked}), overwrite=True
        )

    def poll_signals(self) -> ClusterSignals:
        if self._member is None:
            return self._signals
        ranks = tuple(rank for rank, node in enumerate(self._nodes) if node in self._signals.nodes)
        return replace(self._signals, leaving=ranks, joining=self._member.waiting)

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Polls the cluster every POLL_S on a thread of rank 0, so that `poll_signals` does not block."""
        if self.rank != 0 and self._member is None:
            yield
            return

        def refresh() -> None:
            if self.rank != 0 or not self._nodes:  # it may become rank 0
                return
            with contextlib.suppress(RayError):  # the head is busy: the last signals stay until it answers
                self._signals = self._poll()

        with repeating(refresh, POLL_S):
            yield

    def _poll(self) -> ClusterSignals:
        leaving = draining()
        for node, deadline in leaving.items():
            if math.isinf(deadline):
                self._deadlines.setdefault(node, time())  # without a deadline the node may go at any moment
            else:
                self._deadlines[node] = deadline  # a second notice may bring it forward
        ours = {node: self._deadlines[node] for node in leaving if node in self._nodes}
        return ClusterSignals(
            available_workers=None if self._member else self._available(leaving),  # others join this one's group
            deadline=min(ours.values(), default=None),
            nodes=tuple(ours),
            save_requested_at=save_requested_at(),
            end_requested=internal_kv._internal_kv_exists(self._task.end_key),
        )

    def _available(self, leaving: Container[str]) -> int:
        left = [node["Resources"] for node in staying(ray.nodes(), leaving)]
        return workers_that_fit(self._task.share, left)
