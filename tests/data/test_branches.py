"""Which branches a view keeps: equal to a slow reference, with the rates asked for, and independent of each other."""

from __future__ import annotations

import itertools

import numpy as np

from simclr_ray.config.science import MOST_LOCAL_VIEWS
from simclr_ray.data.branches import CALLS, kept_branches
from simclr_ray.data.philox import BRANCHES, LOCAL, block

RATES = [0.02, 0.1, 0.3, 0.9]


def test_a_mask_is_a_function_of_seed_epoch_id_view_and_layer_alone() -> None:
    """Each bit against its own Philox word; whatever else is drawn in the same call, and in whatever order."""
    ids, views = np.array([7, 0, 2**40 + 1, 3]), [4, 0, 1]
    for seed, epoch in itertools.product((0, 2**62 + 3), (0, 17)):
        kept = kept_branches(seed, epoch, ids, views, RATES)
        assert kept.shape == (len(ids), len(views), len(RATES), CALLS)
        for i, j, layer, call in np.ndindex(kept.shape):
            word = int(block(seed, epoch, int(ids[i]), BRANCHES + views[j], layer)[call])
            assert kept[i, j, layer, call] == (word / 2**32 >= RATES[layer])
        alone = kept_branches(seed, epoch, ids[2:3], [views[1]], RATES[:2])
        assert np.array_equal(alone, kept[2:3, 1:2, :2])


def test_masks_are_pinned() -> None:
    """They must never change: a resumed run would be another one."""
    kept = kept_branches(1234, 5, np.array([6, 7]), [0, 1], [0.5, 0.5])
    assert np.packbits(kept).tolist() == [149, 121, 199, 99]


def test_rates_are_those_asked_for_and_draws_are_independent() -> None:
    """Within five standard deviations: each mean, and each correlation of two layers, calls, views, epochs or seeds, of
    neighbours in the dataset, and with itself shifted."""
    ids, views, count = np.arange(20_000), [0, 1, 2], 20_000
    drawn = {key: kept_branches(*key, ids, views, RATES) for key in ((3, 0), (3, 1), (4, 0))}
    for kept in drawn.values():
        deviation = np.sqrt(np.array(RATES) * (1 - np.array(RATES)) / count)
        assert (np.abs(1 - kept.mean(axis=0) - np.array(RATES)[:, None]) < 5 * deviation[:, None]).all()
    columns = np.concatenate([kept.reshape(count, -1) for kept in drawn.values()], axis=1)
    columns = np.concatenate([columns, np.roll(columns, 1, axis=0)], axis=1)
    correlations = np.corrcoef(columns.T)
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 5.5 / np.sqrt(count)  # of 41,000 pairs
    assert kept_branches(0, 0, ids[:9], [0], [0.0]).all()


def test_the_domains_of_all_views_are_their_own() -> None:
    """Those of the augmentation end below, and eight bits hold the last one."""
    assert LOCAL + MOST_LOCAL_VIEWS <= BRANCHES
    assert BRANCHES + 2 + MOST_LOCAL_VIEWS <= 2**8
