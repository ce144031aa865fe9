"""Runs side by side: one row for all seeds of a config, the newest accuracies, and what makes a comparison unfair."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from simclr_ray.config import BadInput
from simclr_ray.evaluate.results import BASELINES
from simclr_ray.recipes import quickstart
from simclr_ray.report.comparison import INTERVAL, compare_runs, half_interval
from simclr_ray.report.comparison_page import curves, write_comparison_page
from simclr_ray.storage.location import open_location
from small_runs import synthetic_dataset

HEADING = ["top-1", "accuracy,", "%", "runs", "kNN", "linear", "images", "training", "s"]


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


def evaluated(folder: str, method: str, *, encoder: str | None = None, sha256: str | None = None, **found: Any) -> None:
    """A row of the command; without `encoder` as the last release wrote it."""
    top1 = {name: found.pop(name) for name in ("pretrained", *BASELINES) if name in found}
    row = {"method": method, "test": "test", "fraction": 1.0, "settings": {}} | found
    row["results"] = {name: {"top1": value, "top5": 100.0} for name, value in top1.items()}
    if encoder:
        row |= {"encoder": encoder, "encoder_sha256": sha256}
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
        ["simclr", "3", "41.0", "±", "2.5", "(3)", "48.0", "1,024", "3"],
        ["pixels", "-", "41.0"],
        ["untrained", "-", "32.0"],
        INTERVAL.split(),
    ]
    assert INTERVAL == "±: half of the 95% confidence interval of the mean over seeds (Student t), of (n) runs"


def test_runs_on_other_images_are_no_seeds_of_each_other(tmp_path: Path) -> None:
    part, whole = (synthetic_dataset(tmp_path / f"{count}", count).uri for count in (32, 64))
    runs = [
        run_folder(tmp_path / name, top1, data__train=data)
        for name, top1, data in (("a", 40.0, part), ("b", 50.0, whole), ("c", 50.0, whole))
    ]
    found = compare_runs(runs)
    assert [len(group) for group in found.groups.values()] == [2, 1]
    assert ["data.train=synthetic:64" in label for label in found.groups] == [True, False]
    assert "±" not in found.text(), "one seed repeated is one sample"
    with pytest.raises(BadInput, match="is named twice"):
        compare_runs([runs[0], runs[1], runs[0]])


def test_rows_of_one_method_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / f"{t}", 40 + t, method__temperature=t, model__head_dim=32) for t in (0.1, 0.5)]
    evaluated(runs[0], "knn", pretrained=60.0)  # counts before the check's
    *rows, warning = compare_runs(runs).text().splitlines()[1:]
    assert [line.split()[:4] for line in rows] == [
        ["simclr", "method.temperature=0.1", "1", "60.0"],
        ["simclr", "method.temperature=0.5", "1", "40.5"],
    ]
    assert warning == "kNN: not all were tested on the same data (synthetic:1024:test, test)"


def test_checks_on_other_data_are_told_and_a_classifier_of_its_own_is_shown(tmp_path: Path) -> None:
    held, given = (
        run_folder(tmp_path / name, 40.0, train__seed=seed, evaluate__test=test)
        for seed, (name, test) in enumerate((("held", None), ("given", "synthetic:512:test")))
    )
    metrics = tmp_path / "given/metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"knn_top1"', '"top1": 70.0, "knn_top1"'))
    found = compare_runs([held, given])
    assert found.columns == ["kNN", "linear", "own classifier"]
    assert found.runs[1].accuracies["own classifier"] == 70.0
    told = "kNN: not all were tested on the same data (images held out of synthetic:4096, synthetic:512:test)"
    assert told in found.warnings()


def test_each_way_to_evaluate_has_a_column_of_its_own(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / f"a{seed}", 40.0, train__seed=seed) for seed in range(2)]
    evaluated(runs[0], "finetune", pretrained=70.0, untrained=30.0, fraction=0.1)
    evaluated(runs[1], "finetune", pretrained=72.0, untrained=31.0, fraction=0.1)
    evaluated(runs[0], "finetune", pretrained=90.0)
    evaluated(runs[0], "finetune", pretrained=75.0, fraction=0.1, settings={"from_head": 1})
    evaluated(runs[0], "transfer", pretrained=55.0, test="data/pets/")
    evaluated(runs[0], "transfer", pretrained=65.0, test="data/cars")
    evaluated(runs[0], "knn", pretrained=35.0, fraction=0.01)
    lines = compare_runs(runs).text().splitlines()
    columns = ["kNN", "linear", "fine-tune 10 %", "fine-tune", "fine-tune from head 1 10 %"]
    columns += ["transfer pets", "transfer cars", "kNN 1 %"]
    assert re.split(r"  +", lines[0])[2:-2] == columns
    assert re.split(r"  +", lines[1])[2:-2] == [
        "40.0 ± 0.0 (2)",
        "-",
        "71.0 ± 12.7 (2)",
        "90.0",
        "75.0",
        "55.0",
        "65.0",
        "35.0",
    ]
    assert re.split(r"  +", lines[2])[1:4] == ["-", "-", "30.5 (30.0..31.0)"]


def test_figures_of_different_encoders_of_a_run_are_not_mixed(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", 40.0)
    last, best = {"encoder": "encoder.safetensors"}, {"encoder": "best.safetensors", "sha256": "b"}
    evaluated(run, "linear", pretrained=50.0, sha256="earlier", **last)
    evaluated(run, "linear", pretrained=60.0, **best)
    evaluated(run, "knn", pretrained=45.0, sha256="now", **last)
    other = run_folder(tmp_path / "b", 30.0, train__seed=1)
    evaluated(other, "knn", pretrained=30.0, sha256="b", **last)
    lines = compare_runs([run, other]).text().splitlines()
    assert [line.split()[:5] for line in lines[1:4]] == [
        ["simclr", "encoder=encoder.safetensors", "2", "37.5", "±"],
        ["simclr", "encoder=best.safetensors", "1", "-", "60.0"],
        INTERVAL.split()[:5],
    ]


def test_the_interval_is_students() -> None:
    values = [70.0, 72.5, 71.0, 74.0]
    low, high = stats.t.interval(0.95, df=3, loc=71.875, scale=stats.sem(values))
    assert half_interval(values) == pytest.approx((high - low) / 2)
    assert half_interval(values) == pytest.approx(3.182446 * 1.75 / 2, rel=1e-5)  # t of 3 degrees of freedom


def test_what_makes_it_unfair_is_said(tmp_path: Path) -> None:
    whole = run_folder(tmp_path / "whole", 40.0)
    other = run_folder(tmp_path / "other", 40.0, data__train="synthetic:512", train__global_batch=128, done=False)
    assert compare_runs([whole, other]).text().splitlines()[-3:] == [
        "other is interrupted after 512 images",
        "the runs were not trained on the same data",
        "the runs did not see as many images",
    ]
    evaluated(whole, "knn", pretrained=41.0)
    evaluated(other, "knn", pretrained=42.0, test="others")
    said = compare_runs([whole, other]).warnings()
    assert said[-1] == "kNN: not all were tested on the same data (others, test)"
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
    for words in ("40.5 ± 6.4 (2)", "r&amp;1", "other is interrupted after 512 images"):
        assert words in content, words
    drawn = curves(compared)
    assert drawn
    ends = {axes.get_ylabel(): [line.get_xdata()[-1] for line in axes.lines] for axes in drawn.axes}
    assert ends == {"loss": [512, 1024, 1024], "kNN %": [512, 1024, 1024]}  # steps of 128 and of 256 images
    colors = [line.get_color() for line in drawn.axes[0].lines]
    assert colors[0] != colors[1] == colors[2]
