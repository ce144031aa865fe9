"""What a tracker holds of a run: its id and name, and the values of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import EVENTS, TRIAL, Row, read_rows


@runtime_checkable
class Series(Protocol):
    """What the service holds of one run. Any method, and making one, may raise anything and take any time."""

    last_step: int
    """That of the last row that the service has; -1: none."""

    def log(self, rows: Sequence[Row]) -> None: ...

    def close(self) -> None: ...


def series_id(run: Location) -> str:
    """Of the run's series: the same at every start, another one for a run that begins anew under the same name."""
    events = read_rows(run / EVENTS)
    if not events:
        raise OSError(f"{run / EVENTS} is not written yet")
    return hashlib.sha256(f"{run.name} {events[0]['time']}".encode()).hexdigest()[:16]


def series_name(run: Location) -> str:
    """The run's; a trial's is that of its sweep and its own."""
    return f"{run.parent.name}/{run.name}" if TRIAL.fullmatch(run.name) else run.name


def scalars(row: Row) -> dict[str, float]:
    """The values of a row that are drawn over its step."""
    numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
    return {key: value for key, value in numbers.items() if key not in ("step", "time")}
