"""A report on a run folder: finished, running, interrupted, or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from records import begun, event, save
from simclr_ray.cli.report import main as report
from simclr_ray.config import BadInput
from simclr_ray.report.goodput import account
from simclr_ray.report.run import read_run, summary
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import Row

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def written(folder: Path, events: list[Row], rows: list[Row]) -> Path:
    folder.mkdir()
    (folder / "events.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in events))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return folder


def full_row(time: float, step: int, **fields: float) -> Row:
    return {"step": step, "time": time, "epoch": step / 10, "loss": 5.25, "images_per_s": 123.4, "workers": 2, **fields}


def test_a_run_says_how_far_it_is(tmp_path: Path) -> None:
    rows = [full_row(115, 11, knn_top1=42.0), full_row(125, 21)]
    run = written(tmp_path / "r", [*begun(100, 0), save(116, 11)], rows)
    found = read_run(str(run), now=1000.0)
    assert found.state == "interrupted"
    for words in ("interrupted", "step       21", "loss       5.2500", "42.00 % top-1 at step 11", "save  step 11"):
        assert words in summary(found)
    (run / "driver.json").write_text(json.dumps({"driver": "d", "time": 990.0}))
    assert read_run(str(run), now=1000.0).state == "running"
    assert read_run(str(run), now=2000.0).state == "interrupted"


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    run = written(tmp_path / "r", [*begun(100, 0), event("done", 125, 21)], [])
    whole = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(whole[:-5])
    found = read_run(str(run), now=1000.0)
    assert account(found.events, found.rows).total_s == 5


def test_what_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no run"):
        read_run(str(tmp_path / "none"), now=0.0)
    with pytest.raises(BadInput, match="has no events"):
        read_run(str(tmp_path), now=0.0)


def test_a_store_that_cannot_be_read_is_bad_input_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Location, *_: object) -> bool:
        raise PermissionError("credentials have expired\nand more")

    monkeypatch.setattr(Location, "is_folder", refused)
    with pytest.raises(BadInput, match=r"^cannot read .*r: credentials have expired; check the address, [a-z, ]+$"):
        read_run(str(tmp_path / "r"), now=0.0)


def test_a_report_that_cannot_be_written_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path / "r", [*begun(100, 0), event("done", 125, 21)], [full_row(125, 21, top1=61.0)])
    (run / "report").write_text("in the way")
    with pytest.raises(BadInput, match=r"^cannot write .*r/report: "):
        report([str(run)])
    assert "classifier 61.00 % top-1 at step 21" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"^there is no run .*encoder.safetensors: give the folder"):
        report([str(run / "encoder.safetensors"), "--against", "pixels"])


def test_the_command_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    run = written(tmp_path / "r", [*begun(100, 0), event("done", 125, 21)], [full_row(125, 21)])
    code = (
        "import sys; from simclr_ray.cli.report import main; from simclr_ray.cli.command import run_command;"
        "assert not {'torch', 'ray'} & set(sys.modules); run_command(main)"
    )

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", code, *arguments]
        return subprocess.run(line, cwd=EXPERIMENTS, capture_output=True, text=True, timeout=200)

    done = command(str(run), "--goodput")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "goodput 80.00%: 0:00:20 of training in 0:00:25")
    assert command(str(run)).stdout.startswith(f"{run}: finished")
    missing = command(str(tmp_path / "none"))
    assert missing.returncode == 2
    assert len(missing.stderr.strip().splitlines()) == 1
