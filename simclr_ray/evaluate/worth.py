"""Was it worth it: how a run's encoder and others classify the same images, and whether the difference is luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch.nn import functional as F

from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.compare import Candidate, Scoring, best_prediction, counts_of, features_of
from simclr_ray.evaluate.features import Features
from simclr_ray.evaluate.images import centered
from simclr_ray.evaluate.knn import nearest_rows
from simclr_ray.evaluate.permutation import permutation_p
from simclr_ray.evaluate.score import Accuracy, accuracy
from simclr_ray.storage.run_folder import Row

POINTS = 2000
"""Queries whose features are kept for a map. A dataset is shuffled when it is prepared, so the first are a sample."""
SHOWN, NEIGHBOURS = 6, 5
"""Queries whose neighbours in the bank are kept, and how many."""


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What came of one candidate. The first axis of all arrays is that of the queries, in order."""

    name: str
    accuracies: dict[str, Accuracy]
    """By scoring."""
    right: dict[str, Bool[np.ndarray, " n"]]
    """By scoring: whether the first class was the label."""
    points: Float[np.ndarray, "p d"]
    """Features of the first POINTS."""
    labels: Int64[np.ndarray, " p"]
    shown: Int64[np.ndarray, " q"]
    """Ids of the first SHOWN."""
    nearest: Int64[np.ndarray, "q k"]
    """The ids of their nearest images in the bank, best first."""
    similarities: Float[np.ndarray, "q k"]
    """Cosines of those."""
    counts: Row
    """train_rows, test_rows and bad, as a row of evaluation.jsonl has them."""


def classify(
    candidate: Candidate, size: int, scorings: Mapping[str, Scoring], bank: Dataset, queries: Dataset
) -> Classified:
    """The candidate by every scoring, on centre views of side `size`; its features are computed once."""
    view = centered(size)
    bank_features, query_features = (features_of(candidate, dataset, view) for dataset in (bank, queries))
    accuracies, right = {}, {}
    for name, scoring in scorings.items():
        predicted, _ = best_prediction(candidate, scoring, query_features, [bank_features])
        accuracies[name] = accuracy(predicted, query_features.labels)
        right[name] = (predicted[:, 0] == query_features.labels).cpu().numpy()
    similarities, nearest = _neighbours(query_features, bank_features)
    return Classified(
        name=candidate.name,
        accuracies=accuracies,
        right=right,
        points=query_features.h[:POINTS].cpu().numpy(),
        labels=query_features.labels[:POINTS].cpu().numpy(),
        shown=query_features.ids[:SHOWN].cpu().numpy(),
        nearest=nearest,
        similarities=similarities,
        counts=counts_of(bank_features, query_features),
    )


def _neighbours(queries: Features, bank: Features) -> tuple[Float[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    rows = F.normalize(queries.h[:SHOWN], dim=1)
    similarity, index = nearest_rows(rows, F.normalize(bank.h, dim=1), NEIGHBOURS)
    return similarity.cpu().numpy(), bank.ids[index].cpu().numpy()


def results(found: Sequence[Classified], scoring: str) -> dict[str, dict[str, float]]:
    """The accuracies by candidate, as `compare` gives them; of all but the first, ours, also p: the permutation test's
    of the difference to it.
    """
    ours = found[0].right[scoring]
    rows = {}
    for one in found:
        rows[one.name] = one.accuracies[scoring].row()
        if one is not found[0]:
            rows[one.name]["p"] = permutation_p(ours, one.right[scoring])
    return rows
