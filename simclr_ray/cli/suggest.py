"""What to say after a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(name: str, names: Iterable[str]) -> str:
    """The nearest of the names that exist, or all of them where none is near: the end of an error's line."""
    listed = list(names)
    near = difflib.get_close_matches(name, listed, n=1)
    return f": did you mean {near[0]}?" if near else f": {', '.join(listed)}"
