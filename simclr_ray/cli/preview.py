"""Shows images beside the views that a recipe draws of them, before any training.

    python experiments/preview.py SOURCE --recipe RECIPE [--augment.strength 1 ...]

SOURCE: whatever `--data.train` takes. RECIPE: one of simclr_ray/recipes (quickstart unless given), or a file with a
function that returns a Config. Nothing is prepared, and neither torch nor Ray is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from simclr_ray.cli.command import choose_recipe, parse_with_config, take_flag, writing
from simclr_ray.config import BadInput
from simclr_ray.recipes import RECIPES
from simclr_ray.storage.location import open_location


@dataclass(frozen=True, kw_only=True)
class Arguments:
    source: tyro.conf.Positional[str]
    images: int = 6
    """How many are shown."""
    out: str = "preview.png"
    """The sheet."""


def main(argv: list[str]) -> None:
    name, rest = take_flag(argv, "--recipe")
    recipe, rest = choose_recipe(["quickstart" if name is None else name, *rest], RECIPES)
    arguments, config = parse_with_config(Arguments, rest, recipe.config, __doc__)
    if arguments.images < 1:
        raise BadInput(f"--images {arguments.images}: at least 1 can be shown")

    from simclr_ray.data.dataset import is_dataset, open_dataset
    from simclr_ray.report.views import images_in, images_of, views_sheet

    if is_dataset(arguments.source):
        images = images_of(open_dataset(arguments.source), arguments.images)
    else:
        images = images_in(arguments.source, arguments.images)
    sheet = views_sheet(images, config.train.seed, config.augment)
    with writing(arguments.out):
        open_location(arguments.out).write_bytes(sheet)
    print(f"sheet: {arguments.out}")
