"""The terminal line of a run: how far it is, how fast, and how long it waits for data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Any, TextIO

from ray.exceptions import RayError
from ray.experimental import internal_kv

from simclr_ray.orchestrate.background import repeating

BAR = 20
LINE_EVERY_S = 10.0
"""Where the output is no terminal, a line of its own so often."""


@contextmanager
def progress_line(key: str, total_steps: int, global_batch: int, out: TextIO | None = None) -> Iterator[None]:
    """Shows the newest metrics row that rank 0 put under `key` (see RayWorker) until the block ends."""
    out = out or sys.stderr
    live, shown, due = out.isatty(), "", 0.0

    def show(now: bool = False) -> None:
        nonlocal shown, due
        try:
            value = internal_kv._internal_kv_get(key)
        except RayError:
            return  # the head is busy, or gone: the line must not hide why
        line = render_line(json.loads(value), total_steps, global_batch) if value else "starting workers"
        if line != shown and (live or now or monotonic() >= due):
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=out, flush=True)
            shown, due = line, monotonic() + LINE_EVERY_S

    try:
        with repeating(show, 0.5):
            yield
    finally:
        show(now=True)
        if live:
            print(file=out)


def render_line(row: dict[str, Any], total_steps: int, global_batch: int) -> str:
    """`row` is one of metrics.jsonl, with `save_error` (see Recorder)."""
    done = row["step"] / total_steps
    bar = "#" * int(done * BAR)
    seconds_left = (total_steps - row["step"]) * global_batch / row["images_per_s"]
    workers = f"{row['workers']} worker" + ("s" if row["workers"] > 1 else "")
    knn = f"  kNN {row['knn_top1']:.1f} %" if "knn_top1" in row else ""
    warning = f"  saving fails: {row['save_error']}" if row["save_error"] else ""
    return (
        f"[{bar:<{BAR}}] {done:4.0%}  epoch {row['epoch']:.2f}  step {row['step']}/{total_steps}  "
        f"loss {row['loss']:.3f}{knn}  {row['images_per_s']:.0f} images/s  data wait {row['data_wait_fraction']:.0%}  "
        f"{workers}  {timedelta(seconds=round(seconds_left))} left{warning}"
    )
