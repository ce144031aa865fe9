"""Decides which failures of a group of workers end a run. Lost nodes and planned ends are always retried."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.train import ControllerError, UserCallback, WorkerGroupError
from torch.distributed import DistNetworkError

from simclr_ray.orchestrate.failure import ATTEMPTS, is_final, layers, newest_step, note_failure, unwrapped
from simclr_ray.orchestrate.preemption.drain import draining, staying
from simclr_ray.orchestrate.survivors import members_of
from simclr_ray.storage.location import Location
from simclr_ray.train.control import Interrupted
from simclr_ray.train.memory import too_few_workers

NODE_DIED = "its node has died"
"""From Ray's message: the error has no field that distinguishes a lost node from a process that died on a live one."""


class GivenUp(Exception):
    """Ends the run: another attempt would fail as this one did."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


class StopOnFailure(UserCallback):
    """Raises GivenUp in Ray Train's controller, which ends the run: with `max_failures=-1` nothing else does.

    At once for bad input, a diverged loss and saves that failed for too long; for any other exception after ATTEMPTS in
    a row without a new checkpoint. Not counted are lost nodes, planned ends, and workers that others survive; a worker
    that died on a node that is still there is, because it would probably die again, out of memory for example. Too few
    workers for the memory of their GPUs are no bad input while more may come, up to `max_workers`: `CorrectedPlacement`
    waits for them.
    """

    def __init__(self, run: Location, driver: str, max_workers: int) -> None:
        self._run, self._driver, self._max_workers = run, driver, max_workers
        self._too_few = 0
        self._newest, self._count = newest_step(run), 0
        self._nodes = _nodes()
        self._known: set[tuple[int, str]] = set()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = [unwrapped(error) for error in worker_exceptions.values()]
        others_train, known = members_of(self._driver).training > 0, self._known
        self._known = {(rank, str(error)) for rank, error in worker_exceptions.items()}
        if others_train and self._known <= known:
            return  # a worker that is not replaced is met at every poll
        with suppress(RayError):
            note_failure(self._driver, causes[0])
        for cause in causes:
            if is_final(cause) and not 0 < too_few_workers(cause) < self._max_workers:
                raise GivenUp(cause)
        if others_train:
            return  # no attempt has failed
        newest, too_few = newest_step(self._run), max(map(too_few_workers, causes))
        if newest not in (None, self._newest) or self._too_few < too_few < self._max_workers:
            self._newest, self._count, self._too_few = newest, 0, max(self._too_few, too_few)
        before, self._nodes = self._nodes, _nodes()
        # Losing one worker breaks the others' collectives, so their errors do not count either.
        if before <= self._nodes and not any(_is_not_counted(cause) for cause in causes):
            self._count += 1
            if self._count >= ATTEMPTS:
                raise GivenUp(next((cause for cause in causes if isinstance(cause, RayActorError)), causes[0]))


def _is_not_counted(cause: BaseException) -> bool:
    if isinstance(cause, ActorDiedError):
        return cause.preempted or NODE_DIED in str(cause)
    return isinstance(cause, (RayActorError, Interrupted))  # an unreachable worker: most likely its node is


def _nodes() -> set[str]:
    """Ids of the living nodes that are not draining."""
    return {node["NodeID"] for node in staying(ray.nodes(), draining())}


def cause_of(error: Exception) -> BaseException:
    """The original error, without Ray Train's wrappers."""
    if isinstance(error, ControllerError):
        return unwrapped(error.controller_failure)
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return unwrapped(next(iter(error.worker_failures.values())))
    return error


def lost_while_starting(error: BaseException) -> bool:
    """Whether a worker was lost in the seconds in which a group starts, which Ray Train retries only in part.

    It restarts the group when an actor's death is reported, but not when the others' connections to it fail first.
    """
    wrapped = list(layers(error))
    if not isinstance(error, ControllerError) or any(isinstance(layer, GivenUp) for layer in wrapped):
        return False
    return isinstance(wrapped[-1], (RayActorError, DistNetworkError, ConnectionError))
