"""Blocks of any sizes give the same batches, and pixels are normalised into the encoder's input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from simclr_ray.train.batch import batches, channel_scale, normalise


def blocks(sizes: list[int]) -> list[dict[str, np.ndarray]]:
    rows = sum(sizes)
    ids = np.arange(rows)
    views = (ids[:, None, None, None, None] + np.zeros((1, 2, 2, 2, 3), np.int64)).astype(np.uint8)
    edges = np.cumsum([0, *sizes])
    columns = {"views": views, "id": ids, "bad": ids % 7 == 0, "labels": ids % 5}
    return [{name: column[a:b] for name, column in columns.items()} for a, b in pairwise(edges)]


@pytest.mark.parametrize("sizes", [[24], [6, 6, 6, 6], [5, 7, 12], [1] * 24, [23, 1]])
def test_any_blocks_give_the_same_batches(sizes: list[int]) -> None:
    got = list(batches(blocks(sizes), 6, first_step=10))
    assert [batch.step for batch in got] == [10, 11, 12, 13]
    for k, batch in enumerate(got):
        ids = np.arange(6 * k, 6 * k + 6)
        np.testing.assert_array_equal(batch.ids, ids)
        np.testing.assert_array_equal(batch.bad, ids % 7 == 0)
        np.testing.assert_array_equal(batch.views[:, 1, 0, 0, 2].numpy(), ids)
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.labels.numpy(), ids % 5)


def test_a_stream_that_ends_inside_a_step_fails_an_assertion() -> None:
    with pytest.raises(AssertionError, match="inside a step"):
        list(batches(blocks([7]), 6, first_step=0))


def test_normalise_is_the_textbook_formula_without_a_copy() -> None:
    pixels = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    got = normalise(pixels, *channel_scale(mean, std, torch.float64, pixels.device))
    plain = (pixels.permute(0, 3, 1, 2).double() / 255 - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(
        std
    ).double().view(1, 3, 1, 1)
    torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)
