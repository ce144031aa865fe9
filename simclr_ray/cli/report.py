"""Reports the progress of a run, its goodput, several runs side by side, or the findings of a sweep.

    python experiments/report.py RUN
    python experiments/report.py RUN --goodput
    python experiments/report.py RUN --against NAME ... --train TRAIN --test TEST
    python experiments/report.py RUN RUN ...
    python experiments/report.py SWEEP

RUN: a run folder, local or by URI, in training or not. SWEEP: the folder of a sweep or an ablation. Plots and a page
are written to its folder report/. --against judges the encoder of a run beside others, and says whether it was worth
it. Several runs become one table of their accuracies, those that differ only in their seed one row of it, and a page
with their curves, comparison.html in the report/ of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import time
from typing import Annotated

import tyro

from simclr_ray.cli.command import parse, writing
from simclr_ray.config import BadInput
from simclr_ray.report.ablation import ablation_findings
from simclr_ray.report.comparison import compare_runs
from simclr_ray.report.goodput import account, table
from simclr_ray.report.page import write_page
from simclr_ray.report.run import read_run, summary
from simclr_ray.report.sweep import findings
from simclr_ray.report.worth import worth_of
from simclr_ray.storage.location import open_location, unreachable
from simclr_ray.storage.run_folder import EVALUATIONS, REPORT, is_sweep, read_rows
from simclr_ray.sweep.records import read_sweep


@dataclass(frozen=True, kw_only=True)
class Arguments:
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The folder of a run or a sweep, or of several runs to compare; local or by URI."""
    goodput: bool = False
    """Account for every second of a run: training, lost work, set-up, waiting by cause."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME|FILE|RUN [...]")] = ()
    """Judge the encoder against these first: a run, an encoder.safetensors, torchvision:NAME, timm:NAME, or ARCH=FILE;
    `pixels` for the run's baselines alone, which are always there. Minutes for large networks and data."""
    train: str | None = None
    """--against: labelled images, as evaluate.py takes them. None: those of the run's own check."""
    test: str | None = None
    """--against: likewise."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    sweeps = [run for run in arguments.runs if _is_sweep(run)]
    if not arguments.runs:
        raise BadInput("name the folder of a run or a sweep, STORAGE/NAME")
    if arguments.goodput and (sweeps or len(arguments.runs) > 1):
        raise BadInput("--goodput is for one run, such as SWEEP/trial-0000")
    if arguments.against and (arguments.goodput or sweeps or len(arguments.runs) > 1):
        raise BadInput("--against judges one run, such as SWEEP/trial-0000, without --goodput")
    if (arguments.train or arguments.test) and not arguments.against:
        raise BadInput("--train and --test are for --against NAME")
    if sweeps and len(arguments.runs) > 1:
        raise BadInput(f"{sweeps[0]} is a sweep: name runs to compare, such as SWEEP/trial-0000")
    if sweeps:
        _report_sweep(sweeps[0])
    elif len(arguments.runs) > 1:
        _compare(arguments.runs)
    else:
        if arguments.against:
            read_run(arguments.runs[0], time())  # it takes minutes, and what reports on it must be there

            from simclr_ray.orchestrate.judge import judge_run  # imports torch and Ray, which takes seconds

            judge_run(arguments.runs[0], arguments.against, arguments.train, arguments.test)
        _report_run(arguments.runs[0], goodput=arguments.goodput)


def _is_sweep(folder: str) -> bool:
    try:
        return is_sweep(open_location(folder))
    except OSError as error:
        raise unreachable("read", folder, error) from None


def _report_sweep(folder: str) -> None:
    sweep = read_sweep(folder)
    print(ablation_findings(sweep) if sweep.ablation else findings(sweep))
    with writing(f"{folder}/{REPORT}"):
        page = write_page(sweep)
    print(f"\nplots and all of this: {page}")


def _compare(runs: Sequence[str]) -> None:
    compared = compare_runs(runs)
    print(compared.text())

    from simclr_ray.report.comparison_page import write_comparison_page  # imports matplotlib, a second or two

    with writing(f"{runs[0]}/{REPORT}"):
        page = write_comparison_page(compared, open_location(runs[0]))
    print(f"\ncurves and all of this: {page}")


def _report_run(folder: str, *, goodput: bool) -> None:
    now = time()
    run = read_run(folder, now)
    if goodput:
        print(table(account(run.events, run.rows, now=now if run.state == "running" else None)))
        return
    print(summary(run))
    worth = worth_of(read_rows(open_location(folder) / EVALUATIONS))
    if worth:
        print(f"\n{worth.text()}")

    from simclr_ray.report.run_page import write_run_page  # imports matplotlib, a second or two

    with writing(f"{folder}/{REPORT}"):
        page = write_run_page(run)
    print(f"\nplots and all of this: {page}")
