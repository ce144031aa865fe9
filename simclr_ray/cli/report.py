"""Reports the progress of a run, its goodput, several runs side by side, or the findings of a sweep.

    python experiments/report.py RUN
    python experiments/report.py RUN --goodput
    python experiments/report.py RUN RUN ...
    python experiments/report.py SWEEP

RUN: a run folder, local or by URI, in training or not. SWEEP: the folder of a sweep. Plots and a page are written to
its folder report/. Several runs become one table of their accuracies, those that differ only in their seed one row of
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import time
from typing import Annotated

import tyro

from simclr_ray.cli.command import parse
from simclr_ray.config import BadInput
from simclr_ray.report.comparison import comparison
from simclr_ray.report.goodput import account, table
from simclr_ray.report.page import write_page
from simclr_ray.report.run import read_run, summary
from simclr_ray.report.sweep import findings
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import is_sweep
from simclr_ray.sweep.records import read_sweep


@dataclass(frozen=True, kw_only=True)
class Arguments:
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The folder of a run or a sweep, or of several runs to compare; local or by URI."""
    goodput: bool = False
    """Account for every second of a run: training, lost work, set-up, waiting by cause."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    sweeps = [run for run in arguments.runs if is_sweep(open_location(run))]
    if not arguments.runs:
        raise BadInput("name the folder of a run or a sweep, STORAGE/NAME")
    if arguments.goodput and (sweeps or len(arguments.runs) > 1):
        raise BadInput("--goodput is for one run, such as SWEEP/trial-0000")
    if sweeps and len(arguments.runs) > 1:
        raise BadInput(f"{sweeps[0]} is a sweep: name runs to compare, such as SWEEP/trial-0000")
    if sweeps:
        _report_sweep(sweeps[0])
    elif len(arguments.runs) > 1:
        print(comparison(arguments.runs))
    else:
        _report_run(arguments.runs[0], goodput=arguments.goodput)


def _report_sweep(folder: str) -> None:
    sweep = read_sweep(folder)
    print(findings(sweep))
    print(f"\nplots and all of this: {write_page(sweep)}")


def _report_run(folder: str, *, goodput: bool) -> None:
    now = time()
    run = read_run(folder, now)
    if goodput:
        print(table(account(run.events, run.rows, now=now if run.state == "running" else None)))
        return
    print(summary(run))

    from simclr_ray.report.run_page import write_run_page  # imports matplotlib, a second or two

    print(f"\nplots and all of this: {write_run_page(run)}")
