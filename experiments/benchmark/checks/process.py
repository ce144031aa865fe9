"""Runs a function in a process of its own, forked from one that has done the imports, with a time limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from checks.check import Failed, Skip

T = TypeVar("T")


def in_process(work: Callable[[], T], limit_s: float, output: Path) -> T:
    """The result of `work`, whose processes are killed afterwards; what they print goes to the file `output`.

    This process must not have used the GPU, which does not survive a fork. Raises Skip, and Failed for whatever else
    `work` raises, for the death of its process and for the end of its time.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(work, theirs, output))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            raise Failed(f"no result within {limit_s:.0f} s")
        result = ours.recv()
    except EOFError:
        process.join()
        raise Failed(f"its process ended with exit code {process.exitcode}") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.kill()
        process.join()
    if isinstance(result, Skip | Failed):
        raise result
    return result


def _main(work: Callable[[], object], pipe: Connection, output: Path) -> None:
    os.setsid()
    with open(output, "wb") as stream:
        for fd in (1, 2):
            os.dup2(stream.fileno(), fd)
    try:
        result = work()
    except (Skip, Failed) as reason:
        result = reason
    except BaseException as error:  # noqa: BLE001 (whatever it was, the table names it)
        traceback.print_exc()
        result = Failed(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    pipe.send(result)
