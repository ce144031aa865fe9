"""Judges the encoder of a finished run on labelled images.

    python experiments/evaluate.py RUN knn --train TRAIN --test TEST
    python experiments/evaluate.py RUN linear --train TRAIN --test TEST --baselines --crops 8

TRAIN, TEST: datasets, or anything that prepare.py takes. The result is printed and appended to RUN/evaluation.jsonl.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from simclr_ray.cli.command import parse
from simclr_ray.config import EvaluateConfig
from simclr_ray.orchestrate.evaluate import evaluate_run, summary


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder or an encoder.safetensors, local or by URI."""
    method: tyro.conf.Positional[Literal["knn", "linear"]]
    train: str
    """Labelled images: the bank of the kNN, or what the linear probe is trained on."""
    test: str
    """Labelled images to classify."""
    baselines: bool = False
    """Also judge the untrained encoder and the raw pixels."""
    crops: int = 0
    """linear: cropped and flipped copies of each training image; 0: its centre alone."""
    neighbours: int = EvaluateConfig.neighbours
    """knn: how many vote."""
    temperature: float = EvaluateConfig.temperature
    """knn: they vote with weight exp(similarity / temperature)."""
    seed: int = 0
    """linear: of the order of the batches, and of the crops."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    row = evaluate_run(**vars(arguments))
    print(summary(row))
