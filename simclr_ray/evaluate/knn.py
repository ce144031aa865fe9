"""Weighted nearest-neighbour classification of features (Wu et al. 2018): no training, no parameters to tune."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

# 1024 x 32768 float32 similarities are 128 MiB, whatever the size of the bank.
QUERY_CHUNK, BANK_CHUNK = 1024, 32768


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    neighbours: int
    """How many vote: all, if the bank has fewer."""
    temperature: float
    """They vote with weight exp(cosine similarity / temperature)."""


def knn_predict(
    queries: Float[Tensor, "n d"],
    bank: Float[Tensor, "m d"],
    bank_labels: Int64[Tensor, " m"],
    config: KnnConfig,
    *,
    classes: int,
    ranks: int,
    query_chunk: int = QUERY_CHUNK,
    bank_chunk: int = BANK_CHUNK,
) -> Int64[Tensor, "n ranks"]:
    """The first `ranks` classes for each query, best first; on the device of the features.

    The images of the bank with the highest cosine similarity to the query vote for their labels.
    """
    bank = F.normalize(bank, dim=1)
    predicted = []
    for rows in F.normalize(queries, dim=1).split(query_chunk):
        similarity, index = nearest_rows(rows, bank, config.neighbours, bank_chunk)
        # softmax is exp(s / temperature) up to a factor for each query, and cannot overflow. float64, so that the
        # order in which a GPU adds the votes does not decide between classes.
        weight = (similarity.double() / config.temperature).softmax(dim=1)
        votes = weight.new_zeros(len(rows), classes).scatter_add_(1, bank_labels[index], weight)
        predicted.append(votes.topk(ranks).indices)
    return torch.cat(predicted)


def nearest_rows(
    rows: Float[Tensor, "q d"], bank: Float[Tensor, "m d"], neighbours: int, bank_chunk: int = BANK_CHUNK
) -> tuple[Float[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The largest inner products, and the rows of the bank that they are with."""
    best, index = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    for start in range(0, len(bank), bank_chunk):
        products = rows @ bank[start : start + bank_chunk].T
        value, place = products.topk(min(neighbours, products.shape[1]))
        best, index = torch.cat([best, value], dim=1), torch.cat([index, place + start], dim=1)
        best, order = best.topk(min(neighbours, best.shape[1]))
        index = index.gather(1, order)
    return best, index
