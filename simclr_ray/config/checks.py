"""Checks of the user's settings: `BadInput`, ranges, and values against declared types."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal


class BadInput(ValueError):
    """The user's input cannot work; the message says what is wrong and what to do. Commands exit with 2."""


def require(ok: bool, message: str) -> None:
    if not ok:
        raise BadInput(message)


def require_at_least(bound: float, group: str, settings: Any, *names: str) -> None:
    """Raises BadInput unless every value passes; None passes, as a value that is not resolved yet."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= bound, f"{group}.{name} must be at least {bound}, not {value}")


def require_positive(group: str, settings: Any, *names: str) -> None:
    """Raises BadInput unless every value passes; None passes, as a value that is not resolved yet."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value > 0, f"{group}.{name} must be positive, not {value}")


def checked(key: str, hint: Any, value: Any) -> Any:
    """`value` converted to the type `hint` of `key` (a JSON list becomes a tuple, an int a float). Raises BadInput.

    A `hint` of None means that there is no such key.
    """
    require(hint is not None, f"no such setting: {key}; the settings are listed by --help")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)) and len(value) == 3:
            return tuple(float(v) for v in value)
        if option is types.NoneType and value is None:
            return None
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and type(value) is option:
            return value
    wanted = getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
    raise BadInput(f"{key} must be {wanted}, not {value!r}")
