"""Shows the images whose features are nearest to those of a query, on a contact sheet and as lines.

    python experiments/neighbours.py EMBEDDINGS --query IMAGE|ID

EMBEDDINGS: a folder that embed.py wrote. The search is exact: every feature is compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from simclr_ray.cli.command import parse, writing
from simclr_ray.storage.location import open_location


@dataclass(frozen=True, kw_only=True)
class Arguments:
    embeddings: tyro.conf.Positional[str]
    query: str
    """An image file, local or by URI, or the id of an embedded image."""
    neighbours: int = 23
    """How many are shown."""
    out: str = "neighbours.png"
    """The sheet."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    from simclr_ray.report.neighbours import find_neighbours  # imports torch, which takes a second

    found = find_neighbours(arguments.embeddings, arguments.query, arguments.neighbours)
    print(f"{'id':>9}  cosine  image")
    for one in found.neighbours:
        print(f"{one.id:>9}  {one.similarity:6.3f}  {one.path or ''} {found.class_of(one)}")
    sheet = found.sheet()
    with writing(arguments.out):
        open_location(arguments.out).write_bytes(sheet)
    print(f"sheet: {arguments.out}")
