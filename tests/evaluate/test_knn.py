"""The kNN classifier against a double loop over queries and bank."""

import math

import pytest
import torch

from simclr_ray.evaluate.knn import KnnConfig, knn_predict
from simclr_ray.evaluate.score import accuracy, predict


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


def config(neighbours, temperature=0.1):
    return KnnConfig(neighbours=neighbours, temperature=temperature)


@pytest.mark.parametrize("neighbours", [1, 7, 25])
@pytest.mark.parametrize("chunks", [{}, {"query_chunk": 7, "bank_chunk": 10}, {"query_chunk": 40, "bank_chunk": 90}])
def test_ranks_are_those_of_the_definition(neighbours, chunks):
    queries, bank, labels = case()
    votes = slow_votes(queries, bank, labels, classes=8, neighbours=neighbours, temperature=0.1)
    predicted = knn_predict(queries, bank, labels, config(neighbours), classes=8, ranks=5, **chunks)
    assert predicted.shape == (40, 5)
    for row, ranks in zip(votes, predicted.tolist(), strict=True):
        # by votes: among classes without any the order is free
        assert [row[c] for c in ranks] == pytest.approx(sorted(row, reverse=True)[:5])


def test_a_bank_smaller_than_the_neighbourhood_votes_whole():
    queries, bank, labels = case(m=12)
    everyone = knn_predict(queries, bank, labels, config(12), classes=8, ranks=5)
    more = knn_predict(queries, bank, labels, config(200), classes=8, ranks=5)
    assert torch.equal(everyone[:, 0], more[:, 0])


def test_a_low_temperature_is_the_nearest_neighbour_and_does_not_overflow():
    queries, bank, labels = case()
    nearest = knn_predict(queries, bank, labels, config(1), classes=8, ranks=5)
    cold = knn_predict(queries, bank, labels, config(25, 1e-4), classes=8, ranks=5)
    assert torch.equal(nearest[:, 0], cold[:, 0])


def test_accuracy_counts_first_and_first_five():
    queries, bank, labels = case()
    truth = torch.arange(40) % 8
    votes = slow_votes(queries, bank, labels, classes=8, neighbours=7, temperature=0.1)
    top1 = sum(row[t] == max(row) for row, t in zip(votes, truth.tolist(), strict=True)) / 0.4
    found = accuracy(predict(queries, [bank], labels, config(7), classes=8, seed=0), truth)
    assert found.top1 == pytest.approx(top1)
    assert found.top5 >= found.top1


def test_accuracy_is_in_percent():
    predicted = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 3], [2, 1, 0]])
    found = accuracy(predicted, torch.tensor([0, 0, 0, 1, 2]))
    assert found == pytest.approx((40, 80, (100 / 3 + 0 + 100) / 3))
    assert found.row() == {"top1": 40.0, "top5": 80.0, "mean_per_class": 44.444}


def test_the_mean_per_class_counts_every_class_of_the_queries_once():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 12, (60,), generator=generator) ** 2 % 11  # unequal; some classes never occur
    predicted = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in labels])
    predicted[::2, 0] = labels[::2]
    own = []
    for label in sorted(set(labels.tolist())):
        rows = [row for row in range(60) if labels[row] == label]
        own.append(sum(int(predicted[row, 0]) == label for row in rows) / len(rows))
    assert accuracy(predicted, labels).mean_per_class == pytest.approx(100 * sum(own) / len(own))
