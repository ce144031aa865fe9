"""Small real runs: a dataset of synthetic images, a narrow network, and streams without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from simclr_ray.config import Config
from simclr_ray.data.dataset import IMAGE, Dataset
from simclr_ray.data.load import SliceLoader
from simclr_ray.data.order import Positions, order_of
from simclr_ray.data.prepare.build import prepare_here
from simclr_ray.data.prepare.writer import CHECKED, DatasetWriter
from simclr_ray.storage.location import open_location
from simclr_ray.train.attempt import run_attempt
from simclr_ray.train.batch import Batch
from simclr_ray.train.state import TrainState
from simclr_ray.train.worker import LocalWorker
from tiny_networks import VIT

TINY = Config().with_overrides(
    {
        "augment.size": 16,
        "augment.blur_p": 0.0,
        "model.arch": "resnet18",
        "model.width": 0.0625,
        "model.stem": "cifar",
        "model.head_batchnorm": True,
        "model.head_dim": 16,
        "method.temperature": 0.5,
        "optim.lr_per_256": 0.5,
        "optim.warmup_epochs": 1.0,
        "train.epochs": 3,
        "train.global_batch": 48,
        "train.precision": "float32",
        "resources.cache_gib": 0.0,
        "logging.every_steps": 2,
    }
)

SMALL_BATCH = 32
LOCAL = {"augment.local_views": 3, "augment.local_size": 12}
DROPPING = {
    "model.arch": f"torchvision:{VIT}",
    "model.width": 1.0,
    "model.stem": "imagenet",
    "model.drop_path": 0.3,
}
SMALL: dict[str, dict[str, Any]] = {
    "swav": {"method.prototypes": 12},
    "dino": {"method.prototypes": 12},
    "supervised": {"method.classes": 10, "method.from_head": 1},
    "distillation": {"method.classes": 10, "method.from_head": 1},
    "swav_multi_crop": {"method.prototypes": 12, "method.frozen_epochs": 0.5} | LOCAL,
    "swav_queue_multi_crop": {"method.prototypes": 12, "method.queue_epochs": 0.25} | LOCAL,
    "dino_multi_crop": LOCAL
    | {"method.prototypes": 12, "method.frozen_epochs": 0.5, "method.warmup_teacher_epochs": 1.0},
    "moco_v3": {"method.queue": 0, "method.predictor_hidden": 24},
}
SMALL |= {f"{variant}_dropping": SMALL.get(variant, {}) | DROPPING for variant in ("moco", "dino_multi_crop")}
"""With stochastic depth: where the encoder sees one of the views, and where local ones too and there is a teacher."""
QUEUED = ("moco", "nnclr", "moco_dropping", "swav_queue_multi_crop")
"""Variants with a queue of two batches."""


def with_method(config: Config, variant: str, **changes: Any) -> Config:
    name = variant.removesuffix("_dropping").removesuffix("_v3").removesuffix("_multi_crop").removesuffix("_queue")
    queue = {"method.queue": 2 * config.train.global_batch} if variant in QUEUED else {}
    return config.with_overrides({"method.name": name} | queue | SMALL.get(variant, {}) | changes)


def synthetic_dataset(folder: Path, count: int, slice_rows: int = 8) -> Dataset:
    """`count` synthetic images as a dataset in `folder`."""
    return prepare_here(f"synthetic:{count}", str(folder), slice_rows)


def corrupted(
    dataset: Dataset, folder: Path, bad: Set[int] = frozenset(), unlabelled: Set[int] = frozenset()
) -> Dataset:
    """A copy of `dataset` whose rows `bad` were damaged after preparation, and some have no label."""
    from simclr_ray.data.dataset import SliceReader

    with DatasetWriter(open_location(str(folder)), dataset.slice_rows) as writer:
        for table in SliceReader(dataset).rows(0, dataset.rows):
            images = [
                b"\xff\xd8 no image" if row in bad else image
                for row, image in zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True)
            ]
            labels = pa.array(table["label"].to_pylist(), pa.int32(), mask=np.isin(table["id"], list(unlabelled)))
            table = table.select(IMAGE.names).set_column(0, "image", pa.array(images, pa.binary()))
            table = table.set_column(1, "label", labels)
            sizes = pa.array([1] * len(images), pa.int64())
            problems = pa.nulls(len(images), pa.string())
            writer.add(pa.table([*table.columns, sizes, problems], schema=CHECKED))
        return writer.finish(dataset.classes, dataset.source)


def local_blocks(
    config: Config, dataset: Dataset, positions: Positions, slices: int = 3
) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of a Ray Data stream, loaded in this process; blocks of 3 slices straddle passes and steps."""
    loader = SliceLoader(dataset, order_of(config, dataset), config.augment, None, labels=config.reads_labels)
    for start in range(0, len(positions), slices):
        yield loader(positions[start : start + slices])


class Killed(RuntimeError):
    """Simulates the end of a process."""


def attempt(config: Config, dataset: Dataset, folder: Path, *, die_after_step: int | None = None) -> TrainState:
    """One attempt of this process (alone or in its gloo group); after `die_after_step` its stream raises Killed."""
    order, worker = order_of(config, dataset), LocalWorker(torch.device("cpu"))
    rows_per_step = order.rows_per_pass(worker.size)[worker.rank] * (order.global_batch // order.pass_size)

    def blocks(positions: Positions) -> Iterator[dict[str, np.ndarray]]:
        served = 0
        for block in local_blocks(config, dataset, positions):
            if die_after_step is not None and served >= rows_per_step * die_after_step:
                raise Killed
            served += len(block["id"])
            yield block

    return run_attempt(config, dataset, open_location(str(folder)), worker, blocks)


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def ids_of(batches: list[Batch]) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]
