"""The worth-it table: a run's encoder beside what could be had without it, and in words what is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from simclr_ray.evaluate.results import BASELINES, OURS
from simclr_ray.report.columns import in_columns
from simclr_ray.storage.run_folder import Row

SIGNIFICANT = 0.05
LABELS = {"knn": "kNN", "linear": "linear"}
NOTE = (
    "Top-1 accuracy in percent; in brackets the difference to this run, and p of the paired permutation test on the "
    "same images, two-sided and not corrected for the number of rows. It speaks of these encoders, not of other seeds. "
    "The linear classifier of every encoder but this run's has the best of several learning rates on the test set."
)


WIDTH = 100
"""Characters in a line of a terminal."""


@dataclass(frozen=True, kw_only=True)
class Column:
    title: str
    found: dict[str, Row]
    """top1, and p where it was tested, by encoder."""

    def cell(self, name: str) -> str:
        if name not in self.found:
            return "-"
        one = self.found[name]
        difference = "" if name == OURS else f"{self.difference(name):+.1f}"
        remarks = [difference, *([_p(one["p"])] if "p" in one else [])]
        return f"{one['top1']:.1f}" + (f" ({', '.join(remarks)})" if difference else "")

    def difference(self, name: str) -> float:
        """Points by which this encoder is better than the run's."""
        return self.found[name]["top1"] - self.found[OURS]["top1"]


@dataclass(frozen=True, kw_only=True)
class Worth:
    train: str
    test: str
    test_rows: int
    columns: list[Column]
    """kNN and linear, then fine-tuning where it was done on the same data."""

    def replaces(self, row: Row) -> bool:
        """Whether this table shows all that a row of evaluation.jsonl says, or what was found later."""
        return _is_tested(row) and (row["train"], row["test"]) == (self.train, self.test)

    @property
    def head(self) -> list[str]:
        return ["", *(column.title for column in self.columns)]

    @property
    def rows(self) -> list[tuple[str, list[str]]]:
        """The class and the cells of each row; the run's own is the last, and stands out."""
        names = [name for name in dict.fromkeys(name for one in self.columns for name in one.found) if name != OURS]
        order = sorted(names, key=lambda name: (name not in BASELINES, names.index(name)))
        own = ("best", ["this run", *(column.cell(OURS) for column in self.columns)])
        return [*(("", [name, *(column.cell(name) for column in self.columns)]) for name in order), own]

    @property
    def verdicts(self) -> list[str]:
        """A sentence for each tested column."""
        return [_verdict(column) for column in self.columns if any("p" in one for one in column.found.values())]

    def text(self) -> str:
        """For a terminal."""
        lines = [self.head, *(cells for _, cells in self.rows)]
        return "\n".join([*in_columns(lines), *self.verdicts, "", *wrap(NOTE, WIDTH)])


def worth_of(evaluations: Sequence[Row]) -> Worth | None:
    """From the rows of evaluation.jsonl, the newest of each kind; None where `report --against` was not asked for."""
    judged = [row for row in evaluations if _is_tested(row)]
    if not judged:
        return None
    last = judged[-1]
    same = [row for row in evaluations if _on(row) == _on(last)]
    columns = {}
    for row in same:
        if row["method"] == "finetune":
            head = row.get("settings", {}).get("from_head")
            columns[f"fine-tuned on {100 * row['fraction']:g} %{f' from head {head}' if head else ''}"] = row
        elif _is_tested(row):
            columns[LABELS[row["method"]]] = row
    order = sorted(columns, key=lambda title: (title not in LABELS.values(), columns[title]["fraction"]))
    return Worth(
        train=last["train"],
        test=last["test"],
        test_rows=last["test_rows"],
        columns=[Column(title=title, found=columns[title]["results"]) for title in order],
    )


def _on(row: Row) -> tuple[str, str, str | None]:
    """The data, and which encoder of the run was scored."""
    return row["train"], row["test"], row.get("encoder_sha256")


def _is_tested(row: Row) -> bool:
    """Whether `report --against` wrote this row of evaluation.jsonl."""
    return any("p" in found for found in row["results"].values())


def _verdict(column: Column) -> str:
    tested = {name: one["p"] for name, one in column.found.items() if "p" in one}
    clear = {name: column.difference(name) for name, p in tested.items() if p < SIGNIFICANT}

    def listed(words: str, sign: int) -> list[str]:
        found = {name: abs(points) for name, points in clear.items() if points * sign > 0}
        ends = [f"{name} by {points:.1f} points ({_p(tested[name])})" for name, points in found.items()]
        return [f"{words} {', '.join(ends)}"] if ends else []

    unclear = ", ".join(
        f"{name} ({column.difference(name):+.1f} points, {_p(p)})" for name, p in tested.items() if name not in clear
    )
    chance = [f"no significant difference to {unclear}"] if unclear else []
    parts = [*listed("this run LOSES to", 1), *chance, *listed("this run beats", -1)]
    return f"{column.title}: {'; '.join(parts)}."


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
