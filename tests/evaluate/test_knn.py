"""The kNN classifier against a double loop over queries and bank."""

import math

import pytest
import torch

from simclr_ray.evaluate.accuracy import accuracy, hits
from simclr_ray.evaluate.knn import knn_accuracy, knn_predict


def slow_votes(queries, bank, labels, *, classes, neighbours, temperature):
    """Votes by class for each query, as the definition has them."""
    votes = []
    for query in queries.tolist():
        scored = []
        for vector, label in zip(bank.tolist(), labels.tolist(), strict=True):
            product = sum(a * b for a, b in zip(query, vector, strict=True))
            scored.append((product / (math.hypot(*query) * math.hypot(*vector)), label))
        row = [0.0] * classes
        for similarity, label in sorted(scored, reverse=True)[:neighbours]:
            row[label] += math.exp(similarity / temperature)
        votes.append(row)
    return votes


def case(n=40, m=90, d=6, classes=8):
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(m, 1, generator=generator) * 9 + 1  # cosine similarity must not see it
    bank = (torch.randn(m, d, generator=generator) + 0.5) * scale
    labels = torch.randint(0, classes, (m,), generator=generator)
    return torch.randn(n, d, generator=generator) + 0.5, bank, labels


@pytest.mark.parametrize("neighbours", [1, 7, 25])
@pytest.mark.parametrize(("query_chunk", "bank_chunk"), [(1024, 32768), (7, 10), (40, 90)])
def test_ranks_are_those_of_the_definition(neighbours, query_chunk, bank_chunk):
    queries, bank, labels = case()
    settings = {"classes": 8, "neighbours": neighbours, "temperature": 0.1}
    votes = slow_votes(queries, bank, labels, **settings)
    predicted = knn_predict(queries, bank, labels, **settings, query_chunk=query_chunk, bank_chunk=bank_chunk)
    assert predicted.shape == (40, 5)
    for row, ranks in zip(votes, predicted.tolist(), strict=True):
        # by votes: among classes without any the order is free
        assert [row[c] for c in ranks] == pytest.approx(sorted(row, reverse=True)[:5])


def test_a_bank_smaller_than_the_neighbourhood_votes_whole():
    queries, bank, labels = case(m=12)
    settings = {"classes": 8, "temperature": 0.1}
    everyone = knn_predict(queries, bank, labels, neighbours=12, **settings)
    more = knn_predict(queries, bank, labels, neighbours=200, **settings)
    assert torch.equal(everyone[:, 0], more[:, 0])


def test_a_low_temperature_is_the_nearest_neighbour_and_does_not_overflow():
    queries, bank, labels = case()
    nearest = knn_predict(queries, bank, labels, classes=8, neighbours=1, temperature=0.1)
    cold = knn_predict(queries, bank, labels, classes=8, neighbours=25, temperature=1e-4)
    assert torch.equal(nearest[:, 0], cold[:, 0])


def test_accuracy_counts_first_and_first_five():
    queries, bank, labels = case()
    settings = {"classes": 8, "neighbours": 7, "temperature": 0.1}
    truth = torch.arange(40) % 8
    votes = slow_votes(queries, bank, labels, **settings)
    top1 = sum(row[t] == max(row) for row, t in zip(votes, truth.tolist(), strict=True)) / 0.4
    found = knn_accuracy(queries, truth, bank, labels, **settings)
    assert found.top1 == pytest.approx(top1)
    assert found.top5 >= found.top1


def test_hits_of_parts_add_up():
    predicted = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 3]])
    labels = torch.tensor([0, 0, 0, 1])
    assert hits(predicted, labels).tolist() == [1, 3]
    assert torch.equal(hits(predicted[:2], labels[:2]) + hits(predicted[2:], labels[2:]), hits(predicted, labels))
    assert accuracy(predicted, labels) == (25, 75)
