"""How many classes a supervised run has, and what it cannot be trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simclr_ray.config import BadInput, Config, as_resolved
from simclr_ray.data.dataset import Dataset
from simclr_ray.evaluate.labels import labelled_classes, probe_classes
from small_runs import synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data"), 16)


def test_the_classes_are_those_that_the_dataset_or_the_user_names(dataset: Dataset) -> None:
    assert labelled_classes(dataset, None) == 10
    assert labelled_classes(replace(dataset, classes=None), 12) == 12


def test_a_supervised_run_without_labels_is_refused(dataset: Dataset) -> None:
    with pytest.raises(BadInput, match="method supervised needs labels: .* has images without"):
        labelled_classes(replace(dataset, labelled=False), 10)
    with pytest.raises(BadInput, match="does not name its classes: say how many there are by --method.classes"):
        labelled_classes(replace(dataset, classes=None), None)


def test_a_probe_needs_some_labels_and_their_number(dataset: Dataset) -> None:
    assert probe_classes(dataset, None) == 10
    assert probe_classes(replace(dataset, labelled=False), None) == 10, "some images may have none"
    with pytest.raises(BadInput, match="evaluate.probe needs labels: .* leave --evaluate.probe out"):
        probe_classes(replace(dataset, labelled=False, classes=None), None)
    with pytest.raises(BadInput, match="say how many there are by --evaluate.probe-classes"):
        probe_classes(replace(dataset, classes=None), None)


def test_fewer_classes_than_the_dataset_names_are_refused(dataset: Dataset) -> None:
    with pytest.raises(BadInput, match="--method.classes 9 is less than the 10 classes"):
        labelled_classes(dataset, 9)
    with pytest.raises(BadInput, match="--evaluate.probe-classes 9 is less than the 10 classes"):
        probe_classes(dataset, 9)
    assert labelled_classes(dataset, 11) == 11


def test_what_the_first_start_resolved_is_kept_by_the_next(tmp_path: Path) -> None:
    recipe = Config().with_overrides({"method.name": "supervised", "model.init": "file"})
    found = {"method.classes": 10, "evaluate.probe_classes": 10, "model.init_sha256": "1", "train.precision": "bf16"}
    earlier = recipe.with_overrides(found)
    assert as_resolved(recipe, earlier) == earlier
    other = recipe.with_overrides(
        {"method.classes": 9, "evaluate.probe_classes": 9, "model.init": "other", "train.precision": "float32"}
    )
    assert as_resolved(other, earlier) == other
    assert as_resolved(Config(), earlier) == Config().with_overrides(
        {"train.precision": "bf16", "evaluate.probe_classes": 10}
    )
