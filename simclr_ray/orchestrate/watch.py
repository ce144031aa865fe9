"""The progress line of a run on the terminal: step, speed, time left and time spent waiting for data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import TextIO

from ray.exceptions import RayError
from ray.experimental import internal_kv

from simclr_ray.periodic import repeating
from simclr_ray.storage.run_folder import Row

BAR = 20
LINE_EVERY_S = 10.0
"""Interval between printed lines if the output is not a terminal."""


@contextmanager
def rows_followed(key: str, on_row: Callable[[Row | None], None]) -> Iterator[None]:
    """Calls `on_row` on a thread with the newest row that rank 0 put under `key` (see RayWorker), and at the end."""

    def poll() -> None:
        try:
            value = internal_kv._internal_kv_get(key)
        except RayError:
            return  # the head is busy or gone: an error here must not hide the run's own
        on_row(json.loads(value) if value else None)

    try:
        with repeating(poll, 0.5):
            yield
    finally:
        poll()


@contextmanager
def progress_line(key: str, total_steps: int, global_batch: int, out: TextIO | None = None) -> Iterator[None]:
    """Shows the newest metrics row until the block ends."""
    out = out or sys.stderr
    live, shown, line, due = out.isatty(), "", "", 0.0

    def show(row: Row | None) -> None:
        nonlocal line
        line = render_line(row, total_steps, global_batch) if row else "starting workers"
        if live or monotonic() >= due:
            write()

    def write() -> None:
        nonlocal shown, due
        if line != shown:
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=out, flush=True)
            shown, due = line, monotonic() + LINE_EVERY_S

    try:
        with rows_followed(key, show):
            yield
    finally:
        write()
        if live:
            print(file=out)


def render_line(row: Row, total_steps: int, global_batch: int) -> str:
    """`row` is one of metrics.jsonl, with `save_error` (see Recorder) and `checked` (see RayWorker)."""
    done = row["step"] / total_steps
    bar = "#" * int(done * BAR)
    seconds_left = (total_steps - row["step"]) * global_batch / row["images_per_s"]
    workers = f"{row['workers']} worker" + ("s" if row["workers"] > 1 else "")
    checked = row["checked"] or {}
    check = ""
    if "knn_top1" in checked:
        check = f"  kNN {checked['knn_top1']:.1f} %"
    elif "rankme" in checked:
        check = f"  rankme {checked['rankme']:.1f}"
    elif "probe_top1" in row:
        check = f"  probe {row['probe_top1']:.1f} %"
    warning = f"  saving fails: {row['save_error']}" if row["save_error"] else ""
    return (
        f"[{bar:<{BAR}}] {done:4.0%}  epoch {row['epoch']:.2f}  step {row['step']}/{total_steps}  "
        f"loss {row['loss']:.3f}{check}  {row['images_per_s']:.0f} images/s  "
        f"data wait {row['data_wait_fraction']:.0%}  "
        f"{workers}  {timedelta(seconds=round(seconds_left))} left{warning}"
    )
