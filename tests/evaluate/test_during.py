"""The check during training: what it measures, on which rows, and that all workers and evaluate_run find the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gloo import run_workers
from simclr_ray.config import BadInput, Config, SimCLRConfig, SupervisedConfig
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.during import check_during, rows_of_check
from simclr_ray.evaluate.label_free import rankme
from simclr_ray.export.encoder import export_encoder
from simclr_ray.methods.build import build_encoder, build_method
from simclr_ray.orchestrate.evaluate import evaluate_run
from small_runs import TINY, synthetic_dataset

LINEAR = TINY.with_overrides({"evaluate.every_epochs": 1, "evaluate.method": "linear", "evaluate.test_rows": 150})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 400)


def check(config: Config, bank: Dataset, test: Dataset | None) -> tuple[dict[str, float], int]:
    """What the check of an untrained network finds, and how often it called `check_control`."""
    calls = []
    model = build_method(config.model, SimCLRConfig(), seed=0, size=32)
    found = check_during(config, bank, test, torch.device("cpu"), 1)(model, 1, lambda: calls.append(1))
    return found, len(calls)


def test_workers_find_what_one_finds_and_check_control_equally_often(dataset: Dataset) -> None:
    alone, _ = check(LINEAR, dataset, None)
    measures = [f"{by}_{measure}" for by in ("knn", "linear") for measure in ("top1", "top5", "mean_per_class")]
    assert list(alone) == ["rankme", *measures]
    # 19 slices to classify and 31 of the bank: on three workers batches of 8 make 1 and 2 rounds. The classifier has
    # 100 epochs.
    assert run_workers(3, check, LINEAR, dataset, None) == [(pytest.approx(alone), 1 + 2 + 100)] * 3


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_a_run_scores_after_training_what_it_scored_during_it(dataset: Dataset, tmp_path: Path, method: str) -> None:
    config, test = LINEAR.with_overrides({"evaluate.neighbours": 20}), synthetic_dataset(tmp_path / "test", 120)
    during, _ = check(config, dataset, test)
    run = tmp_path / "runs" / "r1"
    export_encoder(build_encoder(config.model, seed=0, size=32), config, str(run))
    after = evaluate_run(str(run), method, dataset.uri, test.uri, neighbours=20)["results"]["pretrained"]
    assert after == {name: during[f"{method}_{name}"] for name in ("top1", "top5", "mean_per_class")}


def test_the_decoded_cache_is_used_and_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    cached = LINEAR.with_overrides({"resources.cache_gib": 1.0, "resources.cache_dir": str(tmp_path)})
    assert check(cached, dataset, None) == check(LINEAR, dataset, None)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock", ".npz", ".pixels"}
    few = cached.with_overrides({"evaluate.bank_rows": 50, "evaluate.test_rows": 50})
    check(few.with_overrides({"resources.cache_dir": str(tmp_path / "other")}), dataset, None)
    assert not (tmp_path / "other").exists(), "too few rows are read to decode all"


def test_projections_are_judged_as_features_are(dataset: Dataset) -> None:
    """Of an encoder that ends with the head, the features are the projections."""
    config = LINEAR.with_overrides({"evaluate.projections": True})
    found, _ = check(config, dataset, None)
    model = build_method(config.model, SimCLRConfig(), seed=0, size=32).eval()
    head, forward = model.head, model.encoder.forward
    model.encoder.forward = lambda images: head(forward(images))  # type: ignore[method-assign]
    model.encoder.feature_dim = 16
    of_z = check_during(LINEAR, dataset, None, torch.device("cpu"), 1)(model, 1, lambda: None)
    assert {f"z_{name}": value for name, value in of_z.items() if name != "rankme"} == {
        name: value for name, value in found.items() if name.startswith("z_")
    }
    assert found["z_linear_top1"] != found["linear_top1"]
    shared = run_workers(3, check, config, dataset, None)
    assert shared == [(pytest.approx(found), shared[0][1])] * 3
    none = config.with_overrides({"model.head": "none"})
    model = build_method(none.model, SimCLRConfig(), seed=0, size=32)
    same = check_during(none, dataset, None, torch.device("cpu"), 1)(model, 1, lambda: None)
    assert same["z_knn_top1"] == same["knn_top1"]
    with pytest.raises(BadInput, match="needs a projection head"):
        Config(method=SupervisedConfig()).with_overrides({"evaluate.projections": True})


def test_rows_held_out_are_no_rows_of_the_bank(dataset: Dataset) -> None:
    assert rows_of_check(LINEAR, dataset, None) == (range(248), range(248, 400))
    most = LINEAR.with_overrides({"evaluate.test_rows": 10_000})
    assert rows_of_check(most, dataset, None) == (range(200), range(200, 400))
    few = LINEAR.with_overrides({"evaluate.bank_rows": 100})
    assert rows_of_check(few, dataset, dataset) == (range(100), range(150))


def test_rankme_needs_no_labels_and_no_bank(dataset: Dataset) -> None:
    found, _ = check(TINY.with_overrides({"evaluate.method": "rankme"}), dataset, None)
    assert found.keys() == {"rankme"}


def test_rankme_is_the_effective_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    orthogonal, _ = torch.linalg.qr(torch.randn(64, 16, generator=generator, dtype=torch.float64))
    assert rankme(orthogonal) == pytest.approx(16, rel=1e-4)
    assert rankme(orthogonal[:, :1] @ torch.ones(1, 16, dtype=torch.float64)) == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(64, 16)) == 1
    values = np.array([4.0, 2.0, 1.0, 1.0])
    p = values / values.sum()
    expected = np.exp(-(p * np.log(p)).sum())
    assert rankme(orthogonal[:, :4] * torch.from_numpy(values)) == pytest.approx(expected, rel=1e-4)


def test_a_check_with_one_worker_less_than_slices(tmp_path: Path) -> None:
    small = synthetic_dataset(tmp_path / "small", 40)
    alone, _ = check(LINEAR, small, None)
    assert [found for found, _ in run_workers(3, check, LINEAR, small, None)] == [pytest.approx(alone)] * 3
