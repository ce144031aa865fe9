"""The check during training: all workers share the images of a fixed subset."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from simclr_ray import collective
from simclr_ray.config import BadInput, Config
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.accuracy import hits
from simclr_ray.evaluate.features import Features, extract
from simclr_ray.evaluate.fitted import first_held_out
from simclr_ray.evaluate.images import ImageBatch, centered, read_images
from simclr_ray.evaluate.knn import knn_predict
from simclr_ray.evaluate.label_free import rankme
from simclr_ray.evaluate.linear import predict, probe_config, train_probe
from simclr_ray.methods.build import Method
from simclr_ray.train.check import Evaluate
from simclr_ray.train.metrics import Diverged

BATCH_SLICES = 8


def rows_of_check(config: Config, bank: Dataset, test: Dataset | None) -> tuple[range, range]:
    """Rows of the bank and rows to classify. Without a test set these are the last of the bank's dataset, held out."""
    settings = config.evaluate
    if test is not None:
        return range(min(settings.bank_rows, bank.rows)), range(min(settings.test_rows, test.rows))
    first = first_held_out(settings, bank)
    if not first:
        raise BadInput(f"{bank.uri} has too few images to hold any out: name a labelled test set")
    return range(min(settings.bank_rows, first)), range(first, bank.rows)


def check_during(config: Config, bank: Dataset, test: Dataset | None, device: torch.device, threads: int) -> Evaluate:
    """A function that gives what `evaluate.method` asks for, the same on every worker.

    rankme: {"rankme"}, of the images to classify; knn: {"knn_top1", "knn_top5"} in percent as well; linear:
    {"linear_top1", "linear_top5"} besides.
    """
    method = config.evaluate.method
    known_rows, asked_rows = rows_of_check(config, bank, test)

    def share(model: Method, dataset: Dataset, rows: range, between: Callable[[], None]) -> Features:
        slices = range(rows.start // dataset.slice_rows, -(-rows.stop // dataset.slice_rows))
        rounds = -(-len(slices) // (collective.size() * BATCH_SLICES))
        own = slices[collective.rank() :: collective.size()]
        view = centered(config.augment.size)
        images = read_images(dataset, view, slices=own, rows=rows.stop, batch_slices=BATCH_SLICES, threads=threads)
        together = _in_rounds(images, rounds, between)
        return extract(model.encoder, together, config.data.mean, config.data.std, device)

    def check(model: Method, step: int, between: Callable[[], None]) -> dict[str, float]:
        asked = share(model, test or bank, asked_rows, between)
        features = _of_all(asked.h, asked)
        if not features.isfinite().all():
            raise Diverged(f"the features are no numbers at step {step}: lower optim.lr_per_256, or warm up for longer")
        found = {"rankme": round(rankme(features), 3)}
        if method != "rankme":
            known = share(model, bank, known_rows, between)
            features, labels = _of_all(known.h, known), _of_all(known.labels, known)
            found |= _accuracies(config, features, labels, asked, bank.classes, between)
        return found

    return check


def _in_rounds(batches: Iterator[ImageBatch], rounds: int, between: Callable[[], None]) -> Iterator[ImageBatch]:
    """The batches, with `between` called `rounds` times: as often on the worker that has one batch less."""
    for _ in range(rounds):
        batch = next(batches, None)
        if batch is not None:
            yield batch
        between()


def _of_all(rows: torch.Tensor, share: Features) -> torch.Tensor:
    return collective.gather_rows(rows, collective.gather_counts(len(share.labels)))


def _accuracies(
    config: Config,
    bank: torch.Tensor,
    labels: torch.Tensor,
    asked: Features,
    names: tuple[str, ...] | None,
    between: Callable[[], None],
) -> dict[str, float]:
    settings = config.evaluate
    classes = int(labels.max()) + 1 if names is None else len(names)
    ranked = {
        "knn": knn_predict(
            asked.h, bank, labels, classes=classes, neighbours=settings.neighbours, temperature=settings.temperature
        )
    }
    if settings.method == "linear":
        recipe = probe_config(len(labels))
        probe = train_probe(bank[None], labels, classes=classes, config=recipe, seed=0, between=between)
        ranked["linear"] = predict(probe, asked.h)
    found: dict[str, float] = {}
    total = sum(collective.gather_counts(len(asked.labels)))
    for name, predicted in ranked.items():
        right = collective.sum_over_workers(hits(predicted, asked.labels))
        top1, top5 = (100 * right / total).tolist()
        found |= {f"{name}_top1": round(top1, 3), f"{name}_top5": round(top5, 3)}
    return found
