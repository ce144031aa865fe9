"""Several runs in one table: runs that differ only in their seed are one row of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import time
from typing import Any

from simclr_ray.config import BadInput, Config, is_science
from simclr_ray.report.goodput import TRAINING, account
from simclr_ray.report.run import read_run
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import EVALUATIONS, Row, read_config, read_rows

BASELINES = ("pixels", "untrained", "initial")
"""The candidates of evaluation.jsonl beside the pretrained encoder."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run with the newest accuracies (top-1, percent) of its check or of the command `evaluate`."""

    name: str
    config: Config
    state: str
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


def comparison(runs: Sequence[str]) -> str:
    """The runs as a table, best kNN first, with what their configs differ in. Raises BadInput for what is no run."""
    read = [_read(run) for run in runs]
    groups: dict[str, list[ComparedRun]] = {}
    for run in read:
        groups.setdefault(repr(run.science), []).append(run)
    rows = sorted(groups.values(), key=lambda group: -_mean([run.knn for run in group]))
    labels = _labels([group[0] for group in rows])
    width = max(map(len, [*labels, *BASELINES]))
    lines = [f"{'':<{width}}  runs  {'kNN %':>18}  {'linear %':>18}  {'images':>11}  {'training s':>10}"]
    for label, group in zip(labels, rows, strict=True):
        knn, linear = _spread([run.knn for run in group]), _spread([run.linear for run in group])
        seconds = median(run.training_s for run in group)
        lines.append(
            f"{label:<{width}}  {len(group):>4}  {knn:>18}  {linear:>18}  {group[0].images:>11,}  {seconds:>10,.0f}"
        )
    for name in BASELINES:
        found = [[run.baselines.get(classifier, {}).get(name) for run in read] for classifier in ("knn", "linear")]
        if any(value is not None for values in found for value in values):
            lines.append(f"{name:<{width}}  {'':>4}  {_spread(found[0]):>18}  {_spread(found[1]):>18}")
    return "\n".join([*lines, *_warnings(read)])


def _read(run: str) -> ComparedRun:
    now, folder = time(), open_location(run)
    records, config = read_run(run, now), read_config(folder)
    if config is None:
        raise BadInput(f"{run} has no config.json: it is no run folder")
    evaluations = read_rows(folder / EVALUATIONS)
    last = records.rows[-1] if records.rows else {"step": 0}
    return ComparedRun(
        name=folder.name,
        config=config,
        state=records.state,
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
    by_command = [row["results"]["pretrained"]["top1"] for row in evaluations if row["method"] == classifier]
    by_check = [row[f"{classifier}_top1"] for row in rows if f"{classifier}_top1" in row]
    found = by_command or by_check
    return found[-1] if found else None


def _labels(runs: Sequence[ComparedRun]) -> list[str]:
    """Each run's method, and its values of the keys that all have and that differ between them."""
    sciences = [run.science for run in runs]
    common = set.intersection(*(set(science) for science in sciences)) - {"method.name"}
    differing = sorted(key for key in common if len({repr(science[key]) for science in sciences}) > 1)
    return [" ".join([s["method.name"], *(f"{key}={s[key]}" for key in differing)]) for s in sciences]


def _warnings(runs: Sequence[ComparedRun]) -> list[str]:
    lines = [f"{run.name} is {run.state} after {run.images:,} images" for run in runs if run.state != "finished"]
    if len({run.config.data.train for run in runs}) > 1:
        lines.append("the runs were not trained on the same data")
    if len({run.images for run in runs}) > 1:
        lines.append("the runs did not see as many images")
    return lines


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
