"""Accuracy of frozen features, by kNN or by a linear classifier: during training and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr_ray import collective
from simclr_ray.evaluate.knn import KnnConfig, knn_predict
from simclr_ray.evaluate.linear import ProbeConfig, train_probe
from simclr_ray.evaluate.logistic import LogisticConfig, fit_logistic

Classifier = KnnConfig | ProbeConfig | LogisticConfig

RANKS = 5


class Accuracy(NamedTuple):
    """In percent of the queries. With five classes or fewer, top5 is 100."""

    top1: float
    top5: float
    mean_per_class: float
    """The mean of the classes' own top-1 accuracies, over the classes that the queries have: where these differ in
    size, a large one counts for no more than a small one."""

    def row(self) -> dict[str, float]:
        """As logs and results have it."""
        return {name: round(value, 3) for name, value in self._asdict().items()}


def predict(
    queries: Float[Tensor, "n d"],
    bank: Sequence[Float[Tensor, "m d"]],
    bank_labels: Int64[Tensor, " m"],
    classifier: Classifier,
    *,
    classes: int,
    seed: int,
    check_control: Callable[[], None] | None = None,
) -> Int64[Tensor, "n ranks"]:
    """The first RANKS classes for each query, best first; each worker passes its share of them, and the whole bank.

    `bank` holds the features of one or more views of the same images. The first view votes in kNN; a linear
    classifier trains on all of them, with `seed` for the order of its batches and `check_control` after each epoch;
    logistic regression is fitted to the first.
    """
    ranks = min(RANKS, classes)
    if isinstance(classifier, KnnConfig):
        return knn_predict(queries, bank[0], bank_labels, classifier, classes=classes, ranks=ranks)
    if isinstance(classifier, LogisticConfig):
        fitted = fit_logistic(bank[0], bank_labels, classes=classes, l2=classifier.l2)
        with torch.no_grad():
            return fitted(queries.double()).topk(ranks).indices
    probe = train_probe(bank, bank_labels, classes=classes, config=classifier, seed=seed, check_control=check_control)
    with torch.no_grad():
        return probe(queries).topk(ranks).indices


def accuracy(predicted: Int64[Tensor, "n ranks"], labels: Int64[Tensor, " n"]) -> Accuracy:
    """How often the label is the first, and is any, of the classes predicted, best first; over all workers' rows."""
    right = predicted == labels[:, None]
    (highest,) = collective.maximum_over_workers([int(labels.max()) if len(labels) else 0])
    counted = [labels, labels[right[:, 0]], labels[right.any(dim=1)]]
    by_class = torch.stack([rows.bincount(minlength=highest + 1) for rows in counted])
    total, first, any_rank = collective.sum_over_workers(by_class).double()
    occurs = total > 0
    return Accuracy(
        top1=float(100 * first.sum() / total.sum()),
        top5=float(100 * any_rank.sum() / total.sum()),
        mean_per_class=float(100 * (first[occurs] / total[occurs]).mean()),
    )
