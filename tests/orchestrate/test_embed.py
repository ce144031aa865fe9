"""Embeddings: every image once, the features that evaluation sees, and no part is made twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch

from commands import ROOT
from simclr_ray.config import AugmentConfig, BadInput, Config, ModelConfig
from simclr_ray.data.augment.center import center_view
from simclr_ray.data.dataset import Dataset
from simclr_ray.data.decode import decode
from simclr_ray.evaluate import embeddings as embeddings_module
from simclr_ray.evaluate.embeddings import open_embeddings
from simclr_ray.evaluate.features import extract
from simclr_ray.evaluate.images import centered, read_images
from simclr_ray.evaluate.neighbours import feature_of, nearest
from simclr_ray.export.encoder import export_encoder, load_pretrained
from simclr_ray.methods.build import build_encoder
from simclr_ray.orchestrate.embed import _embedder, embed, task_resources
from simclr_ray.report.neighbours import find_neighbours
from small_runs import corrupted, synthetic_dataset

TINY = Config(model=ModelConfig(arch="resnet18", width=0.0625, stem="cifar"), augment=AugmentConfig(size=16))
ROWS, BAD = 100, {3, 41}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("storage") / "run"
    export_encoder(build_encoder(TINY.model, seed=1, size=16), TINY, str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """100 images in slices of 8, two of which cannot be decoded."""
    folder = tmp_path_factory.mktemp("data")
    return corrupted(synthetic_dataset(folder / "whole", ROWS), folder / "cut", BAD)


@pytest.fixture
def parts_of_32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings_module, "PART_ROWS", 37)  # whole slices: 32


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "features").to_pylist()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3)])
def test_every_image_has_the_feature_that_evaluation_sees(
    tmp_path: Path, run: str, dataset: Dataset, cluster: None, parts_of_32: None, dtype, tolerance
) -> None:
    found = embed(run, dataset.uri, str(tmp_path / "out"), dtype=dtype)
    rows = rows_of(tmp_path / "out")
    pretrained = load_pretrained(run)
    images = read_images(dataset, centered(16))
    expected = extract(pretrained.encoder, images, pretrained.mean, pretrained.std, torch.device("cpu"))
    assert found.parts == 4
    assert [row["id"] for row in rows] == [row for row in range(ROWS) if row not in BAD]
    assert [row["label"] for row in rows] == expected.labels.tolist()
    assert all(row["path"].startswith("train/") for row in rows)
    np.testing.assert_allclose([row["feature"] for row in rows], expected.h.numpy(), rtol=tolerance, atol=tolerance)


def test_only_missing_parts_are_made(tmp_path: Path, run: str, dataset: Dataset, parts_of_32: None, capsys) -> None:
    out = tmp_path / "out"
    embed(run, dataset.uri, str(out))
    whole = rows_of(out)
    files = sorted((out / "features").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    files[2].unlink()
    embed(run, dataset.uri, str(out))
    after = [file.stat().st_mtime_ns for file in files]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    assert "going on: 3 of 4 parts are there" in capsys.readouterr().out
    assert [row["id"] for row in rows_of(out)] == [row["id"] for row in whole]


def test_what_does_not_belong_together_is_refused(tmp_path: Path, run: str, dataset: Dataset) -> None:
    out = str(tmp_path / "out")
    embed(run, dataset.uri, out)
    with pytest.raises(BadInput, match="holds embeddings with another dtype"):
        embed(run, dataset.uri, out, dtype="float16")
    with pytest.raises(BadInput, match="holds embeddings with another fingerprint"):
        embed(run, synthetic_dataset(tmp_path / "other", 16).uri, out)
    export_encoder(build_encoder(TINY.model, seed=2, size=16), TINY, str(tmp_path / "second"))
    with pytest.raises(BadInput, match="holds embeddings with another encoder_sha256"):
        embed(str(tmp_path / "second"), dataset.uri, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match=r"full is not empty \(it holds thesis.tex\)"):
        embed(run, dataset.uri, str(tmp_path / "full"))
    with pytest.raises(BadInput, match="holds no embeddings"):
        open_embeddings(str(tmp_path / "full"))
    with pytest.raises(BadInput, match="absent cannot be seen from every node: give a shared folder"):
        _embedder(str(tmp_path / "absent"), dataset.uri, 1)


def test_the_nearest_are_those_of_a_search_over_all(tmp_path: Path, run: str, dataset: Dataset, parts_of_32) -> None:
    found = embed(run, dataset.uri, str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    unit = np.array([row["feature"] for row in rows])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for query in (0, 5, 40):
        own = [row["id"] for row in rows].index(query)
        order = [place for place in np.argsort(-(unit @ unit[own]), kind="stable") if place != own][:7]
        near = nearest(found, feature_of(found, query), 7, without=query)
        assert [one.id for one in near] == [rows[place]["id"] for place in order]
        assert [one.label for one in near] == [rows[place]["label"] for place in order]
        np.testing.assert_allclose([one.similarity for one in near], (unit @ unit[own])[order], atol=1e-5)
    with pytest.raises(BadInput, match="image 3 could not be decoded"):
        feature_of(found, 3)
    with pytest.raises(BadInput, match="there is no image 100"):
        feature_of(found, 100)


def test_a_query_is_an_id_or_a_file(tmp_path: Path, run: str, dataset: Dataset, parts_of_32: None) -> None:
    out = str(tmp_path / "out")
    embed(run, dataset.uri, out)
    table = pq.read_table(Path(dataset.uri) / "shard-00000.parquet")
    (tmp_path / "query.jpg").write_bytes(table["image"][7].as_py())
    by_file, by_id = find_neighbours(out, str(tmp_path / "query.jpg"), 5), find_neighbours(out, "7", 4)
    assert by_file.neighbours[0].id == 7
    assert by_file.neighbours[0].similarity == pytest.approx(1)
    assert [one.id for one in by_file.neighbours[1:]] == [one.id for one in by_id.neighbours]
    assert by_id.class_of(by_id.neighbours[0]) == dataset.classes[by_id.neighbours[0].label]
    sheet = decode(by_file.sheet())
    assert sheet.shape == (208, 1016, 3)
    # The first image of the sheet is the query itself, magnified.
    np.testing.assert_array_equal(sheet[8:168, 8:168][2::5, 2::5], center_view(decode(table["image"][7].as_py()), 32))


def test_queries_that_cannot_be_answered(tmp_path: Path, run: str, dataset: Dataset) -> None:
    out = str(tmp_path / "out")
    embed(run, dataset.uri, out)
    (tmp_path / "text.jpg").write_text("no image")
    for query, problem in (
        (str(tmp_path / "absent.jpg"), "cannot read the query"),
        (str(tmp_path / "text.jpg"), "is no image that can be decoded"),
        ("100", "there is no image 100"),
    ):
        with pytest.raises(BadInput, match=problem):
            find_neighbours(out, query, 3)
    next((tmp_path / "out" / "features").iterdir()).write_bytes(b"PAR1 cut")
    with pytest.raises(BadInput, match="is missing or damaged"):
        find_neighbours(out, "7", 3)


@pytest.mark.slow
def test_a_killed_embedding_goes_on(tmp_path: Path, run: str) -> None:
    line = [sys.executable, str(ROOT / "experiments/embed.py"), run, "synthetic:10000", str(tmp_path / "out")]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    features, end = tmp_path / "out" / "features", monotonic() + 200
    while not list(features.glob("part-*")) and monotonic() < end:
        sleep(0.05)
    process.kill()
    process.communicate()
    kept = {file: file.stat().st_mtime_ns for file in features.glob("part-*")}
    parts = json.loads((tmp_path / "out" / "embeddings.json").read_text())["rows"] // 2048 + 1
    assert 0 < len(kept) < parts
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    assert [row["id"] for row in rows_of(tmp_path / "out")] == list(range(10000))


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([{"CPU": 16.0, "GPU": 1.0}, {"CPU": 32.0}], (16, 1)),  # a node for the data alone
        ([{"CPU": 16.0, "GPU": 1.0}, {"CPU": 32.0, "GPU": 1.0}], (16, 1)),
        ([{"CPU": 192.0, "GPU": 8.0}], (24, 1)),
        ([{"CPU": 2.0, "GPU": 4.0}], (1, 1)),
        ([{"CPU": 2.0}, {"CPU": 8.0}], (1, 0)),
    ],
)
def test_each_gpu_can_have_a_task(nodes: list[dict[str, float]], found: tuple[int, int]) -> None:
    assert task_resources(nodes) == found
