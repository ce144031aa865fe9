"""Lists the runs of a storage: state, step, last save, goodput.

    python experiments/status.py --storage URI [--json]

A sweep is one line that counts its trials. A folder that cannot be read is listed with its problem.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from time import time

from simclr_ray.cli.command import parse
from simclr_ray.report.status import list_runs, table


@dataclass(frozen=True, kw_only=True)
class Arguments:
    storage: str = "runs"
    """The runs' --storage, a folder or object-store URI."""
    json: bool = False
    """Print a JSON list of objects."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    found = list_runs(arguments.storage, time())
    if arguments.json:
        print(json.dumps([asdict(status) for status in found], indent=1))
    else:
        print(table(found) if found else f"no runs in {arguments.storage}")
