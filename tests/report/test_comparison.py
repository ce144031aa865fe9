"""Runs side by side: one row for all seeds of a config, the newest accuracies, and what makes a comparison unfair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simclr_ray.config import BadInput
from simclr_ray.recipes import quickstart
from simclr_ray.report.comparison import compare_runs
from simclr_ray.report.comparison_page import curves, write_comparison_page
from simclr_ray.storage.location import open_location

HEADING = ["runs", "kNN", "%", "linear", "%", "images", "training", "s"]


def run_folder(folder: Path, top1: float, *, done: bool = True, **changes: Any) -> str:
    """A run of four steps of one second each, and its check at the last one."""
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    config = quickstart().with_overrides(overrides)
    events = [{"event": "start", "time": 0.0, "step": 0, "workers": 1}, {"event": "first_step", "time": 1.0, "step": 1}]
    rows = [{"step": step, "epoch": 0.1, "loss": 1.0, "time": float(step)} for step in range(1, 5)]
    rows[-1]["knn_top1"] = top1
    if done:
        events.append({"event": "done", "time": 4.0, "step": 4})
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def evaluated(folder: str, method: str, **top1: float) -> None:
    row = {"method": method, "results": {name: {"top1": value, "top5": 100.0} for name, value in top1.items()}}
    with open(Path(folder) / "evaluation.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def test_seeds_are_one_row_and_the_best_config_comes_first(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / f"a{seed}", 40.0 + seed, train__seed=seed) for seed in range(3)]
    runs.append(run_folder(tmp_path / "b", 50.0, method__name="byol"))
    evaluated(runs[0], "linear", pretrained=47.0, untrained=30.0, pixels=40.0)
    evaluated(runs[0], "linear", pretrained=48.0, untrained=32.0, pixels=41.0)
    lines = [line.split() for line in compare_runs(runs).text().splitlines()]
    assert lines == [
        HEADING,
        ["byol", "1", "50.0", "-", "1,024", "3"],
        ["simclr", "3", "41.0", "(40.0..42.0)", "48.0", "1,024", "3"],
        ["pixels", "-", "41.0"],
        ["untrained", "-", "32.0"],
    ]


def test_rows_of_one_method_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / f"{t}", 40 + t, method__temperature=t, model__head_dim=32) for t in (0.1, 0.5)]
    evaluated(runs[0], "knn", pretrained=60.0)  # counts before the check's
    assert [line.split()[:4] for line in compare_runs(runs).text().splitlines()[1:]] == [
        ["simclr", "method.temperature=0.1", "1", "60.0"],
        ["simclr", "method.temperature=0.5", "1", "40.5"],
    ]


def test_what_makes_it_unfair_is_said(tmp_path: Path) -> None:
    whole = run_folder(tmp_path / "whole", 40.0)
    other = run_folder(tmp_path / "other", 40.0, data__train="synthetic:512", train__global_batch=128, done=False)
    assert compare_runs([whole, other]).text().splitlines()[-3:] == [
        "other is interrupted after 512 images",
        "the runs were not trained on the same data",
        "the runs did not see as many images",
    ]
    with pytest.raises(BadInput, match="there is no run"):
        compare_runs([whole, str(tmp_path / "none")])


def test_no_two_configs_have_one_label(tmp_path: Path) -> None:
    """Keys that another method lacks tell two configs of one method apart."""
    runs = [run_folder(tmp_path / "a", 40.0)]
    runs += [run_folder(tmp_path / f"{m}", 41.0, method__name="byol", method__momentum=m) for m in (0.9, 0.99)]
    assert list(compare_runs(runs).groups) == ["byol method.momentum=0.9", "byol method.momentum=0.99", "simclr"]


def test_the_page_shows_the_curves_and_the_table(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / f"r&{seed}", 40.0 + seed, train__seed=seed) for seed in range(2)]
    runs.append(run_folder(tmp_path / "other", 50.0, method__name="byol", train__global_batch=128, done=False))
    compared = compare_runs(runs)
    page = write_comparison_page(compared, open_location(runs[0]))
    assert page.uri == f"{runs[0]}/report/comparison.html"
    content = Path(page.uri).read_text()
    assert "The runs over the images seen" in content
    assert content.count("<tr") == 1 + 2 + 1 + 3  # the table's head and configs, the list's head and runs
    for words in ("40.5 (40.0..41.0)", "r&amp;1", "other is interrupted after 512 images"):
        assert words in content, words
    drawn = curves(compared)
    assert drawn
    ends = {axes.get_ylabel(): [line.get_xdata()[-1] for line in axes.lines] for axes in drawn.axes}
    assert ends == {"loss": [512, 1024, 1024], "kNN %": [512, 1024, 1024]}  # steps of 128 and of 256 images
    colors = [line.get_color() for line in drawn.axes[0].lines]
    assert colors[0] != colors[1] == colors[2]
