"""The list of a storage's runs: each in its state, sweeps counted, a damaged folder beside the others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.fs
import pytest

from records import begun, event, save
from simclr_ray.config import BadInput
from simclr_ray.report import status
from simclr_ray.report.status import RunStatus, list_runs, table
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import Row
from small_runs import TINY, synthetic_dataset

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NOW = 1000.0


def written(folder: Path, events: list[Row], rows: list[Row] | None = None, train: str = "nowhere") -> Path:
    folder.mkdir(parents=True)
    config = replace(TINY, data=replace(TINY.data, train=train))
    (folder / "config.json").write_text(config.to_json())
    (folder / "events.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in events))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows or []))
    return folder


def full_row(time: float, step: int, **fields: float) -> Row:
    return {"step": step, "time": time, "epoch": step / 10, "loss": 5.25, "images_per_s": 123.4, "workers": 2, **fields}


def lease(folder: Path, renewed: float) -> None:
    (folder / "driver.json").write_text(json.dumps({"driver": "d", "time": renewed}))


def died(time: float, cause: str | None) -> Row:
    return event("failure", time, 21, cause=cause)


def states(storage: Path) -> dict[str, str]:
    return {found.name: found.state for found in list_runs(str(storage), NOW)}


def test_every_run_is_in_its_state(tmp_path: Path) -> None:
    again = event("attempt", 140, 11, workers=2)
    written(tmp_path / "cut", begun(100, 0))
    written(tmp_path / "done", [*begun(100, 0), event("done", 125, 21)])
    written(tmp_path / "dying", [*begun(100, 0), again, died(130, "ValueError: no"), begun(140, 11)[1]])
    written(tmp_path / "killed", [*begun(100, 0), again, died(130, None), begun(140, 11)[1]])
    written(tmp_path / "mended", [*begun(100, 0), again, died(130, "a node was lost"), *begun(140, 11)[1:]])
    written(tmp_path / "preempted", [*begun(100, 0), event("stop", 120, 16, reason="preemption")])
    written(tmp_path / "stopped", [*begun(100, 0), event("stop", 120, 16, reason="asked to end")])
    lease(written(tmp_path / "trained", begun(100, 0)), NOW - 10)
    assert states(tmp_path) == {
        "cut": "interrupted",
        "done": "finished",
        "dying": "failed",
        "killed": "interrupted",
        "mended": "interrupted",
        "preempted": "interrupted",
        "stopped": "stopped",
        "trained": "running",
    }


def test_a_run_shows_what_its_records_and_its_data_say(tmp_path: Path) -> None:
    data = synthetic_dataset(tmp_path / "storage" / "data" / "drawn", 100)
    rows = [full_row(110, 6, knn_top1=30.0), full_row(115, 11, knn_top1=42.0), full_row(125, 21)]
    written(tmp_path / "storage" / "r", [*begun(100, 0), save(116, 11), event("done", 125, 21)], rows, data.uri)
    (found,) = list_runs(str(tmp_path / "storage"), NOW)  # the prepared data are no run
    assert found == RunStatus(
        name="r",
        state="finished",
        step=21,
        steps=3 * (96 // 48),
        epoch=2.1,
        saved_s_ago=NOW - 116,
        goodput=pytest.approx((25 - 2 - 3 - 0.5) / 25),
        loss=5.25,
        knn_top1=42.0,
        workers=2,
    )
    line = table([found]).splitlines()[1]
    for words in ("finished", "21 of 6", "2.10", "15 min ago", "78.0%", "5.2500", "42.00 %"):
        assert words in line


def test_a_running_run_is_accounted_for_until_now(tmp_path: Path) -> None:
    lease(written(tmp_path / "r", begun(100, 0)), NOW)
    (found,) = list_runs(str(tmp_path), NOW)
    assert found.goodput == pytest.approx((NOW - 105) / (NOW - 100))


def test_a_run_without_events_says_so_and_whether_a_driver_holds_it(tmp_path: Path) -> None:
    """On an object store the records come with the first save."""
    lease(written(tmp_path / "new", []), NOW)
    written(tmp_path / "dead", [])
    (written(tmp_path / "bare", []) / "events.jsonl").unlink()
    found = {each.name: (each.state, each.problem) for each in list_runs(str(tmp_path), NOW)}
    assert found == {
        "new": ("running", "no events yet"),
        "dead": ("interrupted", "no events yet"),
        "bare": ("interrupted", "no events yet"),
    }


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[1]"),
        ("config.json", '{"optim": {"temprature": 1}}'),
        ("events.jsonl", "no JSON at all\n"),
        ("events.jsonl", '{"event": "attempt"}\n'),
        ("events.jsonl", "[1, 2]\n"),
        ("events.jsonl", b"\xff\xfe\n"),
        ("metrics.jsonl", '{"step": "eleven"}\n'),
        ("driver.json", "[]"),
    ],
)
def test_a_damaged_folder_is_listed_with_its_problem_and_hides_no_other(
    file: str, content: str | bytes, tmp_path: Path
) -> None:
    broken = written(tmp_path / "a", begun(100, 0))
    (broken / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    written(tmp_path / "b", [*begun(100, 0), event("done", 125, 21)])
    first, second = list_runs(str(tmp_path), NOW)
    assert (first.name, first.state, second.state) == ("a", "damaged", "finished")
    assert first.problem
    assert f"a: {first.problem}" in table([first, second]).splitlines()


def test_a_missing_config_is_a_problem_of_that_run(tmp_path: Path) -> None:
    (written(tmp_path / "a", begun(100, 0)) / "config.json").unlink()
    (found,) = list_runs(str(tmp_path), NOW)
    assert found.state == "damaged"
    assert "config.json" in (found.problem or "")


def test_a_sweep_is_one_line_that_counts_its_trials(tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    for number, last in enumerate([event("done", 125, 21), event("done", 125, 21), event("stop", 120, 16, reason="x")]):
        written(sweep / f"trial-{number:04}", [*begun(100, 0), last], [full_row(110, 6, knn_top1=40.0 + number)])
    written(sweep / "trial-0003", [])
    (sweep / "trial-0003" / "config.json").write_text("{")
    (sweep / "trial-0003" / "events.jsonl").write_text("x")
    written(sweep / "notes", begun(100, 0))
    (sweep / "sweep.json").write_text("{}")
    (found,) = list_runs(str(tmp_path), NOW)
    assert found.trials == {"finished": 2, "stopped": 1, "damaged": 1}
    assert found.knn_top1 == 42.0
    assert "sweep of 4: 1 damaged, 2 finished, 1 stopped" in table([found])


def test_other_file_systems_are_read_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for an object store: paths of this machine are of no use, everything goes through the file system."""
    written(tmp_path / "r", [*begun(100, 0), event("done", 125, 21)])

    def opened(uri: str) -> Location:
        base = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        return Location(uri, base, uri.removeprefix("s3://bucket/"))

    for module in ("simclr_ray.report.status", "simclr_ray.report.run", "simclr_ray.data.dataset"):
        monkeypatch.setattr(f"{module}.open_location", opened)
    (found,) = status.list_runs("s3://bucket/", NOW)
    assert (found.name, found.state, found.step) == ("r", "finished", 21)


def test_a_storage_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no storage"):
        list_runs(str(tmp_path / "none"), NOW)
    with pytest.raises(BadInput, match="cannot open"):
        list_runs("gopher://x", NOW)


def test_the_command_lists_runs_without_torch_and_ray(tmp_path: Path) -> None:
    written(tmp_path / "runs" / "r", [*begun(100, 0), event("done", 125, 21)], [full_row(125, 21)])
    code = (
        "import sys; from simclr_ray.cli.status import main; from simclr_ray.cli.command import run_command;"
        "assert not {'torch', 'ray'} & set(sys.modules); run_command(main)"
    )

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", code, *arguments]
        return subprocess.run(line, cwd=EXPERIMENTS, capture_output=True, text=True, timeout=200)

    listed = command("--storage", str(tmp_path / "runs"))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.splitlines()[1].startswith("r ")
    (found,) = json.loads(command("--storage", str(tmp_path / "runs"), "--json").stdout)
    assert (found["name"], found["state"], found["step"], found["trials"]) == ("r", "finished", 21, None)
    assert command("--storage", str(tmp_path / "runs" / "r")).stdout == f"no runs in {tmp_path / 'runs' / 'r'}\n"
    missing = command("--storage", str(tmp_path / "none"))
    assert (missing.returncode, len(missing.stderr.strip().splitlines())) == (2, 1)
