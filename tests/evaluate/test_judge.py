"""A run judged against others: the same accuracies as alone, a test of every difference, and what it is judged on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_features import SMALL, dataset

from simclr_ray.config import BadInput
from simclr_ray.evaluate.permutation import permutation_p
from simclr_ray.evaluate.score import Accuracy
from simclr_ray.evaluate.worth import Classified, results
from simclr_ray.export.encoder import export_encoder
from simclr_ray.methods.build import build_encoder
from simclr_ray.orchestrate.evaluate import evaluate_run
from simclr_ray.orchestrate.judge import judge_run
from simclr_ray.report.encoder_plots import principal_components
from simclr_ray.report.worth import worth_of
from simclr_ray.storage.run_folder import Row


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A run, its copy, and one of smaller images; on images whose colour is their class."""
    folder = tmp_path_factory.mktemp("judged")
    train, test = dataset(folder / "train", rows=60, bad={1}), dataset(folder / "test", rows=30, bad={2, 9}, first=60)
    config = SMALL.with_overrides({"data.train": train.uri, "evaluate.test": test.uri})
    for name in ("run", "copy"):
        export_encoder(build_encoder(SMALL.model, seed=1, size=32), config, str(folder / "runs" / name))
    smaller = config.with_overrides({"augment.size": 16})
    export_encoder(build_encoder(SMALL.model, seed=2, size=16), smaller, str(folder / "runs" / "smaller"))
    run = folder / "runs" / "run"
    judge_run(str(run), ["pixels", str(folder / "runs/copy"), str(folder / "runs/smaller")])
    for method in ("knn", "linear"):
        evaluate_run(str(run), method, train.uri, test.uri, baselines=True)  # type: ignore[arg-type]
    evaluate_run(str(folder / "runs/smaller"), "knn", train.uri, test.uri)
    return folder, [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]


def test_each_is_scored_as_it_is_alone(judged: tuple[Path, list[Row]]) -> None:
    folder, (knn, linear, *alone) = judged
    assert [knn["method"], linear["method"]] == ["knn", "linear"]
    others = [str(folder / "runs" / name) for name in ("copy", "smaller")]
    for row, expected in zip((knn, linear), alone, strict=True):
        assert list(row["results"]) == ["pretrained", "untrained", "pixels", *others]
        assert (row["train_rows"], row["test_rows"], row["bad"]) == (59, 28, 3)
        for name, found in expected["results"].items():
            assert row["results"][name]["top1"] == found["top1"], name
    assert "p" not in knn["results"]["pretrained"]
    (smaller,) = [json.loads(line) for line in (folder / "runs/smaller/evaluation.jsonl").read_text().splitlines()]
    assert knn["results"][others[1]]["top1"] == smaller["results"]["pretrained"]["top1"]
    assert linear["results"][others[0]]["top1"] >= linear["results"]["pretrained"]["top1"]
    assert knn["results"][others[0]] == knn["results"]["pretrained"] | {"p": 1.0}


def test_it_is_shown(judged: tuple[Path, list[Row]]) -> None:
    folder, rows = judged
    for name in ("features.png", "nearest.png"):
        assert Image.open(folder / "runs/run/report" / name).width > 800
    worth = worth_of(rows)
    assert worth
    assert [cells[0] for _, cells in worth.rows][-1] == "this run"
    assert str(folder / "runs/copy") in worth.verdicts[0]


def test_the_test_is_of_the_same_images() -> None:
    right = [np.array(flags, bool) for flags in ([1, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1])]
    found = [
        Classified(
            name=name,
            accuracies={"knn": Accuracy(100 * float(flags.mean()), 100.0, 80.0)},
            right={"knn": flags},
            points=np.zeros((0, 2)),
            labels=np.zeros(0, np.int64),
            shown=np.zeros(0, np.int64),
            nearest=np.zeros((0, 5), np.int64),
            similarities=np.zeros((0, 5)),
            counts={},
        )
        for name, flags in zip(("pretrained", "other", "same"), right, strict=True)
    ]
    rows = results(found, "knn")
    assert rows["pretrained"] == {"top1": 83.333, "top5": 100.0, "mean_per_class": 80.0}
    assert (rows["other"]["p"], rows["same"]["p"]) == (permutation_p(right[0], right[1]), 1.0)


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("pretrained", "what the run's own encoder is called"),
        ("none", r"--against none: .*none has no encoder.safetensors"),
        ("resnet51=file.pth", r"--against resnet51=file.pth: no model.arch is called 'resnet51'"),
        ("resnet18=none.pth", r"--against resnet18=none.pth: none.pth cannot be read"),
        ("pixels", "the run has no evaluate.test: give --train and --test"),
    ],
)
def test_what_cannot_be_judged_is_bad_input(against: str, message: str, tmp_path: Path) -> None:
    export_encoder(build_encoder(SMALL.model, seed=1, size=32), SMALL, str(tmp_path / "run"))
    with pytest.raises(BadInput, match=message):
        judge_run(str(tmp_path / "run"), [against])


def test_the_components_are_those_of_the_covariance() -> None:
    points = np.random.default_rng(0).normal(size=(50, 7)) * np.arange(1, 8)
    places, shares = principal_components(points)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    expected = centred @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(shares, values[[-1, -2]] / values.sum())
    np.testing.assert_array_equal(places, principal_components(points)[0])
