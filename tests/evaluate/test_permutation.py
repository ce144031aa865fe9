"""The p-value is the share of all swaps that do as much: counted one by one."""

from __future__ import annotations

from itertools import product
from math import erfc, sqrt

import numpy as np
import pytest

from simclr_ray.evaluate.permutation import permutation_p


def enumerated(ours: np.ndarray, other: np.ndarray) -> float:
    difference = ours.astype(int) - other.astype(int)
    swaps = [abs(sum(sign * one for sign, one in zip(signs, difference, strict=True))) for signs in _signs(len(ours))]
    return sum(swap >= abs(difference.sum()) for swap in swaps) / len(swaps)


def _signs(n: int) -> list[tuple[int, ...]]:
    return list(product((1, -1), repeat=n))


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_share_of_all_swaps_that_do_as_much(seed: int) -> None:
    random = np.random.default_rng(seed)
    ours, other = (random.random(10) < part for part in (0.8, 0.2 + 0.05 * seed))
    assert permutation_p(ours, other) == pytest.approx(enumerated(ours, other))
    assert permutation_p(other, ours) == pytest.approx(enumerated(ours, other))


def test_equal_answers_differ_by_chance_alone() -> None:
    right = np.array([True, False, True])
    assert permutation_p(right, right) == 1
    assert permutation_p(np.zeros(0, bool), np.zeros(0, bool)) == 1


def test_a_large_test_set_neither_overflows_nor_is_inexact() -> None:
    """Half a million images differ; with so many the binomial is a normal distribution."""
    n, lead = 500_000, 1500
    ours = np.arange(n) < (n + lead) // 2
    expected = erfc((lead - 1) / sqrt(n) / sqrt(2))
    assert permutation_p(ours, ~ours) == pytest.approx(expected, rel=1e-3)
    assert permutation_p(np.ones(n, bool), np.zeros(n, bool)) == 0
