"""A plan for a terminal, with the figures that it rests on; and a plan beside the records of a finished run."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from statistics import median

from simclr_ray.config import BadInput, Config, as_resolved, science_changes
from simclr_ray.evaluate.fitted import allowing_for_fit
from simclr_ray.planning.estimate import Plan, usd_per_hour
from simclr_ray.planning.figures import Figures
from simclr_ray.planning.job import Fleet, Job
from simclr_ray.report.goodput import EVALUATION, FIRST_BATCH, SETUP, TRAINING, account
from simclr_ray.report.run import read_run
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import CONFIG, read_config


def table(plan: Plan, job: Job, fleet: Fleet, figures: Figures) -> str:
    """The answer, what each part alone would allow, where the time goes, and every figure with its source."""
    price = usd_per_hour(fleet, figures)
    return "\n".join(
        [
            f"{_machines(fleet)}: {job.steps:,} steps of {job.global_batch:,} images",
            "",
            f"time        {plan.hours:,.1f} h ({_clock(3600 * plan.hours)})",
            f"price       {plan.dollars:,.2f} USD at {price:,.2f} an hour, without storage and traffic",
            f"speed       {plan.images_per_s:,.0f} images/s",
            f"bottleneck  {plan.step_time.bottleneck}",
            f"goodput     {plan.goodput:.1%}, with {plan.interruptions:,.1f} interruptions",
            f"prepare     {plan.prepare_s / 3600:,.1f} h before, once, at least: one process writes the dataset",
            "",
            *_limits(plan, job),
            "",
            *_seconds(plan),
            "",
            *_figures(figures),
        ]
    )


def _machines(fleet: Fleet) -> str:
    cpu_nodes = f" and {fleet.cpu_nodes} x {fleet.cpu_machine.name}" if fleet.cpu_machine else ""
    return (
        f"{fleet.workers} workers on {fleet.nodes} x {fleet.machine.name}{cpu_nodes}, {fleet.data_cpus:g} CPUs for the "
        "data of each"
    )


def _limits(plan: Plan, job: Job) -> list[str]:
    time = plan.step_time
    parts = [
        ("step", time.step, "training alone"),
        ("gradients", time.step + time.gradients, "training, then all-reduces"),
        ("feed", time.feed, "decoding, views, Ray Data"),
        ("store", time.store, "reading images; 0: cached on every node"),
        ("cores", time.cores, "step and feed on the same CPUs; 0: on a GPU"),
    ]
    lines = [f"{name:<12}{job.global_batch / s if s else 0:>12,.0f}  {what}" for name, s, what in parts]
    return ["images/s that each alone allows", *lines]


def _seconds(plan: Plan) -> list[str]:
    parts = [
        ("until the first worker", plan.start_s),
        ("set-up, first step", plan.first_step_s),
        ("training", plan.training_s),
        ("slower in smaller groups", plan.slow_s),
        ("interruptions, work lost", plan.lost_s),
        ("evaluation", plan.evaluation_s),
        ("held up by saves", plan.stalls_s),
    ]
    return [f"{'':<26}{'seconds':>12}", *(f"{name:<26}{seconds:>12,.1f}" for name, seconds in parts)]


def _figures(figures: Figures) -> list[str]:
    lines = [f"{name:<28}{_number(figure.value):>10}  {figure.source}" for name, figure in figures.rows()]
    return [f"{'figure':<40}source", *lines]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One quantity, as planned and as a run had it."""

    name: str
    planned: float
    actual: float

    @property
    def ratio(self) -> float:
        return self.planned / self.actual if self.actual else float("nan")


def against(plan: Plan, config: Config, run: str, now: float, requested: Set[str] = frozenset()) -> list[Compared]:
    """The plan beside the records of a finished run of the same science. Raises BadInput for another one.

    `requested`: the dotted keys that the user set; what the run's start has fitted to its data is not among them.
    """
    records = read_run(run, now)
    theirs = read_config(open_location(run))
    if theirs is None:
        raise BadInput(f"{run} has no {CONFIG}: it is no run folder")
    changes = science_changes(theirs, allowing_for_fit(as_resolved(config, theirs), theirs, requested))
    if changes:
        raise BadInput(f"{run} was trained with other settings ({', '.join(changes)}): plan for the same ones")
    if records.state != "finished":
        raise BadInput(f"{run} is {records.state}: compare with a run that has ended")
    found = account(records.events, records.rows)
    # The first row has waited for the first batch too.
    speeds = [row["images_per_s"] for row in records.rows[1:]] or [row["images_per_s"] for row in records.rows]
    return [
        Compared(name="images/s", planned=plan.images_per_s, actual=median(speeds)),
        Compared(name="seconds of set-up, first step", planned=plan.first_step_s, actual=_sum(found.seconds)),
        Compared(name="seconds of training", planned=plan.training_s + plan.slow_s, actual=found.seconds[TRAINING]),
        Compared(name="seconds of evaluation", planned=plan.evaluation_s, actual=found.seconds[EVALUATION]),
        Compared(name="seconds in all", planned=plan.records_s, actual=found.total_s),
        Compared(name="goodput", planned=plan.goodput, actual=found.fraction),
    ]


def _sum(seconds: dict[str, float]) -> float:
    return seconds[SETUP] + seconds[FIRST_BATCH]


def comparison(rows: Sequence[Compared]) -> str:
    """For a terminal. Seconds are those of the records, from the first worker on."""
    lines = [f"{row.name:<32}{_number(row.planned):>10}{_number(row.actual):>10}{row.ratio:>8.2f}" for row in rows]
    return "\n".join([f"{'':<32}{'planned':>10}{'run':>10}{'ratio':>8}", *lines])
