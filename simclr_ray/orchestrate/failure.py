"""Classifies the failure of an attempt, and counts those in a row without a new checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from ray.experimental import internal_kv

from simclr_ray.config import BadInput
from simclr_ray.storage.location import Location
from simclr_ray.train.checkpoint import SavesFailed, complete_steps
from simclr_ray.train.metrics import Diverged

ATTEMPTS = 3
"""Attempts in a row without a new checkpoint after which a run is given up."""


def is_final(cause: BaseException) -> bool:
    """Whether another attempt would fail in the same way: bad input, a diverged loss, saves failing for too long."""
    return isinstance(cause, (BadInput, Diverged, SavesFailed))


def newest_step(run: Location) -> int | None:
    """The step of the newest complete checkpoint; None if there is none, or the store fails."""
    try:
        return max(complete_steps(run), default=None)
    except OSError:
        return None


class FailedAttempts:
    """Counts consecutive failed attempts at a run without a new checkpoint."""

    def __init__(self, run: Location) -> None:
        self._run, self._newest, self._count = run, newest_step(run), 0

    def one_too_many(self) -> bool:
        """Counts one more failure, from 1 if there is a new checkpoint; whether the count has reached ATTEMPTS."""
        before, self._newest = self._newest, newest_step(self._run)
        self._count = self._count + 1 if self._newest == before else 1
        return self._count == ATTEMPTS


def note_failure(driver: str, cause: BaseException) -> None:
    """Stores the cause for the next attempt, whose rank 0 writes it to events.jsonl."""
    internal_kv._internal_kv_put(_key(driver), described(cause), overwrite=True)


def last_failure(driver: str) -> str | None:
    """What ended the previous attempt under this driver."""
    text = internal_kv._internal_kv_get(_key(driver))
    return text.decode() if text else None


def unwrapped(error: BaseException) -> BaseException:
    """The innermost error: Ray Train wraps those of workers and of its controller, Ray Data those of data workers."""
    return list(layers(error))[-1]


def layers(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it wraps, outermost first."""
    names = ("_base_exc", "controller_failure", "health_check_failure", "cause")
    while isinstance(error, BaseException):
        yield error
        inner = [getattr(error, name, None) for name in names]
        error = next((each for each in inner if isinstance(each, BaseException)), None)


def described(cause: BaseException) -> str:
    """Type and first line of the message."""
    first = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {first[0] if first else ''}"


def _key(driver: str) -> str:
    return f"simclr_ray/failure/{driver}"
