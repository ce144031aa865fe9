"""Calls a function periodically on a thread beside a block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(function: Callable[[], None], every_s: float) -> Iterator[None]:
    """Calls `function` on a thread every `every_s` seconds until the block ends; the last call is over by then."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(every_s):
            function()

    thread = threading.Thread(target=repeat, name=function.__name__, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
