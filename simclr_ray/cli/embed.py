"""Writes the features of images to Parquet: columns id, path, label and feature, a row for each image.

    python experiments/embed.py RUN SOURCE OUT [--dtype float16]

SOURCE: a dataset, or anything that prepare.py takes. OUT: a new folder or object-store prefix. It runs on the GPUs of
the cluster, or on its CPUs where there are none. The same command goes on after an interruption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from simclr_ray.cli.command import parse


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder or an encoder.safetensors, local or by URI."""
    source: tyro.conf.Positional[str]
    out: tyro.conf.Positional[str]
    dtype: Literal["float16", "float32"] = "float32"
    """Of the features in the files."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    from simclr_ray.evaluate.embeddings import FEATURES
    from simclr_ray.orchestrate.embed import embed  # imports torch and Ray, which takes seconds

    found = embed(arguments.run, arguments.source, arguments.out, dtype=arguments.dtype)
    print(f"{found.rows:,} images, features of {found.feature_dim} numbers: {found.location}/{FEATURES}")
    print(f"read them: pandas.read_parquet({f'{found.location}/{FEATURES}'!r})")
    print(f"look at them: python experiments/neighbours.py {arguments.out} --query 0")
