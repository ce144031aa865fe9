"""How a step on a fixed batch is measured: warmed up, then the median over as many steps as fill the time."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

WARM_UP = 3
LEAST = 3


def warmed_up(step: Callable[[], object], seconds: float) -> int:
    """Takes the first steps, which grow the memory that later ones use again; gives how many more fill `seconds`."""
    took = [_seconds(step) for _ in range(WARM_UP)]
    return max(LEAST, round(seconds / took[-1]))


def images_per_s(step: Callable[[], object], steps: int, rows: int) -> float:
    return rows / median(_seconds(step) for _ in range(steps))


def _seconds(step: Callable[[], object]) -> float:
    start = perf_counter()
    step()
    return perf_counter() - start
