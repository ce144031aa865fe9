"""Ctrl-C: the run saves and ends, and the same command goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread

from simclr_ray.data.storage import Location
from simclr_ray.orchestrate.task import ask_to_end


def saved_at_interrupt(train: Callable[[], object], run: Location) -> None:
    """Calls `train`; at Ctrl-C the run saves and ends before KeyboardInterrupt is raised, at the next it ends at once.

    On a thread, because on the main one Ray answers Ctrl-C itself, without a save and with the code of a failure.
    """
    ended: Future[None] = Future()

    def call() -> None:
        try:
            train()
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 (raised by the caller's thread)
            ended.set_exception(error)

    Thread(target=call, name="train", daemon=True).start()
    try:
        ended.result()
    except KeyboardInterrupt:
        print("\nsaving; Ctrl-C again ends at once", file=sys.stderr)
        ask_to_end(run)
        ended.result()
        raise
