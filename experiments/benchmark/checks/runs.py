"""Whole runs: a shortened recipe without Ray, with its loop, checkpoints, logs and check; and ResNet-50 under Ray."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from checks.check import Bar, Check, Figures, Machine, Skip
from checks.feed import dataset_of, loaded, photographs_folder, recipe_config, step_rate_of
from checks.steps import imagenet
from simclr_ray.data.bridge import Block
from simclr_ray.evaluate.during import check_during
from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import METRICS, read_rows
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.worker import LocalWorker

EPOCHS = 10
CIFAR10_KNN, PIXELS_KNN = 59.0, 24.0
"""In percent: of CIFAR-10 after ten epochs of a bare loop with this recipe's values; of the pixels of synthetic
images."""


def cifar10(machine: Machine) -> Figures:
    """kNN accuracy after ten epochs of training, fed by data workers."""
    images = machine.data or f"synthetic:{machine.size(20_000, 256)}"
    settings = {"train.epochs": machine.size(EPOCHS, 1), "evaluate.every_epochs": EPOCHS, "saving.every_s": 1e6}
    config = recipe_config(machine).with_overrides(settings | {"logging.every_steps": machine.size(10, 1)})
    workers = max(1, machine.cores - 1)
    with dataset_of(images) as dataset, TemporaryDirectory() as folder:

        def blocks(positions: np.ndarray) -> Iterator[Block]:
            return loaded(config, dataset, positions, workers, cached=True)

        evaluate = check_during(config, dataset, None, machine.device, workers)
        run = open_location(folder)
        run_attempt(config, dataset, run, LocalWorker(machine.device), blocks, evaluate=evaluate)
        rows = read_rows(run / METRICS)
    rate = median(row["images_per_s"] for row in rows)
    waited = median(row["data_wait_fraction"] for row in rows)
    return Figures(
        ours=rows[-1]["knn_top1"],
        reference=CIFAR10_KNN if machine.data else PIXELS_KNN,
        note=f"{rate:.0f} images/s, waited {waited:.1%} for data",
        details={"rows": rows},
    )


def ray_stream(machine: Machine) -> Figures:
    """The command's whole run: its own Ray, Ray Data and the step."""
    if importlib.util.find_spec("ray") is None:
        raise Skip("Ray is not installed")
    import ray

    from simclr_ray.orchestrate.pretrain import pretrain

    os.environ["RAY_ADDRESS"] = "local"
    config = imagenet(machine)
    settings = {"resources.cache_gib": 0.0, "resources.max_workers": 1, "optim.warmup_epochs": 0}
    steps = {"train.epochs": machine.size(120, 4), "logging.every_steps": machine.size(10, 1)}  # an epoch is one step
    with photographs_folder(config.train.global_batch) as images, TemporaryDirectory() as storage:
        pretrain(config.with_overrides(settings | steps | {"data.train": images}), "fed", storage)
        ray.shutdown()
        rows = read_rows(open_location(storage) / "fed" / METRICS)
    half = rows[len(rows) // 2 :]
    waited = sum(row["data_wait_fraction"] for row in half) / len(half)
    rate = median(row["images_per_s"] for row in half)
    return Figures(ours=rate, reference=step_rate_of(config, machine), note=f"waited {waited:.1%} for data")


CHECKS = (
    Check(
        run=cifar10,
        claim="kNN % after 10 epochs of cifar10_rn18_200ep, against a bare loop's (--data) or raw pixels'",
        bar=Bar(least=0.95),
        limit_s=120,
        judged_on_cpu=False,
    ),
    Check(
        run=ray_stream,
        claim="images/s of ResNet-50 fed by Ray Data, against its step",
        bar=Bar(least=0.95),
        limit_s=200,
        judged_on_cpu=False,
    ),
)
