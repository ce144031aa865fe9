"""Preparation without a cluster: which bytes are kept, which images are left out, their order, and interruptions."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from image_sources import contents, encoded, save_folder, save_parquet, save_tars, values
from simclr_ray.config import BadInput
from simclr_ray.data.dataset import IMAGE, Dataset, bad_images, is_dataset, open_dataset
from simclr_ray.data.decode import decode
from simclr_ray.data.prepare import shuffle
from simclr_ray.data.prepare.build import check, in_threads, ordered_work, write_dataset
from simclr_ray.data.prepare.shuffle import shuffled
from simclr_ray.data.prepare.source import Source, open_source
from simclr_ray.data.prepare.writer import require_writable
from simclr_ray.storage.location import open_location


def prepared(spec: str, dest: Path, *, seed: int = 0, max_side: int | None = None) -> Dataset:
    source, location = open_source(spec), open_location(str(dest))
    require_writable(location)
    checked = in_threads(source, ordered_work(source, seed), max_side)
    return write_dataset(source, location, checked, seed=seed, max_side=max_side, slice_rows=8)


def test_a_folder_is_permuted_by_the_seed_and_keeps_its_labels(tmp_path: Path) -> None:
    spec = save_folder(tmp_path / "in", 100)
    dataset = prepared(spec, tmp_path / "a")
    order = values(dataset)
    assert sorted(order) == list(range(100))
    assert order != sorted(order)
    table = contents(dataset)
    assert table["id"].to_pylist() == list(range(100))
    assert table["label"].to_pylist() == [i % 4 for i in order]
    assert table["path"].to_pylist() == [f"class{i % 4}/{i:04d}.png" for i in order]
    assert dataset.pixel_bytes == 100 * 9 * 6 * 3
    assert dataset.source["spec"] == spec
    assert open_dataset(str(tmp_path / "a")) == dataset
    assert prepared(spec, tmp_path / "same").fingerprint == dataset.fingerprint
    assert values(prepared(spec, tmp_path / "other", seed=1)) != order


def test_bad_images_are_left_out_and_listed(tmp_path: Path) -> None:
    dataset = prepared(save_folder(tmp_path / "in", 40, bad=(3, 17)), tmp_path / "a")
    assert (dataset.rows, dataset.bad) == (38, 2)
    assert sorted(values(dataset)) == [i for i in range(40) if i not in (3, 17)]
    assert [bad["path"] for bad in bad_images(dataset)] == ["class1/0017.png", "class3/0003.png"]
    assert all(bad["problem"] for bad in bad_images(dataset))


def test_bytes_are_kept_unless_format_or_size_need_re_encoding(tmp_path: Path) -> None:
    kinds = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
    images = [encoded(90, kind, (40, 20)) for kind in kinds]
    table = pa.table([images, [0] * 6, kinds], schema=IMAGE)
    kept = check(table, None)["image"].to_pylist()
    assert kept[:3] == images[:3]
    for before, after in zip(images[3:], kept[3:], strict=True):
        assert after.startswith(b"\x89PNG")
        assert np.array_equal(decode(before), decode(after))
    assert check(table, 40)["image"].to_pylist() == kept
    for shrunk, size in zip(check(table, 16)["image"].to_pylist(), check(table, 16)["pixel_bytes"], strict=True):
        assert decode(shrunk).shape == (8, 16, 3)
        assert size.as_py() == 8 * 16 * 3
        assert abs(int(decode(shrunk)[0, 0, 0]) - 90) < 3


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    stream = io.BytesIO()
    Image.fromarray(stripes).save(stream, "PNG")
    shrunk = check(pa.table([[stream.getvalue()], [0], ["x"]], schema=IMAGE), 16)["image"][0].as_py()
    assert np.abs(decode(shrunk).astype(int) - 128).max() < 12


def test_negative_labels_mean_none() -> None:
    table = pa.table([[encoded(1)] * 3, [-1, 2, None], ["a", "b", "c"]], schema=IMAGE)
    assert check(table, None)["label"].to_pylist() == [None, 2, None]


@pytest.mark.parametrize("save", [save_tars, save_parquet])
def test_archives_sorted_by_class_come_out_shuffled(tmp_path: Path, save: Callable[[Path], str]) -> None:
    spec = save(tmp_path / "in")
    dataset = prepared(spec, tmp_path / "a")
    order = values(dataset)
    assert sorted(order) == [i for i in range(120) if i != 5]
    assert contents(dataset)["label"].to_pylist() == [i // 40 for i in order]
    assert dataset.bad == 1
    # Each class in each third: a sorted order would have one class in each.
    for third in (order[:40], order[40:80], order[80:]):
        assert min(np.bincount([i // 40 for i in third], minlength=3)) >= 5
    assert prepared(spec, tmp_path / "same").fingerprint == dataset.fingerprint
    assert values(prepared(spec, tmp_path / "other", seed=1)) != order
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"shard-00000.parquet", "bad.jsonl", "dataset.json"}


def numbered(start: int, stop: int) -> pa.Table:
    names = [str(i) for i in range(start, stop)]
    return pa.table([[name.encode() for name in names], list(range(start, stop)), names], schema=IMAGE)


@pytest.mark.parametrize("chunks", [[0, 3000], [0, 1, 700, 701, 3000]])
@pytest.mark.parametrize(("bucket_bytes", "most_buckets"), [(1 << 30, 400), (4096, 400), (1024, 3)])
def test_the_shuffle_depends_on_the_seed_alone(
    monkeypatch: pytest.MonkeyPatch, chunks: list[int], bucket_bytes: int, most_buckets: int
) -> None:
    monkeypatch.setattr(shuffle, "KEYS", 512)
    monkeypatch.setattr(shuffle, "MOST_BUCKETS", most_buckets)
    distribute, divided = shuffle._distribute, set[range]()

    def noted(keyed: Iterator[pa.Table], keys: range, *rest: Any) -> list[int]:
        divided.add(keys)
        return distribute(keyed, keys, *rest)

    monkeypatch.setattr(shuffle, "_distribute", noted)

    def order() -> list[int]:
        tables = (numbered(start, stop) for start, stop in pairwise(chunks))
        return pa.concat_tables(shuffled(tables, 7, 30_000, None))["label"].to_pylist()

    monkeypatch.setattr(shuffle, "BUCKET_BYTES", bucket_bytes)
    monkeypatch.setattr(shuffle, "FLUSH_BYTES", 2000 if bucket_bytes < 1 << 30 else 1 << 30)
    found = order()
    assert (len(divided) > 1) == (most_buckets == 3)
    assert sorted(found) == list(range(3000))
    keys = [shuffle.sort_words(7, draw, shuffle.PREPARE, 512) for draw in range(6)]
    assert found == np.argsort(np.concatenate(keys)[:3000], kind="stable").tolist()


def test_an_interrupted_preparation_is_no_dataset_and_can_be_repeated(tmp_path: Path) -> None:
    spec = save_folder(tmp_path / "in", 60)
    source, location = open_source(spec), open_location(str(tmp_path / "a"))

    def interrupted() -> object:
        for number, table in enumerate(in_threads(source, ordered_work(source, 0), None)):
            if number == 0:
                yield table.slice(0, 20)
        raise KeyboardInterrupt

    require_writable(location)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(source, location, interrupted(), seed=0, max_side=None, slice_rows=8)  # type: ignore[arg-type]
    assert not is_dataset(str(tmp_path / "a"))
    assert prepared(spec, tmp_path / "a").fingerprint == prepared(spec, tmp_path / "b").fingerprint


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    spec = save_folder(tmp_path / "in", 10)
    prepared(spec, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, reason in [("a", "is a prepared dataset already"), ("mine", "not empty"), ("file", "cannot write to")]:
        with pytest.raises(BadInput, match=reason) as raised:
            prepared(spec, tmp_path / name)
        assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert (tmp_path / "mine" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_source_without_a_usable_image_is_bad_input(tmp_path: Path) -> None:
    spec = save_folder(tmp_path / "in", 6, bad=tuple(range(6)))
    with pytest.raises(BadInput, match=r"no usable image in .*: all 6 are bad, first class\d/000\d.png: "):
        prepared(spec, tmp_path / "a")
    assert not is_dataset(str(tmp_path / "a"))


def test_reading_stays_a_few_tasks_ahead_of_writing() -> None:
    """Memory holds a few tasks, however large the source."""
    read = []

    def images(work: pa.Table) -> object:
        read.append(work["index"][0].as_py())
        yield pa.table([[encoded(1)], [0], ["x"]], schema=IMAGE)

    source = Source(
        spec="x", digest="x", work=pa.table({"index": list(range(500))}), listed=False, read=images,  # type: ignore[arg-type]
        classes=None, rows=500, bytes=500 * 2**25,
    )  # fmt: skip
    stream = in_threads(source, source.work, None)
    next(stream)
    assert len(read) < 40
    assert sum(table.num_rows for table in stream) == 499
