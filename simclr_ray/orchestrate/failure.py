"""Which failures end a run: those that another attempt would repeat. Lost nodes and the like are always retried."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.experimental import internal_kv
from ray.train import ControllerError, UserCallback, WorkerGroupError

from simclr_ray.config import BadInput
from simclr_ray.data.storage import Location
from simclr_ray.train.checkpoint import SavesFailed, complete_steps
from simclr_ray.train.control import Interrupted
from simclr_ray.train.loop import Diverged

ATTEMPTS = 3


class StopOnFailure(UserCallback):
    """Raises in Ray Train's controller, which ends the run: with `max_failures=-1` nothing else does.

    At once for bad input, a diverged loss and a store that failed for too long; for another exception when ATTEMPTS in
    a row brought no new checkpoint. Lost nodes and ends on purpose are not the run's fault and count for nothing.
    """

    def __init__(self, run: Location, driver: str) -> None:
        self._run, self._driver = run, driver
        self._newest, self._fruitless = newest_step(run), 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = [unwrapped(error) for error in worker_exceptions.values()]
        internal_kv._internal_kv_put(_key(self._driver), described(causes[0]), overwrite=True)
        for cause in causes:
            if isinstance(cause, (BadInput, Diverged, SavesFailed)):
                raise cause
        newest = newest_step(self._run)
        if newest not in (None, self._newest):
            self._newest, self._fruitless = newest, 0
        own = [cause for cause in causes if not isinstance(cause, (RayActorError, Interrupted))]
        # Losing one worker breaks the others' collectives: their errors are the lost node's.
        if own and len(own) == len(causes):
            self._fruitless += 1
            if self._fruitless >= ATTEMPTS:
                raise own[0]


def newest_step(run: Location) -> int | None:
    """The newest whole checkpoint; None where there is none, or the store does not answer."""
    try:
        return max(complete_steps(run), default=None)
    except OSError:
        return None


def last_failure(driver: str) -> str | None:
    """What ended the last attempt under this driver, for the next one's records."""
    text = internal_kv._internal_kv_get(_key(driver))
    return text.decode() if text else None


def cause_of(error: Exception) -> BaseException:
    """What went wrong, out of the wrappers that Ray Train puts around it."""
    if isinstance(error, ControllerError):
        return unwrapped(error.controller_failure)
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return unwrapped(next(iter(error.worker_failures.values())))
    return error


def unwrapped(error: BaseException) -> BaseException:
    """The innermost error: Ray Train wraps those of workers and of its controller, Ray Data those of data workers."""
    while True:
        for name in ("_base_exc", "controller_failure", "cause"):
            inner = getattr(error, name, None)
            if isinstance(inner, BaseException):
                error = inner
                break
        else:
            return error


def described(cause: BaseException) -> str:
    """Its kind and the first line of its words."""
    first = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {first[0] if first else ''}"


def _key(driver: str) -> str:
    return f"simclr_ray/failure/{driver}"
