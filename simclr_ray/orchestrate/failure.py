"""Which failures end a run: those that another attempt would repeat. All others are retried, however often."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.train import ControllerError, UserCallback, WorkerGroupError

from simclr_ray.config import BadInput
from simclr_ray.data.storage import Location
from simclr_ray.train.checkpoint import steps_in
from simclr_ray.train.loop import Diverged

ATTEMPTS = 3


class StopOnFailure(UserCallback):
    """Raises in Ray Train's controller, which ends the run: with `max_failures=-1` nothing else does.

    At once for bad input and a diverged loss; for another exception when ATTEMPTS in a row brought no new checkpoint.
    Lost nodes are not the run's fault and count for nothing.
    """

    def __init__(self, run: Location) -> None:
        self._run, self._newest, self._fruitless = run, self._newest_step(run), 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = [_unwrapped(error) for error in worker_exceptions.values()]
        for cause in causes:
            if isinstance(cause, (BadInput, Diverged)):
                raise cause
        own = [cause for cause in causes if not isinstance(cause, RayActorError)]
        newest = self._newest_step(self._run)
        self._fruitless = 0 if newest > self._newest else self._fruitless
        self._newest = newest
        if own:
            self._fruitless += 1
            if self._fruitless >= ATTEMPTS:
                raise own[0]

    @staticmethod
    def _newest_step(run: Location) -> int:
        return max(steps_in(run), default=0)


def cause_of(error: Exception) -> BaseException:
    """What went wrong, out of the wrappers that Ray Train puts around it."""
    if isinstance(error, ControllerError):
        return _unwrapped(error.controller_failure)
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return _unwrapped(next(iter(error.worker_failures.values())))
    return error


def _unwrapped(error: BaseException) -> BaseException:
    """Ray Train wraps a worker's exception (`_base_exc`), and a controller's own again in a ControllerError."""
    while True:
        inner = getattr(error, "_base_exc", None) or getattr(error, "controller_failure", None)
        # Ray Data hides what its data workers raised behind `cause`.
        inner = inner or getattr(error, "cause", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner
