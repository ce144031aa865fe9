"""What the probe costs, and what it is good for: its rank correlation with linear evaluation and kNN afterwards.

python experiments/benchmark/probe.py [--runs 12] [--threads 2]

The cost is of a step of a ResNet-18 of width 1/4 on 32 px: with and without the probe in turn, in one process.
Then short runs on the synthetic images, with temperature, learning rate and strength drawn as a sweep draws them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
import tyro
from scipy.stats import spearmanr

from simclr_ray.data.dataset import Dataset, is_dataset, open_dataset
from simclr_ray.data.load import SliceLoader
from simclr_ray.data.order import order_of
from simclr_ray.data.prepare.build import prepare_here
from simclr_ray.evaluate.during import check_during
from simclr_ray.recipes import cifar10_rn18_200ep
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import METRICS, Row, read_rows
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.memory import keep_freed_memory
from simclr_ray.train.probe import probe_of
from simclr_ray.train.state import initial_state
from simclr_ray.train.step import forward_of, training_step
from simclr_ray.train.worker import LocalWorker

CPU = torch.device("cpu")
WARM_UP = 2
PROBE = {"evaluate.probe": True, "evaluate.probe_classes": 10, "train.precision": "float32"}
RUN = PROBE | {
    "augment.size": 24,
    "augment.blur_p": 0.0,
    "model.width": 0.125,
    "model.head_dim": 64,
    "optim.warmup_epochs": 1,
    "train.epochs": 6,
    "train.global_batch": 128,
    "evaluate.every_epochs": 2,
    "evaluate.method": "linear",
}
SOURCES = {"train": "synthetic:2048", "test": "synthetic:1024:test"}
SPACE = {"method.temperature": (0.05, 1.0), "optim.lr_per_256": (0.05, 2.0), "augment.strength": (0.1, 1.5)}
"""Bounds of what is drawn, log-uniformly: those of a sweep."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    runs: int = 12
    threads: int = 2
    batch: int = 256
    """Of the step that is timed."""
    pairs: int = 15
    """Steps with and without that are timed; 0: none."""
    storage: str | None = None
    """Where the runs are kept, and go on after an interruption; None: nowhere."""


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if arguments.pairs:
        print("a step takes {:.3f} times as long; the probe's own part is {:.2%} of the rest".format(*cost(arguments)))
    with tempfile.TemporaryDirectory() as scratch:
        storage = Path(arguments.storage or scratch)
        train, test = (_dataset(spec, storage / name) for name, spec in SOURCES.items())
        runs = [_run(number, train, test, storage / f"run-{number}") for number in range(arguments.runs)]
    last = {key: [rows[-1][key] for rows in runs] for key in ("linear_top1", "knn_top1")}
    for check in range(len(runs[0]) if arguments.runs else 0):
        rows = [each[check] for each in runs]
        for key, wanted in last.items():
            found = [spearmanr([row[of] for row in rows], wanted).statistic for of in ("probe_top1", key)]
            print(f"epoch {rows[0]['epoch']:.0f}: against {key} at the end: probe {found[0]:.2f}, {key} {found[1]:.2f}")


def cost(arguments: Arguments) -> tuple[float, float]:
    """Medians of a step's time with the probe over that without, and of the probe's own part over the rest."""
    plain, probed = (_timed_step(arguments, probe=probe) for probe in (False, True))
    pairs = [(plain(), probed()) for _ in range(arguments.pairs + WARM_UP)][WARM_UP:]
    ratio = median(sum(with_probe) / sum(without) for without, with_probe in pairs)
    return ratio, median(own / rest for _, (rest, own) in pairs)


def _timed_step(arguments: Arguments, *, probe: bool) -> Callable[[], tuple[float, float]]:
    """A step that returns the seconds of the method and of the probe."""
    own = {"model.width": 0.25, "train.global_batch": arguments.batch, "evaluate.probe": probe}
    config = cifar10_rn18_200ep().with_overrides(PROBE | own)
    state, mean, std = initial_state(config, CPU), config.data.mean, config.data.std
    forward = forward_of(state.model, mean, std, config.train.precision, CPU, compiled=False)
    views = torch.randint(0, 256, (arguments.batch, 2, 32, 32, 3), dtype=torch.uint8)
    labels, rows = torch.randint(0, 10, (arguments.batch,)), [arguments.batch]
    trained = probe_of(state.model)

    def step() -> tuple[float, float]:
        seen: list[torch.Tensor] = []
        start = perf_counter()
        watched = trained.watching(forward, seen) if trained else forward
        training_step(state.model, watched, state.optimizer, views, passes=1, rows_per_worker=rows)
        middle = perf_counter()
        if trained:
            trained.train_on(seen, [labels])
        return middle - start, perf_counter() - middle

    return step


def _run(number: int, train: Dataset, test: Dataset, folder: Path) -> list[Row]:
    """The rows of the checks of a run whose settings are drawn from its number, the recipe's own being the first."""
    generator = np.random.default_rng(number)
    drawn = {key: float(np.exp(generator.uniform(*np.log(bounds)))) for key, bounds in SPACE.items()}
    config = cifar10_rn18_200ep().with_overrides(RUN | (drawn if number else {}))
    loader = SliceLoader(train, order_of(config, train), config.augment, None, labels=True)

    def blocks(positions: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(positions), 4):
            yield loader(positions[start : start + 4])

    run, check = open_location(str(folder)), check_during(config, train, test, CPU, 2)
    run_attempt(config, train, run, LocalWorker(CPU), blocks, evaluate=check)
    rows = [row for row in read_rows(run / METRICS) if "linear_top1" in row]
    line = "  ".join(f"{row['probe_top1']:.1f}/{row['linear_top1']:.1f}/{row['knn_top1']:.1f}" for row in rows)
    print(f"run {number}: probe/linear/kNN % of each check: {line}  ({drawn if number else 'the recipe'})", flush=True)
    return rows


def _dataset(spec: str, folder: Path) -> Dataset:
    return open_dataset(str(folder)) if is_dataset(str(folder)) else prepare_here(spec, str(folder), 32)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
