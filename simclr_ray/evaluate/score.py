"""Top-1 and top-5 accuracy of frozen features, by kNN or by a linear classifier: during training and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr_ray import collective
from simclr_ray.evaluate.knn import KnnConfig, knn_predict
from simclr_ray.evaluate.linear import ProbeConfig, train_probe

Classifier = KnnConfig | ProbeConfig

RANKS = 5


class Accuracy(NamedTuple):
    """In percent of the queries. With five classes or fewer, top5 is 100."""

    top1: float
    top5: float


def score(
    queries: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    bank: Sequence[Float[Tensor, "m d"]],
    bank_labels: Int64[Tensor, " m"],
    classifier: Classifier,
    *,
    classes: int,
    seed: int,
    check_control: Callable[[], None] | None = None,
) -> Accuracy:
    """Accuracy on the queries of all workers; each worker passes its share of them, and the whole bank.

    The rest is `predict`'s.
    """
    predicted = predict(queries, bank, bank_labels, classifier, classes=classes, seed=seed, check_control=check_control)
    return accuracy(predicted, labels)


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
    """The first RANKS classes for each query, best first.

    `bank` holds the features of one or more views of the same images. The first view votes in kNN; a linear
    classifier trains on all of them, with `seed` for the order of its batches and `check_control` after each epoch.
    """
    ranks = min(RANKS, classes)
    if isinstance(classifier, KnnConfig):
        return knn_predict(queries, bank[0], bank_labels, classifier, classes=classes, ranks=ranks)
    probe = train_probe(bank, bank_labels, classes=classes, config=classifier, seed=seed, check_control=check_control)
    with torch.no_grad():
        return probe(queries).topk(ranks).indices


def accuracy(predicted: Int64[Tensor, "n ranks"], labels: Int64[Tensor, " n"]) -> Accuracy:
    """How often the label is the first, and is any, of the classes predicted, best first; over all workers' rows."""
    right = predicted == labels[:, None]
    hits = collective.sum_over_workers(torch.stack([right[:, 0].sum(), right.sum()]))
    total = sum(collective.gather_counts(len(labels)))
    top1, top5 = (100 * hits / total).tolist()
    return Accuracy(top1, top5)
