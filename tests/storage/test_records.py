"""The files of rows: nothing is lost or torn by a full disk, whatever it stops at."""

from __future__ import annotations

import resource
from pathlib import Path

from simclr_ray.storage.location import open_location
from simclr_ray.storage.run_folder import read_rows
from simclr_ray.train.run_log import JsonLines


def test_rows_that_a_full_disk_refused_are_written_once_there_is_room(tmp_path: Path) -> None:
    file = open_location(str(tmp_path / "rows.jsonl"))
    rows = [{"step": step, "loss": 1 / (step + 3)} for step in range(12)]
    lines = JsonLines(file, rows[:2])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.size() + 100, hard))  # the third new row is cut in its middle
    try:
        for row in rows[2:9]:
            lines.append(row)
        kept = read_rows(file)
        assert kept == rows[: len(kept)]
        assert 2 < len(kept) < 9
        assert file.read_bytes().endswith(b"}\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for row in rows[9:]:
        lines.append(row)
    assert read_rows(file) == rows
