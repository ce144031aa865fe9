"""Loads the first blocks of a stream in the training process, while the stream's data workers start, for seconds.

Loading is a pure function of positions, so the blocks are bitwise the same from any process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from math import ceil
from time import monotonic
from typing import NamedTuple

import numpy as np

from simclr_ray.config import BadInput
from simclr_ray.data.order import Positions

Block = dict[str, np.ndarray]
"""views uint8 (n, 2, size, size, 3), id int64 (n,), bad bool (n,): rows of whole slices, in the worker's order."""

STREAM_START_S = 5.0
OPEN_S = 1.0
"""The stream's processes import for a second or more, on CPUs that the first step is to have alone; so long at most."""
OPENINGS = 3
STALLED_S = 10.0
"""As long as the coordinator waits for a worker that is not heard of (membership/generation.py), and twice as long each
time: Ray takes about a minute to give up a node that does not answer."""
MOST_BLOCKS = 16
"""The stream begins at most so many blocks ahead, however fast this process loads: it does so with one core."""


def bridged(
    positions: Positions,
    load: Callable[[np.ndarray], Block],
    stream: Callable[[Positions], Iterator[Block]],
    *,
    block_slices: int,
    slice_rows: int,
    blocks_before: int = 1,
) -> Iterator[Block]:
    """The blocks of `positions` in order: the first by `load`, on a thread; the others from `stream`.

    The stream is opened once `blocks_before` are in use, or after OPEN_S, at a position that `load` reaches at about
    the time of its first block. If that comes later, `load` continues, and the rows that the stream repeats are
    dropped. A stream that fails to open, as where a part of it was on a node that is just lost, is opened again,
    OPENINGS times in all. One that stalls, as where a data worker is frozen or beyond a broken network, is left, and
    another one bridged.
    """
    done, patience_s = 0, STALLED_S
    while done < len(positions):
        for block in _bridged_once(positions[done:], load, stream, block_slices, slice_rows, blocks_before, patience_s):
            yield block
            done += len(block["id"]) // slice_rows
        patience_s, blocks_before = 2 * patience_s, 1


def _bridged_once(
    positions: Positions,
    load: Callable[[np.ndarray], Block],
    stream: Callable[[Positions], Iterator[Block]],
    block_slices: int,
    slice_rows: int,
    blocks_before: int,
    patience_s: float,
) -> Iterator[Block]:
    """To the end, or until a block of the stream does not come within `patience_s`."""
    total, in_use, may_open = len(positions), 0, monotonic() + OPEN_S
    done, handover, failed = 0, total, 0
    opened: Future[_Opened] | None = None
    with one_thread("first-blocks") as own, one_thread("open-stream") as opener:
        try:
            ahead = own.submit(_timed, load, np.asarray(positions[:block_slices]))
            while done < total:
                block, _ = ahead.result()
                done = min(done + block_slices, total)
                if opened and opened.done() and _may_open_again(opened) and failed + 1 < OPENINGS:
                    opened, failed = None, failed + 1
                if opened and done >= handover and opened.done():
                    yield block
                    blocks, opened = _until_stalled(opened.result(), patience_s), None
                    yield from _after((done - handover) * slice_rows, blocks)
                    return
                if done < total:
                    ahead = own.submit(_timed, load, np.asarray(positions[done : done + block_slices]))
                yield block
                in_use += 1
                if opened is None and done < total and (in_use >= blocks_before or monotonic() >= may_open):
                    blocks_more = min(MOST_BLOCKS, ceil(STREAM_START_S / ahead.result()[1]))
                    handover = min(total, done + blocks_more * block_slices)
                    if handover < total:
                        opened = opener.submit(_open, stream, positions[handover:])
        finally:
            if opened:
                opened.add_done_callback(_close)  # in case the consumer has stopped before using it


@contextmanager
def one_thread(name: str) -> Iterator[ThreadPoolExecutor]:
    """A thread that is not joined at the end."""
    pool = ThreadPoolExecutor(1, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _timed(load: Callable[[np.ndarray], Block], positions: np.ndarray) -> tuple[Block, float]:
    start = monotonic()
    return load(positions), monotonic() - start


def _may_open_again(opened: Future[_Opened]) -> bool:
    error = opened.exception()
    return error is not None and not isinstance(error, BadInput)


class _Opened(NamedTuple):
    first: Block | None
    rest: Iterator[Block]


def _open(stream: Callable[[Positions], Iterator[Block]], positions: Positions) -> _Opened:
    blocks = stream(positions)
    return _Opened(next(blocks, None), blocks)


def _close(opened: Future[_Opened]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        _close_stream(opened.result().rest)


def _close_stream(blocks: Iterator[Block]) -> None:
    close = getattr(blocks, "close", None)
    if close:
        close()


def _until_stalled(opened: _Opened, patience_s: float) -> Iterator[Block]:
    """The stream's blocks, until one does not come within `patience_s`; the stream is closed once it can be."""
    coming: Future[Block | None] = Future()
    coming.set_result(opened.first)
    with one_thread("stream") as reader:
        try:
            while wait([coming], patience_s).done and (block := coming.result()) is not None:
                yield block
                coming = reader.submit(next, opened.rest, None)
        finally:
            coming.add_done_callback(lambda _: _close_stream(opened.rest))


def _after(rows: int, blocks: Iterator[Block]) -> Iterator[Block]:
    """The stream without its first `rows` rows."""
    for block in blocks:
        skipped = min(rows, len(block["id"]))
        rows -= skipped
        if skipped < len(block["id"]):
            yield {name: column[skipped:] for name, column in block.items()}
