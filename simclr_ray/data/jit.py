"""Compiling for Numba: `kernel` for what Python calls, with a cache on disk; plain `numba.njit` for what kernels call.

Kernels compile at their first call, not at import (no eager signatures): a process that only decodes pays nothing, and
one that augments loads a single object file. Only kernels are cached, because that file holds all that they call. A
kernel must always be called with the same types: then processes that compile at the same moment, as they do under Ray
on a fresh node, write the same file under the same name, and Numba moves it into place whole.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled without the GIL, from the cache if it is there; without a cache if no folder can hold one."""
    folder = cache_folder()
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, folder or ""
    try:
        return numba.njit(nogil=True, cache=folder is not None)(function)
    finally:
        config.CACHE_DIR = before


@cache
def cache_folder() -> str | None:
    """The first folder that can be written and is ours alone: of NUMBA_CACHE_DIR, the user's cache, the temporary one.

    Numba renews a cached kernel when the kernel's own file changes, not when a file of what it calls does. So the
    folder is named by the contents of all of them.
    """
    name = f"simclr_ray-{os.getuid()}-{_sources_digest()}"
    bases = (
        os.environ.get("NUMBA_CACHE_DIR", ""),
        os.environ.get("XDG_CACHE_HOME", "") or os.path.expanduser("~/.cache"),
        tempfile.gettempdir(),
    )
    return next((os.path.join(base, name) for base in bases if os.path.isabs(base) and _is_ours(base, name)), None)


def _is_ours(base: str, name: str) -> bool:
    """Whether the folder exists or could be made, can be written, and belongs to this user.

    The cache is unpickled, so a folder that somebody else laid out in a shared /tmp must not be trusted.
    """
    folder = os.path.join(base, name)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return os.stat(folder).st_uid == os.getuid()
    except OSError:
        return False


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
