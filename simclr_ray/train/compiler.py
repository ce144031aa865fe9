"""Settings of torch's compiler for a worker that shares its machine and starts again in other groups."""

from __future__ import annotations

import os

import torch._functorch.config
import torch._inductor.config

MOST_THREADS = 32
"""torch's own limit."""


def set_up_compiler(cpus: float) -> None:
    """Compiles with the CPUs of this worker, not with all of its machine, unless the user's environment says how many;
    and finds again what was compiled on it before, the graphs with BatchNorm over several workers too.

    These hold a custom autograd function, for which torch's cache must be asked: its own code is in the graph.
    """
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        torch._inductor.config.compile_threads = max(1, min(MOST_THREADS, int(cpus)))
