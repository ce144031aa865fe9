"""Reports the progress of a run, its goodput, or the findings of a sweep.

    python experiments/report.py RUN
    python experiments/report.py RUN --goodput
    python experiments/report.py SWEEP

RUN: a run folder, local or by URI, in training or not. SWEEP: the folder of a sweep; plots and page are written to its
folder report/.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import time
from typing import Annotated

import tyro

from simclr_ray.cli.command import parse
from simclr_ray.config import BadInput
from simclr_ray.report.goodput import account, table
from simclr_ray.report.page import write_page
from simclr_ray.report.run import read_run, summary
from simclr_ray.report.sweep import findings
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import is_sweep
from simclr_ray.sweep.records import read_sweep


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The folder of a run or a sweep, local or by URI."""
    goodput: bool = False
    """Account for every second of a run: training, lost work, set-up, waiting by cause."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    if is_sweep(open_location(arguments.run)):
        if arguments.goodput:
            raise BadInput(f"{arguments.run} is a sweep: --goodput is for one of its runs, such as SWEEP/trial-0000")
        sweep = read_sweep(arguments.run)
        print(findings(sweep))
        print(f"\nplots and all of this: {write_page(sweep)}")
        return
    now = time()
    run = read_run(arguments.run, now)
    if arguments.goodput:
        print(table(account(run.events, run.rows, now=now if run.state == "running" else None)))
    else:
        print(summary(run))
