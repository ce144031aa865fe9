"""Ctrl-C: the run saves and ends, and the same command resumes it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager

from simclr_ray.orchestrate.task import request_end
from simclr_ray.storage.location import Location

POLL_S = 0.5
SAVING = "\nsaving; Ctrl-C again ends at once"


@contextmanager
def saving_at_interrupt(run: Location) -> Iterator[None]:
    """For training in this thread: at Ctrl-C the run saves, ends and raises KeyboardInterrupt; at a second one at once.

    Only a process's main thread receives Ctrl-C; in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def save_and_end(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, before)
        print(SAVING, file=sys.stderr)
        request_end(run)

    before = signal.signal(signal.SIGINT, save_and_end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def saved_at_interrupt(train: Callable[[], object], run: Location, over: Callable[[], bool] | None = None) -> None:
    """Calls `train`; at Ctrl-C the run saves and ends before KeyboardInterrupt is raised, at a second one it ends at
    once. Once `over` says so, it does not wait for `train` any longer.

    On a thread, because on the main one Ray handles Ctrl-C itself, without a save and with the exit code of a failure.
    """
    ended: Future[None] = Future()

    def call() -> None:
        try:
            train()
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 (raised by the caller's thread)
            ended.set_exception(error)

    with saving_at_interrupt(run):
        threading.Thread(target=call, name="train", daemon=True).start()
        while not (over and over()):
            if wait([ended], POLL_S).done:
                return ended.result()
