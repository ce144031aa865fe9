"""Weighted nearest-neighbour classification of features (Wu et al. 2018): no training, no parameters to tune."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from simclr_ray.evaluate.accuracy import Accuracy, accuracy, ranked

# 1024 x 32768 float32 similarities are 128 MiB, whatever the size of the bank.
QUERY_CHUNK, BANK_CHUNK = 1024, 32768


def knn_accuracy(
    queries: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    bank: Float[Tensor, "m d"],
    bank_labels: Int64[Tensor, " m"],
    *,
    classes: int,
    neighbours: int,
    temperature: float,
) -> Accuracy:
    """Top-1 and top-5 accuracy of `knn_predict` on `queries`."""
    predicted = knn_predict(queries, bank, bank_labels, classes=classes, neighbours=neighbours, temperature=temperature)
    return accuracy(predicted, labels)


def knn_predict(
    queries: Float[Tensor, "n d"],
    bank: Float[Tensor, "m d"],
    bank_labels: Int64[Tensor, " m"],
    *,
    classes: int,
    neighbours: int,
    temperature: float,
    query_chunk: int = QUERY_CHUNK,
    bank_chunk: int = BANK_CHUNK,
) -> Int64[Tensor, "n ranks"]:
    """Up to five classes for each query, best first; on the device of the features.

    The `neighbours` (all, if the bank has fewer) of highest cosine similarity s vote for their labels with weight
    exp(s / temperature).
    """
    bank = F.normalize(bank, dim=1)
    predicted = []
    for rows in F.normalize(queries, dim=1).split(query_chunk):
        similarity, index = _nearest(rows, bank, neighbours, bank_chunk)
        # softmax is exp(s / temperature) up to a factor for each query, and cannot overflow. float64, so that the
        # order in which a GPU adds the votes does not decide between classes.
        weight = (similarity.double() / temperature).softmax(dim=1)
        votes = weight.new_zeros(len(rows), classes).scatter_add_(1, bank_labels[index], weight)
        predicted.append(ranked(votes))
    return torch.cat(predicted)


def _nearest(
    rows: Float[Tensor, "q d"], bank: Float[Tensor, "m d"], neighbours: int, bank_chunk: int
) -> tuple[Float[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The largest inner products and where in the bank they are."""
    best, index = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    for start in range(0, len(bank), bank_chunk):
        products = rows @ bank[start : start + bank_chunk].T
        value, place = products.topk(min(neighbours, products.shape[1]))
        best, index = torch.cat([best, value], dim=1), torch.cat([index, place + start], dim=1)
        best, order = best.topk(min(neighbours, best.shape[1]))
        index = index.gather(1, order)
    return best, index
