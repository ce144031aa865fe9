"""The settings of a sweep: what its driver is given, and what sweep.json keeps of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from simclr_ray.config import BadInput, Config, is_science
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import SWEEP, is_sweep
from simclr_ray.sweep.ablations import Point
from simclr_ray.sweep.space import Choices, Space


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The settings of a sweep; all but `trials` must stay the same when it is resumed."""

    recipe: str
    defaults: Config
    """The recipe's own values."""
    space: Space
    trials: int = 30
    startup: int = 8
    sampler: Literal["tpe", "random"] = "tpe"
    reduction: int = 3
    """ASHA's eta: of the trials that reach a rung, one in so many continues; 1: all do."""
    seed: int = 0
    ablation: str | None = None
    """Its name; the trials are then `points`, and all of them again with each further train.seed."""
    points: tuple[Point, ...] = ()

    def given(self, number: int, config: Config) -> dict[str, Any] | None:
        """The parameters of a trial that no sampler draws: of an ablation, or the recipe's own values, the first."""
        if self.points:
            own = config.flat()
            return {key: own[key] for key in self.space} | self.points[number % len(self.points)].values
        return _own_values(self.space, config.flat()) if number == 0 else None

    def seed_of(self, number: int, config: Config) -> dict[str, Any]:
        """What a trial has beside its parameters."""
        return {"train.seed": config.train.seed + number // len(self.points)} if self.points else {}

    def samples(self) -> Iterator[dict[str, Any]]:
        """Overrides that stand for all that a trial can have."""
        for key, domain in self.space.items() if not self.points else ():
            yield from ({key: value} for value in domain.samples())
        yield from (point.values for point in self.points)


def record_of(config: Config, settings: SweepSettings, objective: str, budget: int) -> dict[str, Any]:
    """The content of sweep.json, which a restart and the report read."""
    # Of another method than the recipe's the values differ from that method's own, from which it starts.
    before, now = settings.defaults.with_overrides({"method.name": config.method.name}).flat(), config.flat()
    compared = {"ablation": settings.ablation, "points": [asdict(point) for point in settings.points]}
    return {
        "recipe": settings.recipe,
        "overrides": {key: value for key, value in now.items() if value != before.get(key)} | _method(config, settings),
        "science": {key: value for key, value in now.items() if is_science(key) and key not in settings.space},
        "defaults": {key: now[key] for key in settings.space},
        "space": {key: domain.to_json() for key, domain in settings.space.items()},
        "objective": objective,
        "sampler": settings.sampler,
        "startup": settings.startup,
        "reduction": settings.reduction,
        "seed": settings.seed,
        "trials": settings.trials,
        "budget_samples": budget,
        **(compared if settings.ablation else {}),
    }


def _method(config: Config, settings: SweepSettings) -> dict[str, Any]:
    other = config.method.name != settings.defaults.method.name
    return {"method.name": config.method.name} if other else {}


def require_same(folder: Location, record: dict[str, Any]) -> None:
    """Raises BadInput if a resumed sweep has other settings; only trials and the machine's settings may change."""
    if not is_sweep(folder):
        return
    earlier = json.loads((folder / SWEEP).read_bytes())
    now = json.loads(json.dumps(record))
    for one in (earlier, now):
        one["overrides"] = {key: value for key, value in one["overrides"].items() if is_science(key)}
    before, after = earlier.pop("science", {}), now.pop("science")  # of a recipe too, whose values may have changed
    changes = [key for key in now if key != "trials" and now[key] != earlier.get(key)]
    changes += [key for key in before.keys() & after.keys() if before[key] != after[key]]
    if changes:
        key = changes[0]
        old, new = (earlier | before).get(key), (now | after)[key]
        raise BadInput(
            f"{folder} was started with another {key} ({old}, now {new}): use another --name, or the old values"
        )


def _own_values(space: Space, own: dict[str, Any]) -> dict[str, Any] | None:
    """The recipe's own, if the space contains them."""
    inside = all(
        own[key] in domain.choices
        if isinstance(domain, Choices)
        else own[key] is not None and domain.low <= own[key] <= domain.high
        for key, domain in space.items()
    )
    return {key: own[key] for key in space} if inside else None
