"""Repeats an ablation of the SimCLR paper on your images, as a grid of short runs beside the paper's figures.

    python experiments/ablate.py ABLATION RECIPE [overrides] [--seeds N] [--name NAME] [--storage URI]

Every run is a trial of a sweep below STORAGE/NAME, measured at its end on rows held out of the labelled training set.
The same command resumes it, and with more --seeds adds to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from simclr_ray.cli.command import choose_recipe, parse_with_config
from simclr_ray.config import BadInput
from simclr_ray.recipes import RECIPES
from simclr_ray.sweep.ablations import ABLATIONS, ablation, points_of, space_of
from simclr_ray.sweep.settings import SweepSettings

USAGE = "\n".join(
    [
        "usage: ABLATION RECIPE [overrides]",
        *(f"  {name:14s}{one.title} ({one.source})" for name, one in ABLATIONS.items()),
        "ABLATION RECIPE --help lists the settings",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The ablation's name and size."""

    name: str | None = None
    """Name of its folder below the storage; RECIPE-ABLATION by default."""
    storage: str = "runs"
    """Folder or object-store URI."""
    seeds: int = 1
    """Runs of each config: with train.seed, train.seed + 1 and so on; a larger number adds to a finished ablation."""
    concurrent: int | None = None
    """Runs at once; None: one for each GPU, or part of one (--resources.gpus-per-worker), else one."""


def main(argv: list[str]) -> None:
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not argv:
        raise BadInput(f"name an ablation first: {', '.join(ABLATIONS)}")
    name, compared = argv[0], ablation(argv[0])
    recipe, rest = choose_recipe(argv[1:], RECIPES)
    arguments, config = parse_with_config(Arguments, rest, recipe.config, __doc__)
    if config.evaluate.test != recipe.config.evaluate.test:
        raise BadInput("an ablation never looks at --evaluate.test: it holds rows out of --evaluate.train")
    if min(arguments.seeds, arguments.concurrent or 1) < 1:
        raise BadInput("--seeds and --concurrent must be at least 1")
    config = config.with_overrides({"evaluate.every_epochs": config.train.epochs})
    if compared.projections:
        config = config.with_overrides({"evaluate.projections": True})
    points = points_of(name, config)

    from simclr_ray.orchestrate.sweep.tune import sweep  # slow: wrong flags come first
    from simclr_ray.report.ablation import ablation_findings
    from simclr_ray.report.page import write_page
    from simclr_ray.sweep.records import read_sweep

    settings = SweepSettings(
        recipe=recipe.name,
        defaults=recipe.config,
        space=space_of(points, config),
        trials=arguments.seeds * len(points),
        reduction=1,
        ablation=name,
        points=tuple(points),
    )
    folder = sweep(
        config, settings, arguments.name or f"{recipe.name}-{name}", arguments.storage, concurrent=arguments.concurrent
    )
    records = read_sweep(folder)
    print(ablation_findings(records))
    print(f"\nreport     {write_page(records)}")
