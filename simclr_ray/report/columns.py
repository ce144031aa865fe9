"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def in_columns(lines: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Lines of as many cells each, padded to columns; the columns of the numbers `right` are flush right."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return ["  ".join(_padded(line, widths, right)).rstrip() for line in lines]


def _padded(line: Sequence[str], widths: Sequence[int], right: Collection[int]) -> list[str]:
    cells = enumerate(zip(line, widths, strict=True))
    return [cell.rjust(width) if at in right else cell.ljust(width) for at, (cell, width) in cells]
