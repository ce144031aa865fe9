"""Several runs in one table: runs that differ only in their seed are one row of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import time
from typing import Any

from simclr_ray.config import BadInput, Config, is_science
from simclr_ray.evaluate.results import BASELINES, OURS
from simclr_ray.report.goodput import TRAINING, account
from simclr_ray.report.run import read_run
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import EVALUATIONS, Row, read_config, read_rows

HEAD = ["", "runs", "kNN %", "linear %", "images", "training s"]


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run with the newest accuracies (top-1, percent) of its check or of the command `evaluate`."""

    address: str
    name: str
    config: Config
    state: str
    rows: list[Row]
    """Of metrics.jsonl."""
    images: int
    """Images trained on, in all epochs."""
    training_s: float
    knn: float | None
    linear: float | None
    baselines: dict[str, dict[str, float]]
    """Accuracy by classifier and baseline."""

    @property
    def science(self) -> dict[str, Any]:
        """The science values, without the seed: what a row of the table stands for."""
        return {key: value for key, value in self.config.flat().items() if is_science(key) and key != "train.seed"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    groups: dict[str, list[ComparedRun]]
    """The runs by label, those that differ only in their seed together, best kNN first."""

    @property
    def runs(self) -> list[ComparedRun]:
        return [run for group in self.groups.values() for run in group]

    def rows(self) -> Iterator[list[str]]:
        """The cells of the table, under HEAD: a row for each group, then the baselines."""
        for label, group in self.groups.items():
            accuracies = [_spread([run.knn for run in group]), _spread([run.linear for run in group])]
            seconds = median(run.training_s for run in group)
            yield [label, str(len(group)), *accuracies, f"{group[0].images:,}", f"{seconds:,.0f}"]
        for name in BASELINES:
            found = [
                [run.baselines.get(classifier, {}).get(name) for run in self.runs] for classifier in ("knn", "linear")
            ]
            if any(value is not None for values in found for value in values):
                yield [name, "", *map(_spread, found), "", ""]

    def warnings(self) -> list[str]:
        """What makes the comparison unfair."""
        runs = self.runs
        lines = [f"{run.name} is {run.state} after {run.images:,} images" for run in runs if run.state != "finished"]
        if len({run.config.data.train for run in runs}) > 1:
            lines.append("the runs were not trained on the same data")
        if len({run.images for run in runs}) > 1:
            lines.append("the runs did not see as many images")
        return lines

    def text(self) -> str:
        """For a terminal."""
        rows = list(self.rows())
        width = max(len(row[0]) for row in rows)
        lines = [
            f"{label:<{width}}  {runs:>4}  {knn:>18}  {linear:>18}  {images:>11}  {seconds:>10}".rstrip()
            for label, runs, knn, linear, images, seconds in [HEAD, *rows]
        ]
        return "\n".join([*lines, *self.warnings()])


def compare_runs(runs: Sequence[str]) -> Comparison:
    """The runs side by side, with what their configs differ in. Raises BadInput for what is no run."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in map(_read, runs):
        groups.setdefault(repr(run.science), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: -_mean([run.knn for run in group]))
    return Comparison(groups=dict(zip(_labels([group[0] for group in ordered]), ordered, strict=True)))


def _read(run: str) -> ComparedRun:
    now, folder = time(), open_location(run)
    records, config = read_run(run, now), read_config(folder)
    if config is None:
        raise BadInput(f"{run} has no config.json: it is no run folder")
    evaluations = read_rows(folder / EVALUATIONS)
    last = records.rows[-1] if records.rows else {"step": 0}
    return ComparedRun(
        address=folder.uri,
        name=folder.name,
        config=config,
        state=records.state,
        rows=records.rows,
        images=last["step"] * config.train.global_batch,
        training_s=account(records.events, records.rows).seconds[TRAINING],
        knn=_newest("knn", records.rows, evaluations),
        linear=_newest("linear", records.rows, evaluations),
        baselines={
            row["method"]: {name: row["results"][name]["top1"] for name in BASELINES if name in row["results"]}
            for row in evaluations
        },
    )


def _newest(classifier: str, rows: Sequence[Row], evaluations: Sequence[Row]) -> float | None:
    """The last accuracy by the command `evaluate`, which uses all the data that it is given; else by the check."""
    by_command = [row["results"][OURS]["top1"] for row in evaluations if row["method"] == classifier]
    by_check = [row[f"{classifier}_top1"] for row in rows if f"{classifier}_top1" in row]
    found = by_command or by_check
    return found[-1] if found else None


def _labels(runs: Sequence[ComparedRun]) -> list[str]:
    """Each run's method, and its values of the keys in which those that have them differ; no two are equal."""
    sciences = [run.science for run in runs]
    values = {key: {repr(science[key]) for science in sciences if key in science} for key in set().union(*sciences)}
    differing = sorted(key for key, found in values.items() if len(found) > 1 and key != "method.name")
    return [" ".join([s["method.name"], *(f"{key}={s[key]}" for key in differing if key in s)]) for s in sciences]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else 0.0


def _spread(values: Sequence[float | None]) -> str:
    """Mean, and with several values their range."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{fmean(known):.1f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.1f}..{max(known):.1f})"
