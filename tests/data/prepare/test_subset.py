"""A part of a dataset: the same share of every class, or listed images; its rows are the dataset's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.prepare.build import prepare_here
from simclr_ray.data.prepare.subset import (
    balanced_rows,
    count_classes,
    in_enough_slices,
    listed_rows,
    subset_into,
    take_part,
)
from small_runs import synthetic_dataset

ROWS = 230


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return synthetic_dataset(tmp_path_factory.mktemp("data") / "d", ROWS)


def table_of(dataset: Dataset) -> pa.Table:
    return pa.concat_tables(SliceReader(dataset).rows(0, dataset.rows))


def test_each_class_gives_its_share(dataset: Dataset) -> None:
    labels = table_of(dataset)["label"].to_numpy()
    per_class = Counter(labels)
    for fraction in (0.001, 0.1, 0.5, 1.0):
        rows = balanced_rows(dataset, fraction, seed=0)
        assert len(set(rows)) == len(rows)
        assert Counter(labels[rows]) == {label: max(1, round(fraction * per_class[label])) for label in per_class}
    assert set(balanced_rows(dataset, 0.1, seed=0)) < set(balanced_rows(dataset, 0.5, seed=0))
    assert set(balanced_rows(dataset, 0.1, seed=0)) != set(balanced_rows(dataset, 0.1, seed=1))
    assert count_classes(dataset) == 10


def test_the_part_holds_the_images_of_its_rows_in_their_order(dataset: Dataset, tmp_path: Path) -> None:
    part = subset_into(str(tmp_path), dataset, 0.3, seed=2)
    rows = balanced_rows(dataset, 0.3, seed=2)
    expected = table_of(dataset).take(rows).drop_columns(["id"])
    assert table_of(part).drop_columns(["id"]).equals(expected)
    assert (part.classes, part.labelled, part.rows) == (dataset.classes, True, len(rows))
    assert part.slice_rows == 1  # 69 images: slices of 8 would leave 5 out
    assert part.source["spec"] == "synthetic:230: 30 % of each class, seed 2"
    again = subset_into(str(tmp_path), dataset, 0.3, seed=2)
    assert (again.uri, again.fingerprint) == (part.uri, part.fingerprint)
    assert subset_into(str(tmp_path), dataset, 1.0, seed=2) is dataset


def test_a_list_names_paths_or_files(dataset: Dataset, tmp_path: Path) -> None:
    table = table_of(dataset)
    paths = table["path"].to_pylist()
    (tmp_path / "list.txt").write_text(f"{paths[200]}\n{paths[7].rpartition('/')[2]}\n\n")
    part = take_part(dataset.uri, str(tmp_path / "part"), fraction=None, paths=str(tmp_path / "list.txt"), seed=0)
    assert table_of(part)["image"].to_pylist() == table.take(np.array([7, 200]))["image"].to_pylist()


def test_a_file_name_that_several_images_have_is_refused(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for name, colour in (("0001.png", 10), (f"{folder}.png", 90)):
            Image.new("RGB", (8, 8), (colour, len(folder), ord(folder[0]))).save(tmp_path / "photos" / folder / name)
    both = prepare_here(str(tmp_path / "photos"), str(tmp_path / "d"), slice_rows=2)
    paths = table_of(both)["path"].to_pylist()
    assert list(listed_rows(both, ["cat.png"])) == [next(i for i, path in enumerate(paths) if path.endswith("cat.png"))]
    whole = next(path for path in paths if path.endswith("dog/0001.png"))
    assert list(listed_rows(both, [whole])) == [paths.index(whole)]
    with pytest.raises(BadInput, match="has 2 images called 0001.png: list their whole paths"):
        listed_rows(both, ["0001.png"])


@pytest.mark.parametrize("rows", [30, 60, 150])
def test_a_small_dataset_loses_few_images_in_its_last_slice(rows: int, tmp_path: Path) -> None:
    whole = synthetic_dataset(tmp_path / "d", rows, slice_rows=32)
    part = in_enough_slices(str(tmp_path), whole)
    assert part.slices >= min(100, rows)
    assert table_of(part)["image"].to_pylist() == table_of(whole)["image"].to_pylist()
    assert in_enough_slices(str(tmp_path), part) is part
    assert in_enough_slices(str(tmp_path), whole).uri == part.uri


def test_what_cannot_be_taken(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("absent.jpg\n")
    (tmp_path / "empty.txt").write_text("\n")
    dest = str(tmp_path / "part")
    for source, fraction, paths, problem in (
        (dataset.uri, 0.0, None, r"fraction must lie in \(0, 1\]"),
        (dataset.uri, 0.1, "list.txt", "not by both"),
        (dataset.uri, None, "list.txt", "has no image absent.jpg, nor 0 others of 1 listed"),
        (dataset.uri, None, "empty.txt", "no image of .* is wanted"),
        (dataset.uri, None, "gone.txt", "cannot read .*gone.txt"),
        (str(tmp_path), 0.1, None, "is not a prepared dataset: prepare it first"),
    ):
        with pytest.raises(BadInput, match=problem):
            take_part(source, dest, fraction=fraction, paths=paths and str(tmp_path / paths), seed=0)
    assert not Path(dest, "dataset.json").exists()
