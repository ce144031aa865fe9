"""What a sweep found: its trials ranked, the best of them as a recipe to paste, and the commands that train it."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from simclr_ray.config import BadInput, config_types, is_science
from simclr_ray.sweep.records import SweepRecords
from simclr_ray.sweep.trials import STATES, Trial, short

BUDGET_KEY = "saving.stop_after_epochs"
"""Where a trial is cut."""


def cost(records: SweepRecords) -> str:
    """What ending trials early saved: the samples seen against all ended trials at full budget."""
    ended, pruned = records.of_state("complete", "pruned", "failed"), records.of_state("pruned")
    full, seen = sum(map(records.budget_of, ended)), sum(trial.samples for trial in ended)
    cut = sum(records.budget_of(trial) - trial.samples for trial in pruned)
    if not full:
        return "no trial has ended yet"
    return (
        f"{seen:,} samples seen by the {len(ended)} trials that ended, instead of {full:,} at full budget: "
        f"{1 - seen / full:.0%} saved, {cut / full:.0%} by ASHA, which ended {len(pruned)}"
    )


def against_default(records: SweepRecords) -> str:
    """The best trial beside the recipe's own values, where both are known."""
    best, default = records.best, records.default
    if best is None:
        return "no trial has reached the full budget yet: there is no best config"
    found = f"best: {best.run} with {records.objective} {best.objective:.2f}"
    if default is None or default.state != "complete":
        return f"{found}; the recipe's own values were not tried at full budget"
    return f"{found}; the recipe's own values: {default.objective:.2f} ({default.run})"


def counts(records: SweepRecords) -> str:
    """How many trials are in which state."""
    found = [(len(records.of_state(state)), state) for state in STATES.values()]
    return f"{len(records.trials)} of {records.trials_wanted} trials: " + ", ".join(f"{n} {s}" for n, s in found if n)


def cells(records: SweepRecords) -> list[list[str]]:
    """The table's rows, the first of them its head. In brackets: an objective below the full budget, never ranked."""
    rows = [["rank", "trial", "state", *(s.label for s in records.space), records.objective, "samples", "reason"]]
    for rank, trial in enumerate(records.trials, 1):
        objective = "" if trial.objective is None else f"{trial.objective:.2f}"
        complete = trial.state == "complete"
        rows.append(
            [
                str(rank) if complete else "",
                trial.run,
                trial.state,
                *(short(trial.params[s.key]) if s.key in trial.params else "" for s in records.space),
                objective if complete or not objective else f"({objective})",
                f"{trial.samples:,}",
                " ".join(trial.reason.split()),
            ]
        )
    return rows


def table(records: SweepRecords) -> str:
    """The trials for a terminal."""
    rows = [[*row[:-1], row[-1] if len(row[-1]) <= 60 else row[-1][:57] + "..."] for row in cells(records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {1, 2, len(widths) - 1}
    lines = [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", f"{records.objective} in brackets: before the full budget, not ranked"])


def best_recipe(records: SweepRecords) -> str:
    """The best trial's config as a function for the end of experiments/recipes.py.

    Raises BadInput where no trial is complete.
    """
    best = _best(records)
    values = _values(records, best)
    name = records.folder.name.replace("\\", "/").replace('"', "'")
    measured = f"{records.objective} {best.objective:.2f} after {best.samples:,} samples ({best.run})"
    function = "best_of_" + re.sub(r"[^0-9A-Za-z_]", "_", records.folder.name)
    return "\n".join(
        [
            f"def {function}() -> Config:",
            f'    """Best of {len(records.trials)} trials of the sweep {name}.',
            "",
            f"    python experiments/pretrain.py {function}",
            f"    {measured}" + ("; to the end unmeasured." if BUDGET_KEY in records.overrides else "."),
            '    """',
            f"    return {records.recipe}().with_overrides(",
            "        {",
            *(f"            {json.dumps(key)}: {_literal(value)}," for key, value in values.items()),
            "        }",
            "    )",
            "",
            "",
            f"RECIPES[{function}.__name__] = {function}",
        ]
    )


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def commands(records: SweepRecords) -> str:
    """What trains the best trial's config to the end, for a shell. Raises BadInput where no trial is complete."""
    best = _best(records)
    name, storage = records.folder.name, records.folder.parent.uri
    lines = [
        "# trains the best config from its start to its end:",
        _pretrain(records, best, f"{name}-best", storage),
    ]
    if BUDGET_KEY in records.overrides:
        lines += [
            f"# goes on with {best.run}, which was cut at the sweep's budget:",
            _pretrain(records, best, best.run, records.folder.uri),
        ]
    return "\n".join(lines)


def _best(records: SweepRecords) -> Trial:
    if records.best is None:
        raise BadInput(f"no trial of {records.folder} is complete: there is no best config yet")
    return records.best


def _values(records: SweepRecords, trial: Trial) -> dict[str, Any]:
    """What it learnt by: where a trial was cut, and its share of a machine, are the sweep's."""
    values = records.overrides | trial.params
    return {key: value for key, value in values.items() if is_science(key)}


def _pretrain(records: SweepRecords, trial: Trial, name: str, storage: str) -> str:
    types = config_types()
    flags = [word for key, value in _values(records, trial).items() for word in _flag(key, value, types.get(key))]
    run = [*_flag("name", name, str), *_flag("storage", storage, str)]
    return shlex.join(["python", "experiments/pretrain.py", records.recipe, *flags, *run])


def _flag(key: str, value: Any, hint: Any) -> list[str]:
    """As tyro reads it: --a.b-c VALUE; a plain bool is --a.b or --a.no-b."""
    group, dot, name = key.replace("_", "-").rpartition(".")
    if hint is bool:
        return [f"--{group}{dot}{name}" if value else f"--{group}{dot}no-{name}"]
    words = [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]
    flag = f"--{group}{dot}{name}"
    return [f"{flag}={words[0]}", *words[1:]] if words[0].startswith("-") else [flag, *words]


def findings(records: SweepRecords) -> str:
    """All of it for a terminal: the trials, what they cost, the best recipe and its commands."""
    parts = [f"{records.folder}: {counts(records)}", table(records), cost(records), against_default(records)]
    if records.best:
        parts += ["the best, to paste at the end of experiments/recipes.py:", best_recipe(records), commands(records)]
    return "\n\n".join(parts)
