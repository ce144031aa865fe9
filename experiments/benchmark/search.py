"""Whether the sampler earns its keep: sweeps with TPE against random search of the same budget, over several seeds.

python experiments/benchmark/search.py [--seeds 3] [--trials 30]

Short runs on the synthetic images. The table shows the best trial of every sweep, what the recipe itself reached in it,
and the samples that ASHA saved; a second one how well rankme, which needs no labels, ranks the trials.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from statistics import median
from typing import Literal

from simclr_ray.cli.command import parse, run_command
from simclr_ray.config import Config
from simclr_ray.sweep.settings import SweepSettings
from simclr_ray.sweep.space import parse_space

SETTINGS = {
    "data.train": "synthetic:2048",
    "augment.size": 24,
    "augment.strength": 0.5,
    "augment.blur_p": 0.0,
    "model.arch": "resnet18",
    "model.width": 0.125,
    "model.stem": "cifar",
    "model.head_dim": 64,
    "model.head_batchnorm": True,
    "method.temperature": 0.5,
    "optim.lr_per_256": 1.0,
    "optim.warmup_epochs": 1,
    "train.epochs": 6,
    "train.global_batch": 128,
    "evaluate.every_epochs": 2,
    "evaluate.test_rows": 1024,
    "resources.threads": 1,
    "resources.cpus_per_worker": 0.6,
    "resources.data_cpus": 0.3,
}
"""A smaller quickstart."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    seeds: int = 3
    trials: int = 30
    startup: int = 8
    concurrent: int = 2
    storage: str | None = None
    """Where the sweeps are kept, and go on after an interruption; None: nowhere."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        storage = arguments.storage or scratch
        rows = [
            _sweep(sampler, seed, arguments, storage)
            for seed in range(arguments.seeds)
            for sampler in ("tpe", "random")
        ]
    _print(rows)


@dataclass(frozen=True, kw_only=True)
class _Row:
    sampler: str
    seed: int
    best: float
    recipe: float
    samples: float
    """Of what all trials at full length would have seen."""
    rankme: float
    """Spearman's rank correlation with kNN over all trials, at the first check of each."""


def _sweep(sampler: Literal["tpe", "random"], seed: int, arguments: Arguments, storage: str) -> _Row:
    from simclr_ray.orchestrate.sweep.tune import sweep
    from simclr_ray.sweep.records import read_sweep

    config = Config().with_overrides(SETTINGS | {"train.seed": seed})
    settings = SweepSettings(
        recipe="quickstart",
        defaults=config,
        space=parse_space([], config),
        trials=arguments.trials,
        startup=arguments.startup,
        sampler=sampler,
        seed=seed,
    )
    records = read_sweep(sweep(config, settings, f"{sampler}-{seed}", storage, concurrent=arguments.concurrent))
    assert records.best is not None
    assert records.default is not None
    return _Row(
        sampler=sampler,
        seed=seed,
        best=records.best.objective,
        recipe=records.default.objective,
        samples=sum(trial.samples for trial in records.trials) / (len(records.trials) * records.budget_samples),
        rankme=_rankme_against_knn([f"{storage}/{sampler}-{seed}/{trial.run}" for trial in records.trials]),
    )


def _rankme_against_knn(runs: list[str]) -> float:
    from scipy.stats import spearmanr

    from simclr_ray.storage.location import open_location
    from simclr_ray.storage.run_folder import METRICS, read_rows

    checks = [[row for row in read_rows(open_location(run) / METRICS) if "rankme" in row] for run in runs]
    first = [rows[0] for rows in checks if rows]
    return float(spearmanr([row["rankme"] for row in first], [row["knn_top1"] for row in first]).statistic)


def _print(rows: list[_Row]) -> None:
    print(f"{'sampler':<9}{'seed':>5}{'best kNN %':>12}{'recipe %':>10}{'samples seen':>14}{'rankme ~ kNN':>14}")
    for row in rows:
        cells = f"{row.best:>12.2f}{row.recipe:>10.2f}{row.samples:>14.0%}{row.rankme:>14.2f}"
        print(f"{row.sampler:<9}{row.seed:>5}{cells}")
    for sampler in ("tpe", "random"):
        best = median(row.best for row in rows if row.sampler == sampler)
        print(f"{sampler:<9}{'median':>5}{best:>11.2f}")


if __name__ == "__main__":
    run_command(main)
