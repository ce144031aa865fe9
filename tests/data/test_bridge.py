"""The hand-over from the training process to the stream: every row once, in order, whenever the stream is ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import sleep
from typing import Any

import numpy as np
import pytest

from simclr_ray.config import BadInput
from simclr_ray.data import bridge
from simclr_ray.data.bridge import bridged

ROWS, PER_BLOCK, SLICES = 4, 3, 400


def load(positions: np.ndarray) -> dict[str, np.ndarray]:
    return {"id": (positions[:, None] * ROWS + np.arange(ROWS)).reshape(-1)}


class Stream:
    """Blocks of its own length, the first after `ready` is set."""

    def __init__(self, block_slices: int) -> None:
        self.ready, self.block_slices = threading.Event(), block_slices
        self.first_position: int | None = None
        self.closed = False

    def __call__(self, positions: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        self.first_position = int(positions[0])
        self.ready.wait(20)
        try:
            for start in range(0, len(positions), self.block_slices):
                yield load(positions[start : start + self.block_slices])
        finally:
            self.closed = True


def ids_of(blocks: Iterator[dict[str, np.ndarray]], stream: Stream, ready_after: int) -> list[int]:
    found: list[int] = []
    for number, block in enumerate(blocks):
        found += block["id"].tolist()
        if number == ready_after:
            stream.ready.set()
    return found


def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        sleep(0.05)
    raise AssertionError("it did not happen")


def slow_load(positions: np.ndarray) -> dict[str, np.ndarray]:
    sleep(0.005)
    return load(positions)


def start(stream: Any, slices: int = SLICES, load: Any = load) -> Iterator[dict[str, np.ndarray]]:
    return bridged(np.arange(7, 7 + slices), load, stream, block_slices=PER_BLOCK, slice_rows=ROWS)


@pytest.mark.parametrize(("open_s", "in_use"), [(60.0, 6), (0.0, 1)])
def test_the_stream_is_opened_after_so_many_blocks_or_so_long(
    open_s: float, in_use: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "OPEN_S", open_s)
    opened_at: list[int] = []
    seen: list[int] = []

    def stream(positions: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        opened_at.append(len(seen))
        yield load(positions)

    positions = np.arange(SLICES)
    blocks = bridged(positions, slow_load, stream, block_slices=PER_BLOCK, slice_rows=ROWS, blocks_before=6)
    for block in blocks:
        seen += [len(block["id"])]
        sleep(0.02)
        if opened_at:
            break
    blocks.close()  # type: ignore[attr-defined]
    assert in_use <= opened_at[0] <= in_use + 1  # it is opened on a thread


class FailingToOpen(Stream):
    """Its first openings fail, as where a part of Ray Data was on a node that is gone."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__(PER_BLOCK)
        self.ready.set()
        self.error, self.times, self.opened = error, times, 0

    def __call__(self, positions: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        self.opened += 1
        if self.opened <= self.times:
            raise self.error
        yield from super().__call__(positions)


def test_a_stream_that_fails_to_open_is_opened_again() -> None:
    stream = FailingToOpen(RuntimeError("no such actor"), times=2)
    assert ids_of(start(stream, load=slow_load), stream, 0) == list(range(7 * ROWS, (7 + SLICES) * ROWS))
    assert stream.opened == 3


@pytest.mark.parametrize(("error", "openings"), [(RuntimeError("no such actor"), 3), (BadInput("no such data"), 1)])
def test_one_that_cannot_be_opened_is_an_error(error: Exception, openings: int) -> None:
    stream = FailingToOpen(error, times=9)
    with pytest.raises(type(error), match="no such"):
        ids_of(start(stream, load=slow_load), stream, 0)
    assert stream.opened == openings


@pytest.mark.parametrize("block_slices", [PER_BLOCK, 5])
@pytest.mark.parametrize("ready_after", [0, 10, 40, 1000])
def test_every_row_comes_once_and_in_order(block_slices: int, ready_after: int) -> None:
    stream = Stream(block_slices)
    assert ids_of(start(stream), stream, ready_after) == list(range(7 * ROWS, (7 + SLICES) * ROWS))
    assert stream.first_position == 7 + PER_BLOCK * (1 + bridge.MOST_BLOCKS)
    stream.ready.set()


def test_the_stream_begins_fewer_blocks_ahead_if_loading_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "_timed", lambda load, positions: (load(positions), 2.5))
    stream = Stream(PER_BLOCK)
    assert len(ids_of(start(stream), stream, 0)) == SLICES * ROWS
    assert stream.first_position == 7 + PER_BLOCK * 3


def test_the_stream_is_not_started_before_the_first_block_is_used_nor_for_a_few_blocks() -> None:
    stream = Stream(PER_BLOCK)
    blocks = start(stream)
    next(blocks)
    assert stream.first_position is None
    assert ids_of(blocks, stream, 0)[-1] == (7 + SLICES) * ROWS - 1
    short = Stream(PER_BLOCK)
    assert len(ids_of(start(short, 20), short, 0)) == 20 * ROWS
    assert short.first_position is None


def test_errors_of_loading_and_of_the_stream_are_raised() -> None:
    def failing(positions: np.ndarray) -> Any:
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        list(bridged(np.arange(9), failing, Stream(3), block_slices=3, slice_rows=ROWS))
    with pytest.raises(OSError, match="unreadable"):
        list(start(failing, load=slow_load))


def test_an_unused_stream_is_closed() -> None:
    stream = Stream(PER_BLOCK)
    blocks = start(stream)
    for _ in range(3):
        next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    stream.ready.set()
    until(lambda: stream.closed)


class Stalling(Stream):
    """The fourth block of the first two openings does not come before `woken` is set."""

    def __init__(self) -> None:
        super().__init__(PER_BLOCK)
        self.opened, self.ended, self.woken = 0, 0, threading.Event()

    def __call__(self, positions: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        self.opened += 1
        try:
            for start in range(0, len(positions), PER_BLOCK):
                if start == 3 * PER_BLOCK and self.opened <= 2:
                    self.woken.wait(20)
                yield load(positions[start : start + PER_BLOCK])
        finally:
            self.ended += 1


def test_a_stream_that_stalls_is_left_for_another_and_closed_when_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "STALLED_S", 0.1)
    stream = Stalling()
    assert ids_of(start(stream, load=slow_load), stream, 0) == list(range(7 * ROWS, (7 + SLICES) * ROWS))
    assert (stream.opened, stream.ended) == (3, 1)
    stream.woken.set()
    until(lambda: stream.ended == 3)
