"""The files of rows: nothing is lost or torn by a full disk, whatever it stops at."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import EVENTS, LEDGER, METRICS, TENSORBOARD, read_rows
from simclr_ray.train.run_log import JsonLines, RunLog


@contextmanager
def full_disk(size: int = 0) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_that_a_full_disk_refused_are_written_once_there_is_room(tmp_path: Path) -> None:
    file = open_location(str(tmp_path / "rows.jsonl"))
    rows = [{"step": step, "loss": 1 / (step + 3)} for step in range(12)]
    lines = JsonLines(file, rows[:2])
    with full_disk(file.size() + 100):  # the third new row is cut in its middle
        for row in rows[2:9]:
            lines.append(row)
        kept = read_rows(file)
        assert kept == rows[: len(kept)]
        assert 2 < len(kept) < 9
        assert file.read_bytes().endswith(b"}\n")
    for row in rows[9:]:
        lines.append(row)
    assert read_rows(file) == rows


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
@pytest.mark.parametrize("same_process", [True, False])
def test_workers_regroup_while_the_disk_is_full(same_process: bool, tmp_path: Path) -> None:
    """Rank 0, or another that takes its place, goes on from the state in memory and from the rows of both."""
    run = open_location(str(tmp_path))
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 6)]
    log = RunLog(run)
    log.rewind(0)
    log.event("start", 0)
    for row in rows[:3]:
        log.metrics(row)
        log.ledger({"step": row["step"], "ids": [row["step"]]})
    with full_disk():
        log = log if same_process else RunLog(run)
        log.rewind(2, [(METRICS, row) for row in rows[:2]])
        log.event("regroup", 2)
        for row in rows[2:4]:
            log.metrics(row)
        log.flush()
        assert log.metrics_rows() == rows[:4]
        assert read_rows(run / METRICS) == rows[:2]
    log.flush()
    log.metrics(rows[4])
    log.close()
    assert read_rows(run / METRICS) == rows
    assert [row["step"] for row in read_rows(run / LEDGER)] == [1, 2]
    assert [event["event"] for event in read_rows(run / EVENTS)] == ["start", "regroup"]
    assert len([board for board in (tmp_path / TENSORBOARD).iterdir() if board.stat().st_size]) == 2
