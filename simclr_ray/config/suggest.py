"""What to say after a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 30


def suggestion(name: str, names: Iterable[str]) -> str:
    """The nearest of the names that exist, or where none is near all of a short list: the end of an error's line."""
    listed = list(names)
    near = difflib.get_close_matches(name, listed, n=1)
    if near:
        return f": did you mean {near[0]}?"
    return f": {', '.join(listed)}" if len(listed) <= MOST_LISTED else ""
