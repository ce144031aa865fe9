"""A gloo process group that can be left at any time, in the middle of a collective too.

torch.distributed's own groups cannot: a worker that is not connected to the lost one waits in its collective until the
group's timeout. Here a collective is waited for in short slices, beside the question whether somebody is lost. Small
tensors take the direct connections of mesh.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import timedelta
from time import sleep
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simclr_ray.group.mesh import MOST_BYTES, Mesh, PeerLost, form_mesh

COMBINE: dict[Any, Any] = {dist.ReduceOp.SUM: torch.add, dist.ReduceOp.MAX: torch.maximum}
SLICE = timedelta(milliseconds=100)
FORM_POLL_S = 0.02
KEPT_POLL_S = 1.0


class GlooGroup:
    """`gloo`: a torch ProcessGroupGloo, `mesh`: its workers' direct connections; None for one worker.

    `lost`: whether a worker is known to be gone.
    """

    def __init__(self, rank: int, size: int, gloo: Any, mesh: Mesh | None, lost: Callable[[], bool]) -> None:
        self.rank, self.size, self._lost = rank, size, lost
        self._gloo, self._mesh = gloo, mesh
        self._under_way: set[Any] = set()

    def all_reduce(self, values: Tensor, op: Any = dist.ReduceOp.SUM) -> Callable[[], None]:
        """Starts an all-reduce in place. The returned function waits for it; it raises PeerLost, as all of these do."""
        if self._mesh and _is_small(values):
            self._mesh.all_reduce(values, COMBINE[op])
            return lambda: None
        options = dist.AllreduceOptions()
        options.reduceOp = op
        return self._started(self._gloo.allreduce, [values], options)

    def all_gather(self, rows: Tensor) -> list[Tensor]:
        """`rows`, of one shape everywhere, of every worker in rank order."""
        if self._mesh and _is_small(rows):
            return self._mesh.all_gather(rows)
        received = [torch.empty_like(rows) for _ in range(self.size)]
        self._started(self._gloo.allgather, [received], [rows])()
        return received

    def broadcast(self, values: Tensor, source: int) -> None:
        """In place, from the worker `source`."""
        options = dist.BroadcastOptions()
        options.rootRank = source
        self._started(self._gloo.broadcast, [values], options)()

    def _started(self, start: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
        try:
            work = start(*arguments)
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

        self._under_way.add(work)

        def wait() -> None:
            try:
                while not _ended_within(work, SLICE):
                    if self._lost():
                        raise PeerLost("a worker was lost")
                work.wait()
            except RuntimeError as error:
                raise PeerLost(str(error)) from error
            self._under_way.discard(work)

        return wait

    def abandon(self) -> None:
        """Keeps the group, on a thread, until what is under way in it has ended, at its timeout at the latest: its
        destructor would wait for that, wherever the last reference happens to be dropped."""
        if self._mesh is not None:
            self._mesh.close()
        if self._gloo is not None:
            threading.Thread(target=self._keep, name="abandoned-group", daemon=True).start()

    def _keep(self) -> None:
        while not all(work.is_completed() for work in self._under_way):
            sleep(KEPT_POLL_S)


def _is_small(values: Tensor) -> bool:
    return values.numel() * values.element_size() <= MOST_BYTES


def _ended_within(work: Any, time: timedelta) -> bool:
    """Whether the collective is over, well or not: an exception may only say that the time was."""
    with suppress(RuntimeError):
        work.wait(time)
    return work.is_completed()


def form_group(store: str, name: str, rank: int, size: int, lost: Callable[[], bool], timeout_s: float) -> GlooGroup:
    """Forms the group `name` by a TCPStore, as HOST:PORT, that is no worker's.

    Raises PeerLost where `lost` says so, or where the others cannot be connected to.
    """
    if size == 1:
        return GlooGroup(0, 1, None, None, lost)
    forming: Future[Any] = Future()

    def form() -> None:
        try:
            host, _, port = store.rpartition(":")
            timeout = timedelta(seconds=timeout_s)
            named = dist.PrefixStore(name, dist.TCPStore(host, int(port), is_master=False, timeout=timeout))
            gloo = dist.ProcessGroupGloo(named, rank, size, timeout)
            forming.set_result((gloo, form_mesh(named, host, rank, size, lost, timeout_s)))
        except BaseException as error:  # noqa: BLE001 (raised by the thread that waits)
            forming.set_exception(error)

    threading.Thread(target=form, name="form-group", daemon=True).start()
    while not wait([forming], FORM_POLL_S).done:
        if lost():
            raise PeerLost("a worker was lost while the group was formed")
    try:
        gloo, mesh = forming.result()
        return GlooGroup(rank, size, gloo, mesh, lost)
    except RuntimeError as error:
        raise PeerLost(f"the group could not be formed: {error}") from error
