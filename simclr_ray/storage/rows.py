"""The records of a run, JSON rows one a line: read whole, however the writer ended."""

from __future__ import annotations

import json
from typing import Any

from simclr_ray.storage.location import Location

Row = dict[str, Any]


def read_rows(file: Location) -> list[Row]:
    """The rows of a JSON-lines file; a last line that was cut short is left out, a missing file has none."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_bytes().decode().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
