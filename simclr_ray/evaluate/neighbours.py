"""The images whose features are nearest to a query's: exact, over embeddings of any size."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from simclr_ray.config import BadInput
from simclr_ray.evaluate.embeddings import Embeddings


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    id: int
    similarity: float
    """Cosine similarity to the query."""
    path: str | None
    label: int | None


def nearest(
    embeddings: Embeddings, query: Float[np.ndarray, " d"], neighbours: int, *, without: int | None = None
) -> list[Neighbour]:
    """The most similar images but for the id `without`, best first, equal ones by id. A part is in memory at a time."""
    best: list[Neighbour] = []
    unit = _normalised(query[None])[0]
    for columns, features in embeddings.read():
        similarity = _normalised(features) @ unit
        order = np.lexsort((columns["id"].to_numpy(), -similarity))[: neighbours + 1]  # one may be left out
        rows = columns.take(order).to_pylist()
        found = [Neighbour(similarity=float(one), **row) for one, row in zip(similarity[order], rows, strict=True)]
        candidates = best + [neighbour for neighbour in found if neighbour.id != without]
        best = heapq.nsmallest(neighbours, candidates, key=lambda one: (-one.similarity, one.id))
    return best


def feature_of(embeddings: Embeddings, image: int) -> Float[np.ndarray, " d"]:
    """The feature of the image with this id. Raises BadInput if there is none."""
    if not 0 <= image < embeddings.rows:
        raise BadInput(f"there is no image {image}: {embeddings.location} has ids 0 to {embeddings.rows - 1}")
    columns, features = embeddings.read_part(image // embeddings.part_rows)
    found = np.flatnonzero(columns["id"].to_numpy() == image)
    if not len(found):
        raise BadInput(f"image {image} could not be decoded and has no feature")
    return features[found[0]]


def _normalised(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
