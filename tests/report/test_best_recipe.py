"""The recipe that a sweep prints trains what its best trial trained, whichever method that has."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from simclr_ray.config import Config, science_changes
from simclr_ray.recipes import quickstart
from simclr_ray.report.sweep import best_recipe, recipe_name
from simclr_ray.sweep.records import read_sweep
from simclr_ray.sweep.settings import SweepSettings, record_of
from simclr_ray.sweep.space import Choices, Space
from sweep_records import BUDGET, written

OTHER = "augment.strength"


def best(folder: Path, config: Config, params: dict[str, object], recipe: str = "quickstart") -> Config:
    """The config of the recipe that a sweep of one complete trial with these params prints."""
    space: Space = {
        key: Choices(choices=("simclr", "byol") if key == "method.name" else (value,)) for key, value in params.items()
    }
    settings = SweepSettings(recipe=recipe, defaults=quickstart(), space=space)
    record = record_of(config, settings, "knn_top1", BUDGET)
    trial = create_trial(
        state=TrialState.COMPLETE,
        params=params,
        distributions={key: CategoricalDistribution(domain.choices) for key, domain in space.items()},
        value=50.0,
        user_attrs={"samples": BUDGET, "reason": ""},
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = ("overrides", "science", "defaults", "recipe")
    records = read_sweep(written(folder, [trial], record["space"], **{name: record[name] for name in names}))
    (folder / "trial-0000").mkdir()
    (folder / "trial-0000" / "config.json").write_text(config.with_overrides(params).to_json())
    found: dict[str, object] = {}
    exec(best_recipe(records), found)
    printed = found[recipe_name(records)]
    assert callable(printed)
    result = printed()
    assert isinstance(result, Config)
    return result


def test_a_value_that_the_recipe_has_for_another_method_is_kept(tmp_path: Path) -> None:
    """Moco's own temperature is 0.2, and the recipe's method has 0.5."""
    moco = quickstart().with_overrides({"method.name": "moco", "method.temperature": 0.5})
    params = {OTHER: 0.7}
    for recipe in ("quickstart", "a_users_own"):
        assert science_changes(best(tmp_path / recipe, moco, params, recipe), moco.with_overrides(params)) == {}


def test_a_value_that_is_another_methods_own_is_kept(tmp_path: Path) -> None:
    """0.1 is SimCLR's own."""
    moco = quickstart().with_overrides({"method.name": "moco", "method.temperature": 0.1})
    params = {OTHER: 0.7}
    assert science_changes(best(tmp_path / "s", moco, params, "a_users_own"), moco.with_overrides(params)) == {}


def test_a_method_that_won_has_no_settings_of_the_sweeps(tmp_path: Path) -> None:
    simclr = quickstart().with_overrides({"method.temperature": 0.2})
    for number, params in enumerate(({"method.name": "byol"}, {"method.name": "simclr"})):
        found = best(tmp_path / str(number), simclr, params)
        assert science_changes(found, simclr.with_overrides(params)) == {}
