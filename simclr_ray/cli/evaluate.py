"""Scores the encoder of a finished run on labelled images.

    python experiments/evaluate.py RUN knn --train TRAIN --test TEST
    python experiments/evaluate.py RUN linear --train TRAIN --test TEST --baselines --crops 8
    python experiments/evaluate.py RUN transfer --train OTHER_TRAIN --test OTHER_TEST
    python experiments/evaluate.py RUN finetune --train TRAIN --test TEST --baselines --fraction 0.1

TRAIN, TEST: datasets, or anything that prepare.py takes. The result is printed and appended to RUN/evaluation.jsonl.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from simclr_ray.cli.command import parse
from simclr_ray.config import BadInput, EvaluateConfig
from simclr_ray.evaluate.results import summary
from simclr_ray.orchestrate.evaluate import evaluate_run
from simclr_ray.orchestrate.finetune import finetune_run

TAKEN_BY = {
    "epochs": ("finetune",),
    "from_head": ("finetune",),
    "crops": ("linear",),
    "neighbours": ("knn",),
    "temperature": ("knn",),
}
"""Settings that not all methods have."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder or an encoder.safetensors, local or by URI."""
    method: tyro.conf.Positional[Literal["knn", "linear", "transfer", "finetune"]]
    """transfer: logistic regression, its l2 chosen among 45 on a fifth of TRAIN. finetune: the whole encoder is trained
    on, in a run of its own beside RUN; the same command resumes it."""
    train: str
    """Labelled images, the bank: they vote in kNN, and the classifiers are trained on them."""
    test: str
    """Labelled images, the queries: they are classified."""
    fraction: float = 1.0
    """Of the labels: so many of each class's training images, chosen by the seed."""
    baselines: bool = False
    """Also score the untrained encoder, the weights of model.init, and, but for finetune, the raw pixels."""
    epochs: int | None = None
    """finetune: None: 15, or 30 below 5 % of the labels, and more where they are few."""
    from_head: int = 0
    """finetune: so many layers of the run's projection head stay, below the classifier (SimCLR v2: 1)."""
    crops: int = 0
    """linear: randomly cropped and flipped views of each training image; 0: its centre alone."""
    neighbours: int = EvaluateConfig.neighbours
    """knn: how many vote."""
    temperature: float = EvaluateConfig.temperature
    """knn: they vote with weight exp(cosine similarity / temperature)."""
    seed: int = 0
    """linear: for the order of the batches, and for the crops; transfer: for the fifth; finetune: for everything."""


def main(argv: list[str]) -> None:
    settings = vars(parse(Arguments, argv, description=__doc__))
    run, method, train, test = (settings.pop(name) for name in ("run", "method", "train", "test"))
    finetunes = method == "finetune"
    for name, takers in TAKEN_BY.items():
        default = getattr(Arguments, name)
        if method not in takers and settings[name] != default:
            raise BadInput(f"--{name.replace('_', '-')} is for {takers[0]}, not for {method}: leave it out")
        if ("finetune" in takers) != finetunes:
            del settings[name]
    row = (
        finetune_run(run, train, test, **settings) if finetunes else evaluate_run(run, method, train, test, **settings)
    )
    print(summary(row))
