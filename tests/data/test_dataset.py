"""The dataset contract: a written dataset is read back slice by slice, and errors are BadInput of one line."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simclr_ray.config import BadInput
from simclr_ray.data import dataset as dataset_module
from simclr_ray.data.dataset import SCHEMA, Dataset, SliceReader, bad_images, is_dataset, open_dataset
from simclr_ray.data.prepare import writer as writer_module
from simclr_ray.data.prepare.writer import CHECKED, DatasetWriter
from simclr_ray.storage.location import open_location

SOURCE = {"spec": "here", "digest": "d", "seed": 0, "max_side": None}


def checked(start: int, stop: int, labels: bool = True) -> pa.Table:
    """Rows start..stop - 1 of a made-up source; every seventh is bad."""
    rows = [
        {"image": None, "label": i % 3, "path": f"p{i}", "pixel_bytes": None, "problem": "torn"}
        if i % 7 == 6
        else {"image": b"%d" % i * 50, "label": i % 3 if labels else None, "path": f"p{i}", "pixel_bytes": 12}
        for i in range(start, stop)
    ]
    return pa.Table.from_pylist(rows, CHECKED)


def write(folder: Path, pieces: list[tuple[int, int]], labels: bool = True) -> Dataset:
    with DatasetWriter(open_location(str(folder)), slice_rows=4) as writer:
        for start, stop in pieces:
            writer.add(checked(start, stop, labels))
        return writer.finish(("a", "b", "c"), SOURCE)


def good(count: int) -> list[int]:
    return [i for i in range(count) if i % 7 != 6]


def test_a_dataset_is_read_back_slice_by_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1000)
    written = write(tmp_path / "d", [(0, 50)])
    dataset = pickle.loads(pickle.dumps(open_dataset(str(tmp_path / "d"))))
    assert dataset == written
    kept = good(50)
    assert (dataset.rows, dataset.slices, dataset.pixel_bytes) == (len(kept), 11, 12 * len(kept))
    assert dataset.classes == ("a", "b", "c")
    assert dataset.labelled
    assert len(dataset.shards) > 2
    assert all(shard.rows % 4 == 0 for shard in dataset.shards[:-1])
    reader = SliceReader(dataset)
    for g in (10, 0, 5, 4):
        table = reader.read_slice(g)
        assert table.schema.equals(SCHEMA)
        assert table["id"].to_pylist() == list(range(4 * g, min(4 * g + 4, len(kept))))
        assert table["path"].to_pylist() == [f"p{i}" for i in kept[4 * g : 4 * g + 4]]
        assert table["image"].to_pylist() == [b"%d" % i * 50 for i in kept[4 * g : 4 * g + 4]]
    ids = pa.concat_tables(reader.rows(3, 18))["id"].to_pylist()
    assert ids == list(range(3, 18))
    with pytest.raises(IndexError):
        reader.read_slice(11)


def test_a_slice_is_one_row_group_and_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1000)
    for limit, value in (("OPEN_FILES", 2), ("PARSED_SLICES", 3), ("FOOTER_BYTES", 2000)):
        monkeypatch.setattr(dataset_module, limit, value)
    dataset = write(tmp_path, [(0, 50)])
    for shard in dataset.shards:
        footer = pq.ParquetFile(tmp_path / shard.name).metadata
        assert {footer.row_group(i).num_rows for i in range(footer.num_row_groups - 1)} <= {4}
    reader = SliceReader(dataset)
    for g in [*range(dataset.slices), *range(dataset.slices)]:
        assert reader.read_slice(g)["id"][0].as_py() == 4 * g
    opened = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert len([path for path in opened if path.parent == tmp_path]) == 2
    assert sum(footer.num_row_groups for footer in reader._parsed._values.values()) <= 3


def test_a_shard_of_small_images_has_few_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_SLICES", 3)
    dataset = write(tmp_path, [(0, 50)])
    assert [shard.rows for shard in dataset.shards] == [12, 12, 12, 7]
    assert pa.concat_tables(SliceReader(dataset).rows(0, 43))["id"].to_pylist() == list(range(43))


def test_the_shards_do_not_depend_on_how_rows_arrive(tmp_path: Path) -> None:
    one, many = write(tmp_path / "one", [(0, 50)]), write(tmp_path / "many", [(0, 3), (3, 3), (3, 41), (41, 50)])
    assert one.fingerprint == many.fingerprint
    assert (tmp_path / "one" / "shard-00000.parquet").read_bytes() == (
        tmp_path / "many" / "shard-00000.parquet"
    ).read_bytes()
    assert write(tmp_path / "fewer", [(0, 49)]).fingerprint != one.fingerprint
    assert write(tmp_path / "unlabelled", [(0, 50)], labels=False).fingerprint != one.fingerprint
    assert not open_dataset(str(tmp_path / "unlabelled")).labelled


def test_bad_images_are_listed(tmp_path: Path) -> None:
    dataset = write(tmp_path, [(0, 20)])
    assert dataset.bad == 2
    assert bad_images(dataset) == [{"path": "p13", "problem": "torn"}, {"path": "p6", "problem": "torn"}]


def test_an_interrupted_write_is_no_dataset_and_the_next_one_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1000)
    with contextlib.suppress(KeyboardInterrupt), DatasetWriter(open_location(str(tmp_path)), slice_rows=4) as writer:
        writer.add(checked(0, 200))
        raise KeyboardInterrupt
    assert not is_dataset(str(tmp_path))
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) > 5
    dataset = write(tmp_path, [(0, 30)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {shard.name for shard in dataset.shards} | {"bad.jsonl", "dataset.json"}
    assert sum(pq.read_metadata(tmp_path / shard.name).num_rows for shard in dataset.shards) == len(good(30))


def test_a_folder_that_is_no_dataset_is_bad_input_of_one_line(tmp_path: Path) -> None:
    write(tmp_path / "newer", [(0, 9)])
    write(tmp_path / "torn", [(0, 9)])
    newer = tmp_path / "newer" / "dataset.json"
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"format": 99}))
    torn = tmp_path / "torn" / "dataset.json"
    torn.write_text(torn.read_text()[:80])
    (tmp_path / "file").write_text("x")
    for name, reason in [
        ("missing", "is not a prepared dataset"),
        ("file", "is not a prepared dataset"),
        ("newer", "format 99"),
        ("torn", "damaged"),
    ]:
        with pytest.raises(BadInput, match=reason) as raised:
            open_dataset(str(tmp_path / name))
        assert "\n" not in str(raised.value)
    assert not is_dataset(str(tmp_path / "missing"))


def test_a_missing_or_damaged_shard_is_named(tmp_path: Path) -> None:
    dataset = write(tmp_path, [(0, 30)])
    shard = tmp_path / dataset.shards[0].name
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=r"shard-00000.parquet is missing or damaged"):
        SliceReader(dataset).read_slice(0)
    shard.unlink()
    with pytest.raises(BadInput, match=r"shard-00000.parquet is missing or damaged"):
        SliceReader(dataset).read_slice(0)


def test_a_label_without_a_class_name_is_refused(tmp_path: Path) -> None:
    with DatasetWriter(open_location(str(tmp_path)), 4) as writer:
        writer.add(checked(0, 6))
        with pytest.raises(BadInput, match="label 2 but only 2 class names"):
            writer.finish(("a", "b"), SOURCE)
    assert not is_dataset(str(tmp_path))
