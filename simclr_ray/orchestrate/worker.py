"""A training worker connected to Ray: publishes metrics rows, and polls the cluster's signals."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import time

import ray
import torch
from ray.exceptions import RayError
from ray.experimental import internal_kv

from simclr_ray import collective
from simclr_ray.orchestrate.preemption.drain import draining, save_requested_at, staying
from simclr_ray.periodic import repeating
from simclr_ray.planning.shares import Share, workers_that_fit
from simclr_ray.storage.run_folder import Row
from simclr_ray.train.control import ClusterSignals

POLL_S = 1.0


class RayWorker:
    """`progress_key`: the key in Ray's key-value store of the newest metrics row, which the driver polls.

    `end_key`: the key that requests the end of the run.
    """

    def __init__(self, device: torch.device, progress_key: str, end_key: str, share: Share) -> None:
        self._device, self._progress_key, self._end_key, self._share = device, progress_key, end_key, share
        self._signals = ClusterSignals()
        self._checked: Row | None = None
        node = ray.get_runtime_context().get_node_id()
        self._nodes = frozenset(collective.gather_objects(node))
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

    def report(self, row: Row) -> None:
        """Replaces the published row; the newest row with a check's results is added under `checked`."""
        if "rankme" in row:
            self._checked = row
        internal_kv._internal_kv_put(self._progress_key, json.dumps(row | {"checked": self._checked}), overwrite=True)

    def poll_signals(self) -> ClusterSignals:
        return self._signals

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Polls the cluster every POLL_S on a thread of rank 0, so that `poll_signals` does not block."""
        if self.rank != 0:
            yield
            return

        def refresh() -> None:
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
        left = [node["Resources"] for node in staying(ray.nodes(), leaving)]
        return ClusterSignals(
            available_workers=workers_that_fit(self._share, left),
            deadline=min(ours.values(), default=None),
            nodes=tuple(ours),
            save_requested_at=save_requested_at(),
            end_requested=internal_kv._internal_kv_exists(self._end_key),
        )
