"""What an ablation found: a row for each config, beside the paper's figure, and whether the order is the paper's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from simclr_ray.report.columns import in_columns
from simclr_ray.report.comparison import half_interval
from simclr_ray.storage.run_folder import METRICS, read_rows
from simclr_ray.sweep.ablations import ABLATIONS, Point
from simclr_ray.sweep.records import SweepRecords
from simclr_ray.sweep.trials import Trial

NOTE = (
    "The paper's figures are top-1 on ImageNet, linear evaluation, after far more training: compare orders, not "
    "percents. ± is half of the 95 % confidence interval of the mean over seeds (Student t)."
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the complete trials of one point reached, a value for each seed."""

    point: Point
    values: list[float]
    """The objective, of the features h."""
    projections: list[float]
    """The same of the projections z, where it was measured."""

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None


def results(records: SweepRecords) -> list[Result]:
    """In the order of the points."""
    trials = sorted(records.of_state("complete"), key=lambda trial: trial.number)
    by_point = [
        [trial for trial in trials if trial.number % len(records.points) == i] for i in range(len(records.points))
    ]
    return [
        Result(
            point=point,
            values=[trial.objective for trial in own if trial.objective is not None],
            projections=[value for trial in own if (value := _of_projections(records, trial)) is not None],
        )
        for point, own in zip(records.points, by_point, strict=True)
    ]


def _of_projections(records: SweepRecords, trial: Trial) -> float | None:
    key = f"z_{records.objective}"
    return next((row[key] for row in reversed(read_rows(records.folder / trial.run / METRICS)) if key in row), None)


def ablation_cells(records: SweepRecords) -> list[list[str]]:
    """The table's rows, best first, the first of them its head."""
    found = sorted(results(records), key=lambda result: -1.0 if result.mean is None else result.mean, reverse=True)
    with_z = any(result.projections for result in found)
    head = [_title(records), records.unit, *(["of z"] if with_z else []), "runs", "paper"]
    rows = [
        [
            result.point.label,
            _figure(result.values),
            *([_figure(result.projections)] if with_z else []),
            str(len(result.values)),
            "" if result.point.paper is None else f"{result.point.paper:.1f}",
        ]
        for result in found
    ]
    return [head, *rows]


def _title(records: SweepRecords) -> str:
    return ABLATIONS[records.ablation].title if records.ablation in ABLATIONS else str(records.ablation)


def _figure(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.2f}" + (f" ± {half_interval(values):.2f}" if len(values) > 1 else "")


def verdicts(records: SweepRecords) -> Iterator[str]:
    """For each order that the paper found: whether it is the order here. None where a trial of it is not complete."""
    found = results(records)
    mean = {result.point.label: result.mean for result in found}
    compared = ABLATIONS.get(records.ablation or "")
    if compared is None or None in mean.values():
        return
    for better, worse in zip(compared.order, compared.order[1:], strict=False):
        yield f"{better} above {worse}: {_answer(mean[better], mean[worse])}"
    if compared.best:
        best = max(mean, key=lambda label: mean[label] or 0.0)
        yield f"{compared.best} is the best: " + ("yes" if best == compared.best else f"no, {best} is")
    for result in found:
        if result.projections and result.projections != result.values:  # without a head z is h
            answer = _answer(result.mean, fmean(result.projections))
            yield f"h above z with the head {result.point.label}: {answer}"


def _answer(better: float | None, worse: float | None) -> str:
    assert better is not None
    assert worse is not None
    return f"{'yes' if better > worse else 'no'}, by {better - worse:+.2f}"


def ablation_findings(records: SweepRecords) -> str:
    """For a terminal."""
    rows = ablation_cells(records)
    table = in_columns(rows, right=range(1, len(rows[0])))
    done = len(records.of_state("complete"))
    heading = f"{records.folder}: {done} of {records.trials_wanted} runs complete, recipe {records.recipe}"
    failed = [f"{trial.run} failed: {' '.join(trial.reason.split())}" for trial in records.of_state("failed")]
    parts = [heading, "\n".join(table), *(["\n".join(failed)] if failed else [])]
    return "\n\n".join([*parts, "\n".join(verdicts(records)), NOTE])
