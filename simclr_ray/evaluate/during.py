"""The kNN check during training: all workers share the pictures of a fixed subset."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from simclr_ray.config import Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.accuracy import hits
from simclr_ray.evaluate.features import Features, extract
from simclr_ray.evaluate.knn import knn_predict
from simclr_ray.evaluate.pictures import centered, read_pictures
from simclr_ray.model.simclr import SimCLR
from simclr_ray.train import collective
from simclr_ray.train.loop import Evaluate


def knn_check(config: Config, bank: Dataset, test: Dataset, device: torch.device, threads: int) -> Evaluate:
    """A function from model and step to {"knn_top1", "knn_top5"} in percent, the same on every worker."""
    settings = config.evaluate

    def share(model: SimCLR, dataset: Dataset, rows: int) -> Features:
        slices = range(-(-min(rows, dataset.rows) // dataset.slice_rows))[collective.rank() :: collective.size()]
        pictures = read_pictures(dataset, centered(config.augment.size), slices=slices, rows=rows, threads=threads)
        return extract(model.encoder, pictures, config.data.mean, config.data.std, device)

    def check(model: SimCLR, step: int) -> dict[str, float]:
        known, asked = share(model, bank, settings.bank_rows), share(model, test, settings.test_rows)
        counts: Sequence[int] = collective.gather_counts(len(known.labels))
        labels = collective.gather_rows(known.labels, counts)
        predicted = knn_predict(
            asked.h,
            collective.gather_rows(known.h, counts),
            labels,
            classes=int(labels.max()) + 1 if bank.classes is None else len(bank.classes),
            neighbours=settings.neighbours,
            temperature=settings.temperature,
        )
        right = collective.sum_over_workers(hits(predicted, asked.labels))
        total = sum(collective.gather_counts(len(asked.labels)))
        top1, top5 = (100 * right / total).tolist()
        return {"knn_top1": round(top1, 3), "knn_top5": round(top5, 3)}

    return check
