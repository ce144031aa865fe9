"""Reads a sweep's folder: its settings (sweep.json) and its trials, best first."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from simclr_ray.config import BadInput, current_key
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import STUDY, SWEEP, is_sweep
from simclr_ray.sweep.ablations import Point
from simclr_ray.sweep.trials import Setting, Trial, read_trials, setting

UNITS = {
    "knn_top1": "kNN top-1 (%)",
    "linear_top1": "linear top-1 (%)",
    "top1": "top-1 (%)",
    "rankme": "RankMe (effective rank)",
    "probe_check": "probe top-1 (%)",
}


@dataclass(frozen=True, kw_only=True)
class SweepRecords:
    """A sweep's settings (sweep.json) and its trials, best first."""

    folder: Location
    recipe: str
    overrides: dict[str, Any]
    """Values that differ from the recipe's."""
    space: list[Setting]
    objective: str
    trials_wanted: int
    seed: int
    budget_samples: int
    trials: list[Trial]
    """In the order of `read_trials`."""
    science: dict[str, Any] = field(default_factory=dict)
    """The trials' science values but for those searched; none in sweeps of earlier versions."""
    ablation: str | None = None
    """Its name, where the trials are those of an ablation."""
    points: tuple[Point, ...] = ()
    """What it compares; trial n is of point n modulo their number."""

    @property
    def best(self) -> Trial | None:
        """Of the trials at full budget; None before one is complete."""
        return next(iter(self.of_state("complete")), None)

    @property
    def default(self) -> Trial | None:
        """The trial with the recipe's own values, if there is one."""
        own = {setting.key: setting.default for setting in self.space}
        return next((trial for trial in self.trials if trial.params == own), None)

    @property
    def unit(self) -> str:
        """The objective in words, with its unit."""
        return UNITS.get(self.objective, self.objective)

    def budget_of(self, trial: Trial) -> int:
        """Samples of the whole trial: searched epochs or batches give it its own."""
        return self.budget_samples if trial.budget is None else trial.budget

    def of_state(self, *states: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]


def read_sweep(folder: str) -> SweepRecords:
    """The records of a sweep's folder, local or by URI. Raises BadInput where there is no sweep, or no trial yet."""
    place = open_location(folder)
    file = place / SWEEP
    if not is_sweep(place):
        raise BadInput(f"there is no sweep {folder}: give the folder STORAGE/NAME that sweep.py wrote")
    try:
        saved = json.loads(file.read_bytes())
        space, defaults = _current(saved["space"]), _current(saved["defaults"])
        settings = [setting(key, entry, defaults.get(key), list(space)) for key, entry in space.items()]
        records = SweepRecords(
            folder=place,
            recipe=saved["recipe"],
            overrides=_current(saved["overrides"]),
            space=settings,
            objective=saved["objective"],
            trials_wanted=saved["trials"],
            seed=saved["seed"],
            budget_samples=saved["budget_samples"],
            trials=read_trials(place / STUDY),
            science=_current(saved.get("science", {})),
            ablation=saved.get("ablation"),
            points=tuple(Point(**point) for point in saved.get("points", ())),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise BadInput(f"{file} is damaged ({error!r}): run the sweep's command again, which writes it") from None
    if not records.trials:
        raise BadInput(f"the sweep {folder} has no trials yet: try again when the first has begun")
    return records


def _current(values: dict[str, Any]) -> dict[str, Any]:
    return {current_key(key): value for key, value in values.items()}
