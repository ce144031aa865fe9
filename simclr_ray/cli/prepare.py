"""Prepares images as a dataset: decodes every image once, leaves bad ones out, shuffles the rest into Parquet shards.

    python experiments/prepare.py SOURCE DEST [--seed 0] [--max-side PIXELS]
    python experiments/prepare.py DATASET DEST --fraction 0.1 | --paths FILE

SOURCE: a folder of images (class folders give labels), Hugging Face Parquet or WebDataset tars (a file, a folder, or
a pattern such as data/train-*), local or by URI; torchvision:CIFAR10[:test]; synthetic:4096[:64px][:test].
DEST: a new folder or object-store prefix. DATASET: a prepared one, of which a part is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from simclr_ray.cli.command import parse
from simclr_ray.config import BadInput
from simclr_ray.data.dataset import bad_images
from simclr_ray.data.prepare.subset import take_part
from simclr_ray.orchestrate.prepare import prepare

BAD_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    source: tyro.conf.Positional[str]
    dest: tyro.conf.Positional[str]
    seed: int = 0
    """Decides the order of the images."""
    max_side: int | None = None
    """Images with a longer side are scaled down to it and re-encoded as JPEG; None: all stay as they are."""
    fraction: float | None = None
    """Take this part of each class's images, chosen by the seed."""
    paths: str | None = None
    """Take the images that this file names, a path or file name on each line, as in SimCLR's lists of 1 % and 10 %."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    if arguments.fraction is None and arguments.paths is None:
        dataset = prepare(arguments.source, arguments.dest, seed=arguments.seed, max_side=arguments.max_side)
    else:
        if arguments.max_side is not None:
            raise BadInput("--max-side is for images that are prepared, not for a part of a dataset: leave it out")
        dataset = take_part(
            arguments.source, arguments.dest, fraction=arguments.fraction, paths=arguments.paths, seed=arguments.seed
        )
    classes = f"{len(dataset.classes)} classes" if dataset.classes else "no class names"
    labels = "labelled" if dataset.labelled else "not all labelled"
    print(f"{dataset.rows:,} images, {labels}, {classes}, in {dataset.uri}")
    print(f"fingerprint {dataset.fingerprint}")
    if dataset.bad:
        print(f"{dataset.bad:,} bad images were left out, listed in {dataset.uri}/bad.jsonl:")
        for bad in bad_images(dataset)[:BAD_SHOWN]:
            print(f"  {bad['path']}: {bad['problem']}")
    print(f"pretrain on it: python experiments/pretrain.py RECIPE --data.train {dataset.uri}")
