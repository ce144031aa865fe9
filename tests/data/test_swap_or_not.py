"""The permutation of an epoch: the published shuffle, a bijection for every size, and as even as a drawn one."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from simclr_ray.data import philox
from simclr_ray.data.swap_or_not import ROUNDS, swap_or_not


def permuted(count: int, seed: int, epoch: int) -> list[int]:
    return [swap_or_not(index, count, seed, epoch) for index in range(count)]


def shuffled_cards(count: int, seed: int, epoch: int) -> list[int]:
    """The paper's shuffle of a whole deck: where each card is after all rounds."""
    deck = list(range(count))
    for r in range(ROUNDS):
        high, low, _, _ = (int(word) for word in philox.block(seed, epoch, r, philox.ORDER, 0))
        key = (high * 2**32 + low) % count
        for place in range(count):
            partner = (key - place) % count
            if place < partner and int(philox.block(seed, epoch, partner, philox.ORDER, 1 + r)[0]) % 2:
                deck[place], deck[partner] = deck[partner], deck[place]
    return [deck.index(card) for card in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_it_equals_the_published_shuffle(count: int) -> None:
    assert permuted(count, 2**62 + 3, 17) == shuffled_cards(count, 2**62 + 3, 17)


def test_every_size_gives_a_bijection() -> None:
    for count in [*range(1, 201), 2**16, 100_003]:
        assert sorted(permuted(count, 5, count % 7)) == list(range(count)), count


def test_it_is_pinned() -> None:
    """A run resumed by a later version must continue in the same order."""
    assert permuted(10, 3, 0) == PINNED_10
    assert [swap_or_not(index, 2**61, 2**63 - 1, 2**32 - 1) for index in (0, 2**61 - 1)] == PINNED_LARGE


PINNED_10 = [2, 0, 1, 7, 5, 8, 4, 6, 3, 9]
PINNED_LARGE = [846964376033119220, 235590180966666102]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("varied", ["seed", "epoch"])
def test_all_permutations_of_a_few_slices_are_equally_likely(count: int, varied: str) -> None:
    number = {order: i for i, order in enumerate(permutations(range(count)))}
    draws = [permuted(count, *((i, 0) if varied == "seed" else (0, i))) for i in range(50 * len(number))]
    seen = np.bincount([number[tuple(order)] for order in draws], minlength=len(number))
    assert chi_square_in_deviations(seen, 50.0, len(number) - 1) < 4


@pytest.mark.parametrize("count", [8, 50])
def test_every_slice_is_equally_likely_everywhere(count: int) -> None:
    seen = np.zeros((count, count))
    for epoch in range(500):
        seen[np.arange(count), permuted(count, 1, epoch)] += 1
    assert abs(chi_square_in_deviations(seen, 500 / count, (count - 1) ** 2)) < 4


def chi_square_in_deviations(seen: np.ndarray, expected: float, freedom: int) -> float:
    """By how many of its standard deviations chi-square is above its mean."""
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    return (chi_square - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("varied", ["seed", "epoch"])
def test_consecutive_epochs_and_seeds_are_independent(varied: str) -> None:
    orders = np.array([permuted(50, *((i, 3) if varied == "seed" else (3, i))) for i in range(401)])
    agreements = (orders[1:] == orders[:-1]).sum(axis=1)
    assert abs(agreements.mean() - 1) < 4 / 20  # one is expected, with deviation 1
    ranks = (orders - 24.5) / orders[0].std()
    correlations = (ranks[1:] * ranks[:-1]).mean(axis=1)
    assert abs(correlations.mean()) < 4 / 7 / 20  # deviation 1 / sqrt(49)
    assert abs((49 * correlations**2).mean() - 1) < 4 * 2**0.5 / 20


def test_neighbouring_slices_are_not_kept_together() -> None:
    steps = np.concatenate([np.diff(permuted(500, 9, epoch)) for epoch in range(200)])
    for distance in (
        1,
        2,
        3,
        250,
    ):  # 2 (n - d) / n pairs of neighbours are expected in an epoch, with as great a variance
        expected = 200 * 2 * (500 - distance) / 500
        assert abs((np.abs(steps) == distance).sum() - expected) < 4 * expected**0.5, distance
