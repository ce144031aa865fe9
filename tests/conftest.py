"""Shapes are checked at run time, and nothing is written into the real HOME."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile

# Ray writes its token under HOME, and the decoded caches go to the temporary folder.
_home = tempfile.TemporaryDirectory(prefix="simclr_ray-home-")
os.environ["HOME"] = _home.name
os.environ["RAY_ADDRESS"] = "local"  # never join a cluster that happens to run on this machine
# Threads that wait spin for milliseconds, on cores that other processes need: a sixth of the tests' CPU time.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# A shell's background jobs ignore Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(
    ["simclr_ray.model", "simclr_ray.methods", "simclr_ray.optim", "simclr_ray.train", "simclr_ray.evaluate"],
    "checked.checked",
)
torch.set_num_threads(1)
EXIT_STATUS = pytest.StashKey[int]()
LONGEST = (
    "test_killed_driver.py",
    "test_experiments.py",
    "test_pretrain.py",
    "test_sweep.py",
    "test_gpu.py",
    "test_methods.py",
)
"""Files of a minute and more, longest first: of processes that share the files, none shall begin one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))  # stable


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends this process without the interpreter's own end.

    After all tests had passed, a whole run once died there of a segmentation fault: this process has by then had
    Arrow's, Ray's, torch's and moto's native threads together, as no command of ours has. The tests of the commands
    look at the exit codes of processes of their own.
    """
    if EXIT_STATUS in config.stash:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[EXIT_STATUS])
