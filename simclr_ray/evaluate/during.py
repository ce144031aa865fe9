"""The check during training: all workers share the images of a fixed subset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from simclr_ray import collective
from simclr_ray.config import BadInput, Config, EvaluateConfig
from simclr_ray.data.cache import PixelCache, open_cache
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.features import Features, extract, frozen
from simclr_ray.evaluate.fitted import first_held_out
from simclr_ray.evaluate.images import ImageBatch, centered, read_images
from simclr_ray.evaluate.knn import KnnConfig
from simclr_ray.evaluate.label_free import rankme
from simclr_ray.evaluate.linear import probe_config
from simclr_ray.evaluate.score import RANKS, Classifier, accuracy, predict
from simclr_ray.methods.method import Method
from simclr_ray.train.check import Evaluate
from simclr_ray.train.metrics import Diverged
from simclr_ray.train.probe import probe_of

BATCH_SLICES = 8


def rows_of_check(config: Config, bank: Dataset, test: Dataset | None) -> tuple[range, range]:
    """Rows of the bank, and of the queries: without a test set the last rows of the bank's dataset, held out of it."""
    settings = config.evaluate
    if test is not None:
        return range(min(settings.bank_rows, bank.rows)), range(min(settings.test_rows, test.rows))
    first = first_held_out(settings, bank)
    if not first:
        raise BadInput(f"{bank.uri} has too few images to hold any out: name a labelled test set")
    return range(min(settings.bank_rows, first)), range(first, bank.rows)


def check_during(config: Config, bank: Dataset, test: Dataset | None, device: torch.device, threads: int) -> Evaluate:
    """A function that measures what `evaluate.method` asks for; it returns the same on every worker.

    rankme: {"rankme"}, of the queries; knn: also {"knn_top1", "knn_top5", "knn_mean_per_class"} in percent; linear:
    {"linear_top1", ...} as well. knn and linear of a method with a classifier: also {"top1", ...} of that one; with
    `evaluate.projections` also all accuracies of the projections, as {"z_knn_top1"} and so on. probe: {"probe_check"},
    the probe_top1 of that step, under a name that only the rows of checks have.

    `check_control`, which the function is given, is a collective: a worker that called it once more than the others
    would wait for them forever. So all workers call it equally often, whatever their shares of the images. `threads`
    read images, from the decoded cache where there is one.
    """
    settings = config.evaluate
    if settings.method == "probe":
        return _of_probe
    bank_rows, query_rows = rows_of_check(config, bank, test)

    def share(model: Method, dataset: Dataset, rows: range, check_control: Callable[[], None]) -> Features:
        # A cache pays for itself only where most of it is read; that of the training set is there by now.
        most = 2 * len(rows) >= dataset.rows
        cache = open_cache(dataset, config.resources.cache_gib, config.resources.cache_dir, build=most)
        images = _own_images(dataset, rows, config.augment.size, threads, cache, check_control)
        return extract(model.encoder, images, config.data.mean, config.data.std, device)

    def check(model: Method, step: int, check_control: Callable[[], None]) -> dict[str, float]:
        queries = share(model, test or bank, query_rows, check_control)
        all_queries = _of_all_workers(queries.h)
        if not all_queries.isfinite().all():
            raise Diverged(f"the features are not finite at step {step}: lower optim.lr_per_256, or warm up for longer")
        found = {"rankme": round(rankme(all_queries), 3)}
        if settings.method == "rankme":
            return found
        own = share(model, bank, bank_rows, check_control)
        return found | _own_accuracy(model, queries) | _by_labels(settings, model, queries, own, bank, check_control)

    return check


def _by_labels(
    settings: EvaluateConfig,
    model: Method,
    queries: Features,
    own: Features,
    bank: Dataset,
    check_control: Callable[[], None],
) -> dict[str, float]:
    """Accuracies of this worker's queries, by what all workers have of the bank; `own`: this one's share of it."""
    labels = _of_all_workers(own.labels)
    classes = int(labels.max()) + 1 if bank.classes is None else len(bank.classes)
    found = _accuracies(settings, queries, _of_all_workers(own.h), labels, classes, check_control)
    if settings.projections:
        z = [replace(features, h=_projections(model, features.h)) for features in (queries, own)]
        of_z = _accuracies(settings, z[0], _of_all_workers(z[1].h), labels, classes, check_control)
        found |= {f"z_{name}": value for name, value in of_z.items()}
    return found


def _of_probe(model: Method, step: int, check_control: Callable[[], None]) -> dict[str, float]:
    probe = probe_of(model)
    found = probe.measures() if probe else {}
    return {"probe_check": round(found["probe_top1"], 3)} if found else {}


def _own_images(
    dataset: Dataset,
    rows: range,
    size: int,
    threads: int,
    cache: PixelCache | None,
    check_control: Callable[[], None],
) -> Iterator[ImageBatch]:
    """Centre views of this worker's share of the slices; `check_control` is called after each round of batches."""
    slices = range(rows.start // dataset.slice_rows, -(-rows.stop // dataset.slice_rows))
    own = slices[collective.rank() :: collective.size()]
    batches = read_images(
        dataset, centered(size), slices=own, rows=rows.stop, batch_slices=BATCH_SLICES, threads=threads, cache=cache
    )
    # Rounds are counted on all slices, not on this worker's, which may have one batch less than another's.
    for _ in range(-(-len(slices) // (collective.size() * BATCH_SLICES))):
        batch = next(batches, None)
        if batch is not None:
            yield batch
        check_control()


def _of_all_workers(rows: Tensor) -> Tensor:
    """Rows of every worker in rank order, on every worker.

    The order is the same everywhere, so all train the same linear classifier without exchanging a gradient, and row i
    of the labels, gathered apart, still belongs to row i of the features.
    """
    return collective.gather_rows(rows, collective.gather_counts(len(rows)))


def _own_accuracy(model: Method, queries: Features) -> dict[str, float]:
    """That of the method's own classifier, if it has one."""
    with frozen(model):
        logits = model.classify(queries.h)
    if logits is None:
        return {}
    return accuracy(logits.topk(min(RANKS, logits.shape[1])).indices, queries.labels).row()


def _projections(model: Method, features: Float[Tensor, "n h"]) -> Float[Tensor, "n d"]:
    """float32, by the head in eval mode."""
    weight = next(model.head.parameters(), features)
    with frozen(model.head):
        projections: Tensor = model.head(features.to(weight.dtype))
    return projections.float()


def _accuracies(
    settings: EvaluateConfig,
    queries: Features,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    check_control: Callable[[], None],
) -> dict[str, float]:
    knn = KnnConfig(neighbours=settings.neighbours, temperature=settings.temperature)
    classifiers: dict[str, Classifier] = {"knn": knn}
    if settings.method == "linear":
        classifiers["linear"] = probe_config(len(bank_labels))
    found: dict[str, float] = {}
    for name, classifier in classifiers.items():
        predicted = predict(
            queries.h, [bank], bank_labels, classifier, classes=classes, seed=0, check_control=check_control
        )
        reached = accuracy(predicted, queries.labels).row()
        found |= {f"{name}_{measure}": value for measure, value in reached.items()}
    return found
