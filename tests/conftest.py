"""Shapes are checked at run time, and nothing is written into the real HOME."""

from __future__ import annotations

import os
import signal
import tempfile

# Ray writes its token under HOME, and the decoded caches go to the temporary folder.
_home = tempfile.TemporaryDirectory(prefix="simclr_ray-home-")
os.environ["HOME"] = _home.name
os.environ["RAY_ADDRESS"] = "local"  # never join a cluster that happens to run on this machine
# A shell's background jobs ignore Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(
    ["simclr_ray.model", "simclr_ray.methods", "simclr_ray.optim", "simclr_ray.train", "simclr_ray.evaluate"],
    "checked.checked",
)
torch.set_num_threads(1)
