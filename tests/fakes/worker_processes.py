"""Worker processes, forked from a server that has done what each would begin with (see worker_begun.py)."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["worker_begun"])


def worker_context() -> Any:
    """For `Process` and `Pipe` of `multiprocessing`."""
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), os.getenv("PYTHONPATH", "")])):
        forkserver.ensure_running()  # if it runs, it stays; it must find the modules of this folder
    return _forking
