"""The order of samples: the content of every batch, for any number of workers."""

from __future__ import annotations

from itertools import chain, product
from time import monotonic

import numpy as np
import pytest

from simclr_ray.config import BadInput
from simclr_ray.data.order import Order
from simclr_ray.data.swap_or_not import swap_or_not


def order(**changes: int) -> Order:
    return Order(**({"seed": 3, "rows": 1000, "slice_rows": 8, "global_batch": 96, "pass_size": 96} | changes))


def samples(order: Order, start: int, stop: int, rank: int, workers: int) -> list[list[int]]:
    """Sample ids of each step of a worker, by way of its positions."""
    rows = order.rows_per_pass(workers)[rank] * (order.global_batch // order.pass_size)
    ids = []
    for position in order.worker_positions(start, stop, rank, workers):
        first = order.slice_at(int(position))[1] * order.slice_rows
        ids += range(first, first + order.slice_rows)
    return [ids[i : i + rows] for i in range(0, len(ids), rows)]


@pytest.mark.parametrize(("workers", "pass_size"), list(product([1, 2, 3, 5, 12], [96, 48])))
def test_the_global_batch_does_not_depend_on_the_workers(workers: int, pass_size: int) -> None:
    if workers > pass_size // 8:
        pytest.skip("more workers than slices in a pass")
    o = order(pass_size=pass_size)
    alone = samples(o, 0, 25, 0, 1)
    shared = [samples(o, 0, 25, rank, workers) for rank in range(workers)]
    passes = 96 // pass_size
    for step in range(25):
        for m in range(passes):
            together = []
            for rank in range(workers):
                rows = o.rows_per_pass(workers)[rank]
                together += shared[rank][step][m * rows : (m + 1) * rows]
            assert sorted(together) == sorted(alone[step][m * pass_size : (m + 1) * pass_size])


def test_an_epoch_repeats_no_sample_and_drops_another_tail_each_time() -> None:
    o = order()
    assert (o.slices, o.steps_per_epoch) == (125, 10)
    epochs = [list(chain(*samples(o, 10 * e, 10 * e + 10, 0, 1))) for e in range(3)]
    assert all(len(set(ids)) == len(ids) == 960 for ids in epochs)
    left_out = [set(range(1000)) - set(ids) for ids in epochs]
    assert left_out[0] != left_out[1] != left_out[2]


def test_a_stream_from_a_middle_step_is_the_rest_of_the_whole() -> None:
    o = order(pass_size=48)
    whole = o.worker_positions(0, 40, 1, 3)
    per_step = len(whole) // 40
    np.testing.assert_array_equal(o.worker_positions(17, 40, 1, 3), whole[17 * per_step :])


@pytest.mark.parametrize("workers", [1, 3, 5])
def test_positions_are_those_of_a_loop_however_they_are_taken(workers: int) -> None:
    o = order(pass_size=48)
    for rank in range(workers):
        slow = [p for step in range(5, 40) for p in range(12 * step, 12 * (step + 1)) if (p % 6 - rank) % workers == 0]
        positions = o.worker_positions(5, 40, rank, workers)
        assert len(positions) == len(slow)
        assert list(positions) == np.asarray(positions).tolist() == slow
        assert list(positions[3:][4:9]) == np.asarray(positions[7:12]).tolist() == slow[7:12]


def test_each_epoch_is_another_permutation_of_the_slices() -> None:
    o = order()
    assert [o.slice_at(position) for position in (0, 119, 120)] == [
        (0, swap_or_not(0, 125, 3, 0)),
        (0, swap_or_not(119, 125, 3, 0)),
        (1, swap_or_not(0, 125, 3, 1)),
    ]


def test_the_order_is_pinned() -> None:
    """A run resumed by a later version must continue in the same order."""
    assert [order().slice_at(position)[1] for position in range(8)] == PINNED_0
    assert [order().slice_at(120 + position)[1] for position in range(8)] == PINNED_1


PINNED_0 = [19, 118, 94, 36, 86, 63, 108, 33]
PINNED_1 = [101, 12, 95, 74, 85, 119, 99, 70]


def test_a_large_dataset_takes_neither_time_nor_memory() -> None:
    """An array of all slices would not fit into memory; one made for each epoch would take far longer."""
    o = order(rows=10**15)
    per_epoch = o.steps_per_epoch * o.slices_per_batch
    o.slice_at(0)  # compiles
    start = monotonic()
    for epoch in range(200):
        assert o.slice_at(epoch * per_epoch)[0] == epoch
    assert monotonic() - start < 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"global_batch": 100, "pass_size": 100}, "global_batch 100 is no multiple"),
        ({"pass_size": 12}, "pass_size 12 is no multiple"),
        ({"pass_size": 40}, "pass_size 40 does not divide"),
        ({"rows": 90}, "more than the data holds"),
    ],
)
def test_batch_pass_and_slices_that_do_not_fit_are_bad_input(changes: dict[str, int], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        order(**changes)


def test_more_workers_than_slices_in_a_pass_are_bad_input() -> None:
    with pytest.raises(BadInput, match="set resources.max_workers to at most 6, or raise train.pass_size"):
        order(pass_size=48).rows_per_pass(7)
