"""Records of fictitious sweeps: real Optuna studies in folders like those of a sweep."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

BUDGET = 8192
TEMPERATURE = {"method.temperature": {"low": 0.05, "high": 1.0, "log": True}}
STRENGTH = {"augment.strength": {"low": 0.1, "high": 1.5, "log": False}}
HEAD = {"model.head": {"choices": ["linear", "mlp"]}}
SPACE = {**TEMPERATURE, **STRENGTH, **HEAD}
DEFAULTS = {"method.temperature": 0.5, "augment.strength": 0.5, "model.head": "mlp"}
OVERRIDES: dict[str, Any] = {"train.epochs": 4, "saving.stop_after_epochs": 2.0}


def drawn(generator: random.Random, space: dict[str, Any] = SPACE) -> dict[str, Any]:
    """Random params, uniform on the scale searched."""

    def value(entry: dict[str, Any]) -> Any:
        if "choices" in entry:
            return generator.choice(entry["choices"])
        if entry["log"]:
            return math.exp(generator.uniform(math.log(entry["low"]), math.log(entry["high"])))
        return generator.uniform(entry["low"], entry["high"])

    return {key: value(entry) for key, entry in space.items()}


def distribution(entry: dict[str, Any]) -> BaseDistribution:
    if "choices" in entry:
        return CategoricalDistribution(entry["choices"])
    return FloatDistribution(entry["low"], entry["high"], log=entry["log"])


def trial(state: str, params: dict[str, Any], *curve: float, reason: str = "") -> FrozenTrial:
    """`curve`: the objective after each quarter of the budget."""
    return create_trial(
        state=TrialState[state],
        params=params,
        distributions={key: distribution(SPACE[key]) for key in params},
        value=curve[-1] if state == "COMPLETE" else None,
        intermediate_values={BUDGET // 4 * (at + 1): value for at, value in enumerate(curve)},
        user_attrs={"samples": BUDGET // 4 * len(curve), "reason": reason},
    )


def full(params: dict[str, Any], objective: float) -> FrozenTrial:
    return trial("COMPLETE", params, 30.0, 40.0, 50.0, objective)


def written(folder: Path, trials: list[FrozenTrial], space: dict[str, Any] = SPACE, **settings: Any) -> str:
    """Writes a sweep's folder; returns its path."""
    folder.mkdir(parents=True)
    record = {
        "recipe": "quickstart",
        "overrides": OVERRIDES,
        "space": space,
        "objective": "knn_top1",
        "trials": 30,
        "seed": 0,
        "budget_samples": BUDGET,
        "defaults": {key: DEFAULTS.get(key) for key in space},
    }
    (folder / "sweep.json").write_text(json.dumps(record | settings))
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(storage=storage, study_name=folder.name, direction="maximize")
    for at, found in enumerate(trials):
        found.set_user_attr("run", f"trial-{at:04d}")
        study.add_trial(found)
    return str(folder)


def usual(count: int = 12, space: dict[str, Any] = SPACE) -> list[FrozenTrial]:
    """Complete, pruned and failed trials in turn; the first has the recipe's own values."""
    generator = random.Random(0)
    params = [{key: DEFAULTS[key] for key in space}, *(drawn(generator, space) for _ in range(count - 1))]
    kinds = [
        lambda p: full(p, generator.uniform(50, 60)),
        lambda p: trial("PRUNED", p, 25.0, generator.uniform(30, 70), reason="ended by ASHA"),
        lambda p: full(p, generator.uniform(50, 60)),
        lambda p: trial("FAIL", p, reason="the loss is NaN at step 3"),
    ]
    return [kinds[at % 4](p) for at, p in enumerate(params)]
