"""The lease that keeps a run to one driver: the driver's id in the run folder, renewed while the driver lives."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep, time

from simclr_ray.config import BadInput
from simclr_ray.periodic import repeating
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import DRIVER

RENEW_S = 10.0
PATIENCE_S = 60.0
"""A lease that has not been renewed for so long is given up."""
ENDING_S = 5.0
"""A driver on this machine that was just told to end may take so long."""


@contextmanager
def lease(run: Location) -> Iterator[str]:
    """Holds the run for this driver and gives its id. Raises BadInput while another driver holds it.

    The lease of a driver that died on this machine is taken over at once, that of one elsewhere when it has not been
    renewed for PATIENCE_S. A driver that lost its lease finds out by `holds`, which it calls before each save.
    """
    _wait_for_other(run)
    mine = uuid.uuid4().hex

    def renew() -> None:
        try:
            if holds(run, mine):
                _write(run, mine)
        except OSError:
            pass  # a failing store: the next renewal is tried as usual

    _write(run, mine)
    try:
        with repeating(renew, RENEW_S):
            yield mine
    finally:
        with contextlib.suppress(OSError):  # a lease that stays is given up by the next driver, as after a crash
            if holds(run, mine):
                (run / DRIVER).delete()


def holds(run: Location, driver: str) -> bool:
    """Whether the lease is still that of `driver`."""
    held = _read(run)
    return held is not None and held["driver"] == driver


def is_held(run: Location, now: float) -> bool:
    """Whether a driver has renewed the lease within PATIENCE_S before the unix time `now`."""
    held = _read(run)
    return held is not None and now - held["time"] < PATIENCE_S


def require_held(run: Location, driver: str) -> None:
    """Called by every worker at its start: raises BadInput where the run folder seen from here is not the driver's."""
    held = _read(run)
    if held is None:
        raise BadInput(f"{run} cannot be seen from every node: give --storage a shared folder or an object store")
    if held["driver"] != driver:
        raise BadInput(f"{run} was taken over by another driver (pid {held['pid']} on {held['host']})")


def require_free(run: Location) -> None:
    """Raises BadInput where another process of this machine holds a fresh lease, and still does after ENDING_S.

    A driver's first look, before it starts Ray: `lease` itself waits for a renewal, as a process may be one that hangs.
    """
    deadline = monotonic() + ENDING_S
    while (held := _read(run)) is not None and _lives_here(held) and time() - held["time"] < 2 * RENEW_S:
        if monotonic() >= deadline:
            raise _held_by(run, held)
        sleep(0.2)


def _wait_for_other(run: Location) -> None:
    seen, deadline = _read(run), monotonic() + PATIENCE_S
    while seen is not None and not _is_dead(seen):
        if monotonic() > deadline:
            return
        sleep(1)
        now = _read(run)
        if now is not None and now != seen:
            raise _held_by(run, now)
        seen = now


def _held_by(run: Location, held: dict) -> BadInput:
    return BadInput(
        f"{run} is being trained by another driver (pid {held['pid']} on {held['host']}): "
        "stop that one, or use another --name"
    )


def _is_dead(held: dict) -> bool:
    return held["host"] == _host() and not _lives_here(held)


def _lives_here(held: dict) -> bool:
    """Whether the driver is another process of this machine. Its id may since be that of an unrelated process."""
    if held["host"] != _host() or held["pid"] == os.getpid():
        return False
    with contextlib.suppress(PermissionError):  # another user's
        try:
            os.kill(held["pid"], 0)
        except ProcessLookupError:
            return False
    return True


def _host() -> str:
    """The host's name and pid namespace: containers may share the name, but not their processes."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _write(run: Location, driver: str) -> None:
    content = {"driver": driver, "host": _host(), "pid": os.getpid(), "time": time()}
    (run / DRIVER).write_bytes(json.dumps(content).encode())


def _read(run: Location) -> dict | None:
    try:
        return json.loads((run / DRIVER).read_bytes())
    except FileNotFoundError:
        return None
