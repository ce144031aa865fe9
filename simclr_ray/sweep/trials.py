"""The settings and trials of a sweep: the settings out of sweep.json, the trials out of Optuna's journal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from simclr_ray.config import BadInput, current_key
from simclr_ray.storage.location import Location

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
"""Optuna's states in our words, in the order of the ranking."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One searched setting: a range, or choices (then `low` and `high` are the first and last index)."""

    key: str
    label: str
    """The key without its group where that is clear."""
    low: float
    high: float
    log: bool
    choices: list[Any] | None
    default: Any
    """The recipe's own value, which need not lie in the range."""

    def place(self, value: Any) -> float | None:
        """Where `value` stands on the scale that is searched: its logarithm, its index; None: nowhere."""
        if self.choices is not None:
            return float(self.choices.index(value)) if value in self.choices else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (self.log and value <= 0):
            return None
        return math.log(value) if self.log else float(value)

    @property
    def ends(self) -> tuple[float, float]:
        """The places of `low` and `high`."""
        return (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of the study."""

    number: int
    run: str
    """Name of its run folder inside the sweep's."""
    state: str
    """A value of STATES; complete: the objective was measured at the full budget."""
    params: dict[str, Any]
    """By dotted key; empty before it began."""
    curve: list[tuple[int, float]]
    """(samples seen, objective), ascending, finite only."""
    objective: float | None
    """At the full budget where complete, else the last that was measured."""
    samples: int
    """Seen in all."""
    budget: int | None
    """Samples of the whole trial, where the study holds it."""
    reason: str


def short(value: Any) -> str:
    """A setting's value for people: four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def setting(key: str, entry: dict[str, Any], default: Any, keys: list[str]) -> Setting:
    """An `entry` of sweep.json's space; `keys`: all of that space. Raises KeyError where a bound is missing."""
    name = key.rpartition(".")[2]
    choices = entry.get("choices")
    return Setting(
        key=key,
        label=name if [other.rpartition(".")[2] for other in keys].count(name) == 1 else key,
        low=0 if choices else entry["low"],
        high=len(choices) - 1 if choices else entry["high"],
        log=bool(entry.get("log")),
        choices=choices,
        default=default,
    )


def read_trials(journal: Location) -> list[Trial]:
    """Best first: complete by objective, pruned by how far they came and then objective, then the others.

    A last line that was cut short is left out, a missing file has none. Raises BadInput for a broken journal.
    """
    import optuna  # a second: the report on a run does without
    from optuna.storages.journal import JournalFileBackend

    if not journal.exists() or not journal.size():
        return []
    with TemporaryDirectory() as folder:  # Optuna reads local files only, and makes locks beside them
        copy = Path(folder, journal.name)
        copy.write_bytes(journal.read_bytes())
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(copy)))
            (name,) = optuna.get_all_study_names(storage)
            found = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise BadInput(f"{journal} is broken, it cannot be read as one Optuna study: {error!r}") from None
    return sorted((_trial(trial) for trial in found), key=_rank)


def _trial(trial: Any) -> Trial:
    state = STATES[trial.state.name]
    curve = [(step, value) for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)]
    samples = trial.user_attrs.get("samples", curve[-1][0] if curve else 0)
    if state == "complete" and (not curve or curve[-1][0] < samples):  # reported at the end only
        curve.append((samples, trial.value))
    return Trial(
        number=trial.number,
        run=trial.user_attrs.get("run", f"trial {trial.number}"),
        state=state,
        params={current_key(key): value for key, value in trial.params.items()},
        curve=curve,
        objective=trial.value if state == "complete" else curve[-1][1] if curve else None,
        samples=samples,
        budget=trial.user_attrs.get("budget_samples"),
        reason=str(trial.user_attrs.get("reason", "")),
    )


def _rank(trial: Trial) -> tuple[float, ...]:
    far = 0 if trial.state == "complete" else -trial.samples
    value = -math.inf if trial.objective is None else trial.objective
    return list(STATES.values()).index(trial.state), far, -value, trial.number
