"""Blocks of any sizes give the same batches, and pixels are normalised into the encoder's input."""

from __future__ import annotations

import threading
from collections.abc import Generator
from itertools import pairwise
from time import monotonic, sleep

import numpy as np
import pytest
import torch

from simclr_ray.train import batch as batch_module
from simclr_ray.train.batch import CPU, Batch, batches, channel_scale, normalise, on_device
from small_runs import ids_of


def blocks(sizes: list[int]) -> list[dict[str, np.ndarray]]:
    rows = sum(sizes)
    ids = np.arange(rows)
    views = (ids[:, None, None, None, None] + np.zeros((1, 2, 2, 2, 3), np.int64)).astype(np.uint8)
    edges = np.cumsum([0, *sizes])
    columns = {"views": views, "id": ids, "bad": ids % 7 == 0, "labels": ids % 5}
    return [{name: column[a:b] for name, column in columns.items()} for a, b in pairwise(edges)]


@pytest.mark.parametrize("staged_rows", [None, 2, 4, 6])
@pytest.mark.parametrize("sizes", [[24], [6, 6, 6, 6], [5, 7, 12], [1] * 24, [23, 1]])
def test_any_blocks_give_the_same_batches(sizes: list[int], staged_rows: int | None) -> None:
    """`staged_rows`: as for a GPU, by way of memory for a part of the rows."""
    got = list(batches(blocks(sizes), 6, first_step=10, staged_rows=staged_rows))
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


def test_staged_rows_take_host_memory_for_a_part_of_a_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, empty = [], batch_module._empty

    def noted(block: dict, rows: int, device: torch.device, *, pin: bool = False) -> dict[str, torch.Tensor]:
        made.append((rows, device.type, pin))
        return empty(block, rows, CPU)

    monkeypatch.setattr(batch_module, "_empty", noted)
    next(batches(blocks([24]), 24, 0, torch.device("cuda"), staged_rows=10))
    assert made == [(24, "cuda", False), (10, "cpu", True), (10, "cpu", True), (4, "cpu", True)]


class Source:
    """`count` batches, and how many were made on which threads; then it waits, and fails."""

    def __init__(self, count: int, waits: threading.Event | None = None) -> None:
        self.made, self.threads, self.closed = 0, set[str](), threading.Event()
        self._count, self._waits = count, waits

    def __call__(self) -> Generator[Batch]:
        try:
            for batch in batches(blocks([6] * self._count), 6, first_step=0):
                self.threads.add(threading.current_thread().name)
                self.made += 1
                yield batch
            if self._waits:
                self._waits.wait()
            raise ValueError("a bad disk")
        finally:
            self.closed.set()


def test_batches_are_made_one_step_ahead_on_a_thread_and_errors_come_in_their_turn() -> None:
    source, seen = Source(4), []
    stream = on_device(source(), CPU)
    for number in range(4):
        seen.append(next(stream))
        ahead, start = min(number + 2, 4), monotonic()
        while source.made < ahead and monotonic() < start + 5:
            sleep(0.001)  # the next one comes without being asked for
        assert source.made == ahead
    with pytest.raises(ValueError, match="a bad disk"):
        next(stream)
    assert ids_of(seen) == [list(range(6 * k, 6 * k + 6)) for k in range(4)]
    assert threading.main_thread().name not in source.threads
    assert len(source.threads) == 1


def test_an_end_closes_the_source_and_does_not_wait_for_data_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    early = Source(4)
    stream = on_device(early(), CPU)
    next(stream)
    stream.close()
    assert early.closed.is_set()
    monkeypatch.setattr(batch_module, "CLOSE_S", 0.1)
    never = threading.Event()
    stuck = Source(1, waits=never)
    stream, start = on_device(stuck(), CPU), monotonic()
    next(stream)
    stream.close()
    assert monotonic() - start < 5
    assert not stuck.closed.is_set()
    never.set()
    assert stuck.closed.wait(5)


def test_normalise_is_the_textbook_formula_without_a_copy() -> None:
    pixels = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    got = normalise(pixels, *channel_scale(mean, std, torch.float64, pixels.device))
    plain = (pixels.permute(0, 3, 1, 2).double() / 255 - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(
        std
    ).double().view(1, 3, 1, 1)
    torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)
