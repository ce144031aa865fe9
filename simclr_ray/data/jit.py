"""Numba compilation: `kernel`, cached on disk, for functions called from Python; `numba.njit` for what kernels call.

Kernels compile at their first call, not at import (no eager signatures): a process that only decodes spends no time,
and one that augments loads a single object file. Only kernels are cached, because that file holds all that they call.
A kernel must always be called with the same types: then processes that compile at the same moment, as they do under Ray
on a fresh node, write the same file under the same name, which Numba moves into place atomically.
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
    """`function` compiled without the GIL, from the cache if it is there; uncached if no folder can hold a cache."""
    folder = cache_folder()
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, folder or ""
    try:
        return numba.njit(nogil=True, cache=folder is not None)(function)
    finally:
        config.CACHE_DIR = before


@cache
def cache_folder() -> str | None:
    """The first writable folder owned by this user: in NUMBA_CACHE_DIR, the user's cache, or the temporary folder.

    Numba recompiles a cached kernel when the kernel's own file changes, not when a file of what it calls does. So the
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

    The cache is unpickled, so a folder that another user made in a shared /tmp must not be trusted.
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
