"""Pretrains an encoder: python experiments/pretrain.py RECIPE [overrides] [--name NAME] [--storage URI].

RECIPE: one of simclr_ray/recipes, or a file with a function that returns a Config (FILE.py, FILE.py:FUNCTION).
The same command resumes a run that was interrupted.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from time import time

from simclr_ray.cli.command import choose_recipe, given_keys, parse_with_config
from simclr_ray.config import BadInput, Config
from simclr_ray.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The run's name and storage."""

    name: str | None = None
    """Name of the run, a folder below the storage; the recipe's by default."""
    storage: str = "runs"
    """Folder or object-store URI for runs and prepared data."""


def main(argv: list[str]) -> None:
    recipe, rest = choose_recipe(argv, RECIPES)
    arguments, config = parse_with_config(Arguments, rest, recipe.config, recipe.doc)
    given = given_keys(rest)
    _require_effect(config, given)

    from simclr_ray.orchestrate.pretrain import pretrain  # takes seconds to import: wrong flags are reported first

    result = pretrain(config, arguments.name or recipe.name, arguments.storage, requested=given)

    from simclr_ray.export.encoder import loading_lines
    from simclr_ray.storage.location import open_location
    from simclr_ray.storage.run_folder import ENCODER

    encoder = open_location(result.path) / ENCODER
    if not encoder.exists():
        print(f"\nstopped at step {result.step}: {result.path}\nwithout --saving.stop-after-epochs it goes on")
        return
    print(f"\ndone at step {result.step}: {result.path}")
    _report(result.path)
    print(f"\n{loading_lines(encoder, config)}")


def _require_effect(config: Config, given: Set[str]) -> None:
    """Raises BadInput for a flag of the check that does nothing with this config."""
    check = config.evaluate
    of_check = sorted(key for key in given if key.startswith("evaluate.") and not key.startswith("evaluate.probe"))
    if of_check and not check.every_epochs and "evaluate.every_epochs" not in given:
        raise BadInput(f"{of_check[0]} is of the check during training, which is off: set --evaluate.every-epochs too")
    if check.projections and check.every_epochs and check.method not in ("knn", "linear"):
        raise BadInput(f"evaluate.projections is for --evaluate.method knn or linear, not for {check.method}")


def _report(run: str) -> None:
    """Writes the run's page. That it cannot be written, or read, is said and is no failure of the run."""
    from simclr_ray.report.run import read_run
    from simclr_ray.report.run_page import write_run_page

    try:
        print(f"report: {write_run_page(read_run(run, time()))}")
    except (OSError, BadInput) as error:
        print(f"no report: {str(error).splitlines()[0]}")
