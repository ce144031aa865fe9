"""Which failures of a group of workers end a run. Lost nodes and the like are always retried."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError
from ray.train import ControllerError, UserCallback, WorkerGroupError
from torch.distributed import DistNetworkError

from simclr_ray.orchestrate.failure import ATTEMPTS, is_final, layers, newest_step, note_failure, unwrapped
from simclr_ray.orchestrate.preemption.drain import draining
from simclr_ray.storage.location import Location
from simclr_ray.train.control import Interrupted

NODE_DIED = "its node has died"
"""Of Ray's message: no field of the error distinguishes a lost machine from a process that died on one that stays."""


class GivenUp(Exception):
    """Another attempt would end as this one did."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


class StopOnFailure(UserCallback):
    """Raises in Ray Train's controller, which ends the run: with `max_failures=-1` nothing else does.

    At once for bad input, a diverged loss and a store that failed for too long; for another exception when ATTEMPTS in
    a row brought no new checkpoint. Lost nodes and ends on purpose are not the run's fault and count for nothing; a
    worker that died on a node that stays, out of memory perhaps, would die there again.
    """

    def __init__(self, run: Location, driver: str) -> None:
        self._run, self._driver = run, driver
        self._newest, self._fruitless = newest_step(run), 0
        self._nodes = _nodes()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = [unwrapped(error) for error in worker_exceptions.values()]
        note_failure(self._driver, causes[0])
        for cause in causes:
            if is_final(cause):
                raise GivenUp(cause)
        newest = newest_step(self._run)
        if newest not in (None, self._newest):
            self._newest, self._fruitless = newest, 0
        before, self._nodes = self._nodes, _nodes()
        # Losing one worker breaks the others' collectives: their errors are the lost node's.
        if before <= self._nodes and not any(_not_its_fault(cause) for cause in causes):
            self._fruitless += 1
            if self._fruitless >= ATTEMPTS:
                raise GivenUp(next((cause for cause in causes if isinstance(cause, RayActorError)), causes[0]))


def _not_its_fault(cause: BaseException) -> bool:
    if isinstance(cause, ActorDiedError):
        return cause.preempted or NODE_DIED in str(cause)
    return isinstance(cause, (RayActorError, Interrupted))  # a worker out of reach: its machine is, most likely


def _nodes() -> set[str]:
    """Those that are here to stay."""
    leaving = draining()
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving}


def cause_of(error: Exception) -> BaseException:
    """What went wrong, out of the wrappers that Ray Train puts around it."""
    if isinstance(error, ControllerError):
        return unwrapped(error.controller_failure)
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return unwrapped(next(iter(error.worker_failures.values())))
    return error


def lost_while_starting(error: BaseException) -> bool:
    """Whether a worker was lost in the seconds in which a group starts. Ray Train retries that only in part.

    It starts a group again when an actor dies there, but not when the other workers notice it first.
    """
    wrapped = list(layers(error))
    if not isinstance(error, ControllerError) or any(isinstance(layer, GivenUp) for layer in wrapped):
        return False
    return isinstance(wrapped[-1], (RayActorError, DistNetworkError, ConnectionError))
