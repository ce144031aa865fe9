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
SHOWN_FROM = 0.5
"""In percent: the difference between mean per class and top-1 from which both are shown."""


def result_row(
    method: str, settings: dict[str, Any], train: str, test: str, fraction: float, encoder: Location, sha256: str
) -> Row:
    """The first columns of a row: when, how, and on what an encoder was scored, and which: the file and its sha256."""
    row: Row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "method": method, "settings": settings}
    row |= {"train": train, "test": test, "fraction": fraction}
    return row | {"encoder": encoder.name, "encoder_sha256": sha256}


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
    """A row as a small table; with the mean over classes where it differs, as where these differ in size."""
    settings, results = ", ".join(f"{name} {value}" for name, value in row["settings"].items()), row["results"]
    columns = {"top1": ("top-1 %", ".2f"), "top5": ("top-5 %", ".2f")}
    if any(abs(found.get("mean_per_class", found["top1"]) - found["top1"]) >= SHOWN_FROM for found in results.values()):
        columns["mean_per_class"] = ("per class %", ".2f")
    if all("l2" in found for found in results.values()):
        columns["l2"] = ("l2", ".2g")
    lines = [
        f"{row['method']} of {row['encoder']} ({settings})",
        f"trained on {row['train_rows']:,} images, tested on {row['test_rows']:,}, {row['bad']:,} bad ones left out",
        f"{'':<12}" + "".join(f"{heading:>13}" for heading, _ in columns.values()),
    ]
    for name, found in results.items():
        lines.append(f"{name:<12}" + "".join(f"{found[key]:>13{form}}" for key, (_, form) in columns.items()))
    return "\n".join(lines)
