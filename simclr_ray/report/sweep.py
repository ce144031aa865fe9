"""What a sweep found: its trials ranked, the best of them as a recipe file, and the commands that train it."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from simclr_ray.config import BadInput, Config, is_science
from simclr_ray.config.run import ADDRESSES
from simclr_ray.recipes import RECIPES
from simclr_ray.report.columns import in_columns
from simclr_ray.storage.run_folder import CONFIG, read_config
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
    """The best trial beside the recipe's own values, where both were measured."""
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
    lines = in_columns(rows, right={0, *range(3, len(rows[0]) - 1)})
    return "\n".join([*lines, "", f"{records.objective} in brackets: before the full budget, not ranked"])


def recipe_name(records: SweepRecords) -> str:
    """Of the best trial's recipe: a function, and without .py its file."""
    return "best_of_" + re.sub(r"[^0-9A-Za-z_]", "_", records.folder.name)


def best_recipe(records: SweepRecords) -> str:
    """The best trial's config as a recipe file of its own. Raises BadInput where no trial is complete."""
    best, function = _best(records), recipe_name(records)
    name = records.folder.name.replace("\\", "/").replace('"', "'")
    measured = f"{records.objective} {best.objective:.2f} after {best.samples:,} samples ({best.run})"
    built_in = _is_built_in(records)
    values = _values(records, best) if built_in else _all_values(records, best)
    return "\n".join(
        [
            "from simclr_ray.config import Config",
            *([f"from simclr_ray.recipes import {records.recipe}"] if built_in else []),
            "",
            "",
            f"def {function}() -> Config:",
            f'    """Best of {len(records.trials)} trials of the sweep {name}.',
            "",
            f"    python experiments/pretrain.py {function}.py",
            f"    {measured}" + ("; to the end unmeasured." if BUDGET_KEY in records.overrides else "."),
            '    """',
            f"    return {records.recipe if built_in else 'Config'}().with_overrides(",
            "        {",
            *(f"            {json.dumps(key)}: {_literal(value)}," for key, value in values.items()),
            "        }",
            "    )",
        ]
    )


def _is_built_in(records: SweepRecords) -> bool:
    """Whether its recipe is that of this package, and not a function of the same name, or what it was before."""
    if records.recipe not in RECIPES:
        return False
    config = RECIPES[records.recipe]().with_overrides(records.overrides)
    own = json.loads(json.dumps(config.flat()))
    return all(own[key] == value for key, value in records.science.items() if key in own)


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def commands(records: SweepRecords) -> str:
    """Shell commands that train the best trial's config to its end. Raises BadInput where no trial is complete.

    They name the file of `best_recipe`.
    """
    best = _best(records)
    name, storage = records.folder.name, records.folder.parent.uri
    lines = ["# trains the best config from its start to its end:", _pretrain(records, f"{name}-best", storage)]
    if BUDGET_KEY in records.overrides:
        lines += [
            f"# goes on with {best.run}, which was cut at the sweep's budget:",
            _pretrain(records, best.run, records.folder.uri),
        ]
    return "\n".join(lines)


def _best(records: SweepRecords) -> Trial:
    if records.best is None:
        raise BadInput(f"no trial of {records.folder} is complete: there is no best config yet")
    return records.best


def _values(records: SweepRecords, trial: Trial) -> dict[str, Any]:
    """What differs from the sweep's recipe: science and data, but no machine's share and no cut at the budget."""
    overrides, method = records.overrides, trial.params.get("method.name")
    own = next((setting.default for setting in records.space if setting.key == "method.name"), None)
    if method != own:  # a method other than the sweep's starts from its own values
        overrides = {key: value for key, value in overrides.items() if not key.startswith("method.")}
    return {key: value for key, value in (overrides | trial.params).items() if _is_kept(key)}


def _all_values(records: SweepRecords, trial: Trial) -> dict[str, Any]:
    """What differs from the defaults of Config, for a sweep of a recipe that is no part of this package."""
    config = read_config(records.folder / trial.run)
    if config is None:
        raise BadInput(f"{records.folder / trial.run} has no {CONFIG}, and no recipe here is its {records.recipe!r}")
    defaults = Config().with_overrides({"method.name": config.method.name}).flat()
    changed = {key: value for key, value in config.flat().items() if _is_kept(key) and value != defaults.get(key)}
    return {"method.name": config.method.name} | changed


def _is_kept(key: str) -> bool:
    return is_science(key) or key in ADDRESSES


def _pretrain(records: SweepRecords, name: str, storage: str) -> str:
    file = f"{recipe_name(records)}.py"
    return shlex.join(["python", "experiments/pretrain.py", file, "--name", name, "--storage", storage])


def findings(records: SweepRecords) -> str:
    """For a terminal: the trials, what they cost, the best recipe and its commands."""
    parts = [f"{records.folder}: {counts(records)}", table(records), cost(records), against_default(records)]
    if records.best:
        heading = f"the best, as a recipe: save it as {recipe_name(records)}.py"
        parts += [heading, best_recipe(records), commands(records)]
    return "\n\n".join(parts)
