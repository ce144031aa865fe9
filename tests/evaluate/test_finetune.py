"""Fine-tuning: the paper's settings, and the accuracy of the run's own classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gloo import run_workers
from simclr_ray.config import Config, ModelConfig, SimCLRConfig, SupervisedConfig
from simclr_ray.data.augment.center import center_view
from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.decode import decode
from simclr_ray.evaluate.during import check_during
from simclr_ray.evaluate.finetune import finetune_config
from simclr_ray.methods.build import build_method
from simclr_ray.optim.build import build_optimizer
from simclr_ray.orchestrate.finetune import _digest
from simclr_ray.storage.location import open_location
from small_runs import TINY, synthetic_dataset

CHECKED = TINY.with_overrides({"evaluate.every_epochs": 1, "method.name": "supervised", "method.classes": 10})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", 200)


def own_accuracy(dataset: Dataset) -> dict[str, float]:
    model = build_method(CHECKED.model, SupervisedConfig(classes=10), seed=3, size=16)
    found = check_during(CHECKED, dataset, dataset, torch.device("cpu"), 1)(model, 1, lambda: None)
    return {name: found[name] for name in ("top1", "top5", "mean_per_class")}


def test_the_check_counts_what_the_classifier_gets_right(dataset: Dataset) -> None:
    model = build_method(CHECKED.model, SupervisedConfig(classes=10), seed=3, size=16).eval()
    mean, std = np.array(CHECKED.data.mean), np.array(CHECKED.data.std)
    hits, hits_of_five = np.zeros(10), 0
    rows = np.zeros(10)
    for table in SliceReader(dataset).rows(0, 200):
        for row in table.to_pylist():
            pixels = (center_view(decode(row["image"]), 16) / 255 - mean) / std
            with torch.no_grad():
                logits = model(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])[0]
            best = logits.argsort(descending=True).tolist()
            hits[row["label"]] += best[0] == row["label"]
            hits_of_five += row["label"] in best[:5]
            rows[row["label"]] += 1
    by_class = 100 * float((hits / rows).mean())
    expected = {"top1": hits.sum() / 2, "top5": hits_of_five / 2, "mean_per_class": round(by_class, 3)}
    assert own_accuracy(dataset) == pytest.approx(expected)
    assert run_workers(3, own_accuracy, dataset) == [pytest.approx(expected)] * 3


def test_a_method_without_labels_has_no_classifier(dataset: Dataset) -> None:
    model = build_method(TINY.model, SimCLRConfig(), seed=0, size=16)
    assert model.classify(torch.zeros(2, 32)) is None


@pytest.mark.parametrize(
    ("rows", "fraction", "batch", "rate", "epochs"),
    [(12_811, 0.01, 2048, 0.8, 30), (128_117, 0.1, 2048, 0.8, 15), (200, 1.0, 48, 0.05 * 96 / 256, 45)],
)
def test_the_settings_are_the_papers(dataset, rows, fraction, batch, rate, epochs) -> None:
    run = Config(model=ModelConfig(arch="resnet18", width=0.25, stem="cifar"))
    part = Dataset(**vars(dataset) | {"rows": rows, "slice_rows": 32 if rows > 1000 else 8})
    config = finetune_config(run, part, dataset, classes=10, fraction=fraction, epochs=None, from_head=1, seed=4)
    assert (config.train.global_batch, config.train.epochs, config.train.seed) == (batch, epochs, 4)
    assert (config.model.width, config.method) == (0.25, SupervisedConfig(classes=10, from_head=1))
    assert (config.augment.jitter_p, config.augment.grayscale_p, config.augment.blur_p) == (0, 0, 0)
    model = build_method(config.model, config.method, seed=0, size=32)
    optimizer = build_optimizer(model, config.optim, batch)
    assert all(group["nesterov"] and group["weight_decay"] == 0 for group in optimizer.param_groups)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("rows", "slice_rows", "pretrained", "size"),
    [
        (20_000, 32, {"global_batch": 4096, "pass_size": 1024}, 1024),
        (20_000, 32, {"global_batch": 4096}, None),
        (20_000, 32, {"global_batch": 256}, 256),
        (6_000, 32, {"global_batch": 512}, 512),  # batches of 1,024 images, which such passes fill
        (6_000, 32, {"global_batch": 1024}, None),
        (400, 4, {"global_batch": 512}, None),
    ],
)
def test_a_pass_is_no_larger_than_that_of_pretraining(
    dataset: Dataset, rows: int, slice_rows: int, pretrained: dict[str, int], size: int | None
) -> None:
    run = TINY.with_overrides({f"train.{key}": value for key, value in pretrained.items()})
    part = Dataset(**vars(dataset) | {"rows": rows, "slice_rows": slice_rows})
    train = finetune_config(run, part, dataset, classes=10, fraction=1.0, epochs=None, from_head=0, seed=0).train
    assert train.pass_size == size


def test_a_run_from_before_a_setting_that_fine_tuning_does_not_use_is_found_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    """The name of its folder is that of the release before `bias_lr_fraction`."""
    (tmp_path / "encoder.safetensors").write_bytes(b"weights")
    file = open_location(str(tmp_path)) / "encoder.safetensors"
    run = TINY.with_overrides({"train.global_batch": 512})
    config = finetune_config(run, dataset, dataset, classes=10, fraction=1.0, epochs=3, from_head=0, seed=0)
    assert "bias_lr_fraction" in repr(config.optim)
    known = Dataset(**vars(dataset) | {"fingerprint": "of data"})
    assert _digest(file, known, known, config, 0) == "09d945e6"
