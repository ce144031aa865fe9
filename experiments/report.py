"""Says how far a run is, or where its time went.

    python experiments/report.py RUN
    python experiments/report.py RUN --goodput

RUN: a run folder, local or by URI, that is trained now or was once.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import time
from typing import Annotated

import tyro

from simclr_ray.command import parse, run_command
from simclr_ray.report.goodput import account, table
from simclr_ray.report.run import read_run, summary


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder, local or by URI."""
    goodput: bool = False
    """Account for every second: training, lost work, set-up, waiting by cause."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    now = time()
    run = read_run(arguments.run, now)
    if arguments.goodput:
        print(table(account(run.events, run.rows, now=now if run.state == "running" else None)))
    else:
        print(summary(run))


if __name__ == "__main__":
    run_command(main)
