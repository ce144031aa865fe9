"""Keeps the values that were used last, and drops the others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by key, whose weights add up to `limit` at most; the newest is kept whatever it weighs."""

    def __init__(self, limit: int, weight: Callable[[T], int], drop: Callable[[T], None] = lambda value: None) -> None:
        self._limit, self._weight, self._drop = limit, weight, drop
        self._values: OrderedDict[int, T] = OrderedDict()
        self._total = 0

    def get(self, key: int, make: Callable[[], T]) -> T:
        """The value of `key`, made if it is not kept. `drop` is called with each value that has to go for it."""
        if key not in self._values:
            self._values[key] = make()
            self._total += self._weight(self._values[key])
        self._values.move_to_end(key)
        while self._total > self._limit and len(self._values) > 1:
            oldest = self._values.popitem(last=False)[1]
            self._total -= self._weight(oldest)
            self._drop(oldest)
        return self._values[key]
