"""Searches for the temperature, the learning rate and the augmentation, or for any other science values.

    python experiments/sweep.py RECIPE [overrides] [--name NAME] [--storage URI] [--trials N] [--space KEY=LOW:HIGH ...]

Every trial is a run below STORAGE/NAME. Trials are evaluated on rows held out of the labelled training set, never on a
test set and never by the loss, and are pruned if others did better. The same command resumes a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simclr_ray.cli.command import choose_recipe, parse_with_config
from simclr_ray.config import BadInput
from simclr_ray.recipes import RECIPES
from simclr_ray.sweep.settings import SweepSettings
from simclr_ray.sweep.space import parse_space


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The sweep's name, space and budget."""

    name: str | None = None
    """Name of the sweep, a folder below the storage; RECIPE-sweep by default."""
    storage: str = "runs"
    """Folder or object-store URI."""
    space: tuple[str, ...] = ()
    """KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C, one or more. By default method.temperature=0.05:1:log
    optim.lr_per_256=0.05:2:log augment.strength=0.1:1.5."""
    trials: int = 30
    """Trials in all; a larger number continues a finished sweep."""
    startup: int = 8
    """Random trials, the first of them the recipe itself, before the sampler learns from them."""
    sampler: Literal["tpe", "random"] = "tpe"
    reduction: int = 3
    """Of the trials that reach a check one in so many continues at once (ASHA's eta); 1: all do."""
    concurrent: int | None = None
    """Trials at once; None: one for each GPU, or part of one (--resources.gpus-per-worker), else one."""
    seed: int = 0
    """Seed of the search; that of the trials is train.seed."""


def main(argv: list[str]) -> None:
    recipe, rest = choose_recipe(argv, RECIPES)
    arguments, config = parse_with_config(Arguments, rest, recipe.config, __doc__)
    if config.evaluate.test != recipe.config.evaluate.test:
        raise BadInput("a sweep never looks at --evaluate.test: it holds rows out of --evaluate.train, or --data.train")
    if min(arguments.trials, arguments.reduction, arguments.concurrent or 1) < 1 or arguments.startup < 0:
        raise BadInput("--trials, --reduction and --concurrent must be at least 1, and --startup at least 0")
    space = parse_space(arguments.space, config)

    from simclr_ray.orchestrate.sweep.tune import sweep  # slow: wrong flags come first
    from simclr_ray.report.page import write_page
    from simclr_ray.report.sweep import findings
    from simclr_ray.sweep.records import read_sweep

    settings = SweepSettings(
        recipe=recipe.name,
        defaults=recipe.config,
        space=space,
        trials=arguments.trials,
        startup=arguments.startup,
        sampler=arguments.sampler,
        reduction=arguments.reduction,
        seed=arguments.seed,
    )
    folder = sweep(
        config, settings, arguments.name or f"{recipe.name}-sweep", arguments.storage, concurrent=arguments.concurrent
    )
    records = read_sweep(folder)
    print(findings(records))
    print(f"\nreport     {write_page(records)}")
