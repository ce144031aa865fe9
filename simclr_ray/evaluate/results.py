"""The rows of evaluation.jsonl: one for each evaluation of a run, appended here and shown as a table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from simclr_ray.config import BadInput
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import EVALUATIONS, Row

OURS = "pretrained"
"""What the encoder of the run is called in `results`."""
BASELINES = ("pixels", "untrained", "initial")
"""What stands beside it there without a name of its own: the images, and the weights that the run started from."""


def result_row(method: str, settings: dict[str, Any], train: str, test: str, fraction: float) -> Row:
    """The first columns of a row: when, how, and on what the encoder was scored."""
    row: Row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "method": method, "settings": settings}
    return row | {"train": train, "test": test, "fraction": fraction}


def append_result(run: Location, row: Row) -> None:
    """Raises BadInput, which quotes the row, where it cannot be written."""
    file, line = run / EVALUATIONS, json.dumps(row)
    # An object store cannot append, so the whole file is written again: a few hundred bytes for each evaluation.
    try:
        before = file.read_bytes() if file.exists() else b""
        file.write_bytes(before + line.encode() + b"\n")
    except OSError as error:
        raise BadInput(f"cannot write {file}: {str(error).splitlines()[0]}; the result is {line}") from None


def summary(row: Row) -> str:
    """A row as a small table."""
    settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
    lines = [
        f"{row['method']} ({settings})",
        f"trained on {row['train_rows']:,} images, tested on {row['test_rows']:,}, {row['bad']:,} bad ones left out",
        f"{'':<12}{'top-1 %':>9}{'top-5 %':>9}",
    ]
    lines += [f"{name:<12}{found['top1']:>9.2f}{found['top5']:>9.2f}" for name, found in row["results"].items()]
    return "\n".join(lines)
