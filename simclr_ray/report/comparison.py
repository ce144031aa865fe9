"""Several runs in one table: runs that differ only in their seed are one row of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median, stdev
from time import time
from typing import Any

from simclr_ray.config import BadInput, Config, is_science
from simclr_ray.data.dataset import is_dataset, open_dataset
from simclr_ray.evaluate.results import BASELINES, OURS
from simclr_ray.report.columns import in_columns
from simclr_ray.report.goodput import TRAINING, account
from simclr_ray.report.run import RunRecords, read_run
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import ENCODER, EVALUATIONS, Row, read_config, read_rows

CHECKED = {"kNN": "knn_top1", "linear": "linear_top1", "own classifier": "top1"}
"""The columns that the check during training can fill, and its keys."""
FIRST = ("kNN", "linear")
"""Columns that are always there."""
NAMES = {"knn": "kNN", "finetune": "fine-tune"}
CONFIDENCE = 0.95
INTERVAL = f"±: half of the {CONFIDENCE:.0%} confidence interval of the mean over seeds (Student t), of (n) runs"


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run with the newest accuracies (top-1, percent) of one of its encoders."""

    address: str
    name: str
    config: Config
    state: str
    rows: list[Row]
    """Of metrics.jsonl; none where the encoder is another than that at the end."""
    images: int
    """Images trained on, in all epochs."""
    training_s: float
    encoder: str
    """The file of the encoder."""
    accuracies: dict[str, float]
    """By column: of the command `evaluate`; else, for the encoder at the end, of the last check."""
    baselines: dict[str, dict[str, float]]
    """Accuracy by column and baseline."""
    tests: dict[str, str]
    """By column the data on which it was tested."""

    @property
    def science(self) -> dict[str, Any]:
        """What a row of the table stands for: the science values without the seed, the data, and which encoder."""
        values = {key: value for key, value in self.config.flat().items() if is_science(key) and key != "train.seed"}
        return values | {"data.train": _identity(self.config.data.train), "encoder": self.encoder}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    groups: dict[str, list[ComparedRun]]
    """The runs by label, those that differ only in their seed together, best kNN first."""

    @property
    def runs(self) -> list[ComparedRun]:
        return [run for group in self.groups.values() for run in group]

    @property
    def columns(self) -> list[str]:
        """The ways to evaluate: those of the check, then what else there is."""
        return list(dict.fromkeys([*FIRST, *(column for run in self.runs for column in run.accuracies)]))

    @property
    def head(self) -> list[str]:
        return ["top-1 accuracy, %", "runs", *self.columns, "images", "training s"]

    def rows(self) -> Iterator[list[str]]:
        """The cells of the table, under `head`: a row for each group, then the baselines."""
        for label, group in self.groups.items():
            accuracies = [_interval(group, column) for column in self.columns]
            seconds = median(run.training_s for run in group)
            yield [label, str(len(group)), *accuracies, f"{group[0].images:,}", f"{seconds:,.0f}"]
        for name in BASELINES:
            found = [_baseline(self.runs, column, name) for column in self.columns]
            if any(found):
                yield [name, "", *map(_range, found), "", ""]

    def warnings(self) -> list[str]:
        """What makes the comparison unfair."""
        runs = self.runs
        unfinished = {run.address: run for run in runs if run.state != "finished"}.values()
        lines = [f"{run.name} is {run.state} after {run.images:,} images" for run in unfinished]
        if len({run.config.data.train for run in runs}) > 1:
            lines.append("the runs were not trained on the same data")
        if len({run.images for run in runs}) > 1:
            lines.append("the runs did not see as many images")
        for column in self.columns:
            tests = sorted({run.tests[column] for run in runs if column in run.tests})
            if len(tests) > 1:
                lines.append(f"{column}: not all were tested on the same data ({', '.join(tests)})")
        return lines

    def notes(self) -> list[str]:
        """What the cells mean, and the warnings."""
        shown = any("±" in cell for row in self.rows() for cell in row)
        return [*([INTERVAL] if shown else []), *self.warnings()]

    def text(self) -> str:
        """For a terminal."""
        table = in_columns([self.head, *self.rows()], right=range(1, len(self.head)))
        return "\n".join([*table, *self.notes()])


def compare_runs(runs: Sequence[str]) -> Comparison:
    """The runs side by side, with what their configs differ in. Raises BadInput for what is no run."""
    groups: dict[str, list[ComparedRun]] = {}
    addresses = [open_location(run).uri for run in runs]
    for run in runs:
        if addresses.count(open_location(run).uri) > 1:
            raise BadInput(f"{run} is named twice")
        for one in _read(run):
            groups.setdefault(repr(one.science), []).append(one)
    ordered = sorted(groups.values(), key=lambda group: -_mean(_column(group, "kNN")))
    return Comparison(groups=dict(zip(_labels([group[0] for group in ordered]), ordered, strict=True)))


def _read(run: str) -> list[ComparedRun]:
    """The run with its encoder at the end, and with each other one that was evaluated, as that of the best check."""
    now, folder = time(), open_location(run)
    records, config = read_run(run, now), read_config(folder)
    if config is None:
        raise BadInput(f"{run} has no config.json: it is no run folder")
    evaluations: dict[str, list[Row]] = {ENCODER: []}
    for row in read_rows(folder / EVALUATIONS):
        evaluations.setdefault(row.get("encoder", ENCODER), []).append(row)
    return [_compared(records, config, encoder, rows) for encoder, rows in evaluations.items()]


def _compared(records: RunRecords, config: Config, encoder: str, evaluations: Sequence[Row]) -> ComparedRun:
    rows, last = records.rows, records.rows[-1] if records.rows else {"step": 0}
    # Of an encoder that was written again, under the same name, only the newest figures count.
    of_newest = [one for one in evaluations if one.get("encoder_sha256") == evaluations[-1].get("encoder_sha256")]
    newest, own = {_column_of(row): row for row in of_newest}, rows if encoder == ENCODER else []
    checked = {column: row[key] for row in own for column, key in CHECKED.items() if key in row}
    return ComparedRun(
        address=records.address,
        name=open_location(records.address).name,
        config=config,
        state=records.state,
        rows=own,
        images=last["step"] * config.train.global_batch,
        training_s=account(records.events, rows).seconds[TRAINING],
        encoder=encoder,
        accuracies=checked | {column: row["results"][OURS]["top1"] for column, row in newest.items()},
        baselines={
            column: {name: row["results"][name]["top1"] for name in BASELINES if name in row["results"]}
            for column, row in newest.items()
        },
        tests={column: _checked_on(config) for column in checked}
        | {column: _source(row["test"]) for column, row in newest.items()},
    )


def _checked_on(config: Config) -> str:
    check = config.evaluate
    return _source(check.test) if check.test else f"images held out of {_source(check.train or config.data.train)}"


def _source(address: str) -> str:
    """What a dataset on this machine was prepared from: `evaluate` notes what was typed, a run what became of it."""
    here = "://" not in address and is_dataset(address)
    return open_dataset(address).source["spec"] if here else address


def _identity(address: str) -> str:
    """Of a dataset on this machine what it was prepared from, and its fingerprint; else the address."""
    here = "://" not in address and is_dataset(address)
    return f"{_source(address)} ({open_dataset(address).fingerprint[:8]})" if here else address


def _column_of(row: Row) -> str:
    """The column of an evaluation: figures in one were found by the same method on the same share of the labels."""
    method: str = row["method"]
    name, fraction, from_head = NAMES.get(method, method), row.get("fraction", 1.0), row["settings"].get("from_head")
    if method == "transfer":
        name += f" {row['test'].rstrip('/').rpartition('/')[2]}"
    if from_head:
        name += f" from head {from_head}"
    return name if fraction == 1 else f"{name} {100 * fraction:g} %"


def _column(runs: Sequence[ComparedRun], column: str) -> list[float]:
    return [run.accuracies[column] for run in runs if column in run.accuracies]


def _baseline(runs: Sequence[ComparedRun], column: str, name: str) -> list[float]:
    found = (run.baselines.get(column, {}).get(name) for run in runs)
    return [value for value in found if value is not None]


def _labels(runs: Sequence[ComparedRun]) -> list[str]:
    """Each run's method, and its values of the keys in which those that have them differ; no two are equal."""
    sciences = [run.science for run in runs]
    values = {key: {repr(science[key]) for science in sciences if key in science} for key in set().union(*sciences)}
    differing = sorted(key for key, found in values.items() if len(found) > 1 and key != "method.name")
    return [" ".join([s["method.name"], *(f"{key}={s[key]}" for key in differing if key in s)]) for s in sciences]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _interval(group: Sequence[ComparedRun], column: str) -> str:
    """The mean; of several seeds also half of its confidence interval, and how many they are.

    A run that was repeated with its seed counts once; figures of different test data have no interval, but a range.
    """
    found = {run.config.train.seed: run for run in group if column in run.accuracies}.values()
    values = [run.accuracies[column] for run in found]
    if len(values) < 2 or len({run.tests[column] for run in found}) > 1:
        return _range(values)
    return f"{fmean(values):.1f} ± {half_interval(values):.1f} ({len(values)})"


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the confidence interval of the mean of two or more normally distributed values (Student t)."""
    from scipy.special import stdtrit  # takes a while to import

    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * stdev(values) / sqrt(len(values))


def _range(values: Sequence[float]) -> str:
    """The mean, and of several runs, which may differ in more than their seed, the range."""
    if not values:
        return "-"
    mean = f"{fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}..{max(values):.1f})"
