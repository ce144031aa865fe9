"""Source strings: the files they list, their labels, and errors of one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from simclr_ray.config import BadInput
from simclr_ray.data.prepare import webdataset
from simclr_ray.data.prepare.source import Source, open_source, source_digest
from simclr_ray.storage import object_store
from simclr_ray.storage.location import open_location


def image(value: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (value, 255 - value, 7)).save(stream, kind)
    return stream.getvalue()


def save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def rows(source: Source) -> list[dict]:
    return pa.concat_tables(source.read(source.work)).to_pylist()


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("dog/a/1.PNG", "dog/2.jpeg", "Cat/3.png", "ant/4.webp", "ant/notes.txt", "ant/.hidden.png"):
        save(tmp_path / name, b"content of " + name.encode())
    source = open_source(str(tmp_path))
    assert source.classes == ("Cat", "ant", "dog")
    found = {row["path"]: (row["label"], row["image"]) for row in rows(source)}
    assert found == {
        "dog/a/1.PNG": (2, b"content of dog/a/1.PNG"),
        "dog/2.jpeg": (2, b"content of dog/2.jpeg"),
        "Cat/3.png": (0, b"content of Cat/3.png"),
        "ant/4.webp": (1, b"content of ant/4.webp"),
    }
    assert (source.rows, source.listed) == (4, True)


@pytest.mark.parametrize("names", [["1.png", "2.jpg"], ["a/1.png", "b/2.png", "3.png"], ["only/1.png", "only/2.png"]])
def test_without_class_folders_there_are_no_labels(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        save(tmp_path / name, b"x")
    source = open_source(str(tmp_path))
    assert source.classes is None
    assert [row["label"] for row in rows(source)] == [None] * len(names)


def test_a_link_back_to_a_folder_around_it_repeats_no_file(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / name, b"x")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "b/beside").symlink_to(tmp_path / "a")
    (tmp_path / "b/nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "b/itself.png").symlink_to(tmp_path / "b/itself.png")
    found = [entry.name for entry in open_location(str(tmp_path)).files()]
    assert found == ["a/1.png", "b/2.png", "b/beside/1.png"]


def test_what_the_user_may_not_expect_of_a_folder_is_said(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", "cover.png", "b/3.HEIC", "b/4.heic", "b/5.avif", "notes.txt"):
        save(tmp_path / name, b"x")
    assert open_source(str(tmp_path)).remarks == (
        "left out, in formats that are not read: 1 .avif, 2 .heic",
        "no image has a label: 1, such as cover.png, lie outside the 2 class folders",
    )
    assert open_source(str(tmp_path / "a")).remarks == ()


def test_a_pattern_is_about_its_folder_alone(tmp_path: Path) -> None:
    """The dataset that was prepared from it into a folder below it is none of it."""
    for name in ("a.tar", "runs/data/x/b.tar"):
        save(tmp_path / name, b"x")
    assert open_source(f"{tmp_path}/*.tar").work["name"].to_pylist() == ["a.tar"]


def test_a_task_of_large_images_is_no_larger_than_the_others(tmp_path: Path) -> None:
    for number in range(8):
        with open(tmp_path / f"{number}.tif", "wb") as file:
            file.truncate(16 * 2**20)
    assert open_source(str(tmp_path)).rows_per_task == 2


def hugging_face(path: Path, column: str, plain: bool, labels: list[int] | None) -> None:
    images = [image(i) for i in range(5)]
    cells = images if plain else [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    columns: dict = {column: cells} | ({"label": labels} if labels else {})
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    described = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(described if labels else None), path, row_group_size=2)


def test_hugging_face_parquet_gives_images_labels_and_classes(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", "img", plain=False, labels=[0, 1, 1, 0, 1])
    source = open_source(str(tmp_path / "a.parquet"))
    assert (source.classes, source.rows, source.listed) == (("no", "yes"), 5, False)
    assert [row["label"] for row in rows(source)] == [0, 1, 1, 0, 1]
    assert [row["image"] for row in rows(source)] == [image(i) for i in range(5)]
    assert rows(source)[4]["path"] == "4.png"


def test_parquet_of_plain_bytes_without_labels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        hugging_face(tmp_path / f"{name}.parquet", "image", plain=True, labels=None)
    source = open_source(str(tmp_path))
    assert source.classes is None
    assert [row["path"] for row in rows(source)] == [f"{name}.parquet:{i}" for name in "ab" for i in range(5)]
    assert {row["label"] for row in rows(source)} == {None}


def test_webdataset_tars_give_images_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "BATCH_ROWS", 2)
    tar(tmp_path / "b.tar", [("x/3.jpg", b"three"), ("x/3.cls", b"7\n"), ("x/4.jpg", b"four")])
    tar(tmp_path / "a.tar", [("1.cls", b"5"), ("1.left.png", b"l"), ("1.right.png", b"r"), ("1.json", b"{}")])
    source = open_source(str(tmp_path))
    assert [(row["path"], row["image"], row["label"]) for row in rows(source)] == [
        ("a.tar:1.left.png", b"l", 5),
        ("a.tar:1.right.png", b"r", 5),
        ("b.tar:x/3.jpg", b"three", 7),
        ("b.tar:x/4.jpg", b"four", None),
    ]


def test_a_pattern_chooses_files(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        hugging_face(tmp_path / f"{name}.parquet", "image", plain=True, labels=None)
    assert open_source(f"{tmp_path}/train-*").rows == 10
    assert open_source(f"{tmp_path}/test-0.parquet").rows == 5


def test_the_digest_follows_the_listing(tmp_path: Path) -> None:
    save(tmp_path / "a.png", b"12")
    before = source_digest(str(tmp_path))
    assert before == open_source(str(tmp_path)).digest
    save(tmp_path / "notes.txt", b"nothing to do with it")
    assert source_digest(str(tmp_path)) == before
    save(tmp_path / "a.png", b"123")
    assert source_digest(str(tmp_path)) != before
    assert source_digest("synthetic:40") == open_source("synthetic:40").digest != source_digest("synthetic:41")


def make_bad(root: Path) -> None:
    (root / "empty").mkdir()
    save(root / "words/readme.txt", b"words")
    save(root / "mixed/a.png", b"x")
    save(root / "mixed/b.parquet", b"x")
    save(root / "one.png", b"x")
    save(root / "torn/a.parquet", b"PAR1 and so on")
    save(root / "splits/train/a/1.png", b"x")
    save(root / "splits/val/a/1.png", b"x")
    save(root / "prepared/dataset.json", b"{}")
    (root / "columns").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), root / "columns/a.parquet")
    (root / "strings").mkdir()
    pq.write_table(pa.table({"image": [b"x"], "label": ["cat"]}), root / "strings/a.parquet")
    (root / "pixels").mkdir()
    pq.write_table(pa.table({"image": [[1, 2, 3]]}), root / "pixels/a.parquet")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "does not exist"),
        ("empty", "no images in .*: it holds no files"),
        ("words", "no images in .*: it holds 1 files of other kinds"),
        ("mixed", "holds 1 images and 1 Parquet files"),
        ("one.png", "is a single image"),
        ("torn", "a.parquet is no Parquet file"),
        ("splits", "holds the splits train, val: name one of them"),
        ("prepared", "is a prepared dataset already"),
        ("columns", "has no column image or img; its columns are text"),
        ("strings", "column label must be whole numbers"),
        ("pixels", "column image must hold encoded images"),
        ("none-*", "no images in"),
    ],
)
def test_an_unusable_source_is_bad_input_of_one_line(tmp_path: Path, name: str, reason: str) -> None:
    make_bad(tmp_path)
    with pytest.raises(BadInput, match=reason) as raised:
        open_source(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", b"x")
    os.rename(tmp_path / "a.png", bytes(tmp_path) + b"/\xff.png")
    with pytest.raises(BadInput, match="name is not UTF-8"):
        open_source(str(tmp_path))


def test_unknown_schemes_and_unreachable_stores_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.1)
    for spec in ("ftp://host/images", "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=x"):
        with pytest.raises(BadInput, match="cannot") as raised:
            open_source(spec)
        assert "\n" not in str(raised.value)


def test_the_options_of_a_uri_stay_at_its_end() -> None:
    shards = open_location("s3://bucket/data?region=us-east-1") / "a.tar"
    assert (shards.uri, shards.path) == ("s3://bucket/data/a.tar?region=us-east-1", "bucket/data/a.tar")
    assert pickle.loads(pickle.dumps(shards)).path == shards.path
    assert shards.parent.uri == "s3://bucket/data?region=us-east-1"


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "cut.tar", [("1.jpg", b"x" * 9000)])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:2000])
    with pytest.raises(BadInput, match=r"cut.tar is a damaged tar"):
        rows(open_source(str(tmp_path / "cut.tar")))
    tar(tmp_path / "words.tar", [("1.jpg", b"x"), ("1.cls", b"cat")])
    with pytest.raises(BadInput, match=r"1.cls must hold the number of a class"):
        rows(open_source(str(tmp_path / "words.tar")))


@pytest.mark.parametrize("damage", ["flipped", "in a header", "between members", "unfilled", "joined"])
def test_no_image_of_a_damaged_tar_is_lost_in_silence(tmp_path: Path, damage: str) -> None:
    tar(tmp_path / "a.tar", [(f"{number}.jpg", b"x" * 5000) for number in range(8)])
    whole = (tmp_path / "a.tar").read_bytes()
    assert len(rows(open_source(str(tmp_path / "a.tar")))) == 8
    third = whole.index(b"3.jpg")
    damaged = {
        "flipped": whole[:third] + b"4" + whole[third + 1 :],
        "in a header": whole[: third + 100],
        "between members": whole[:third],
        "unfilled": whole[:third] + bytes(2 * 2**20),
        "joined": whole + whole,
    }
    (tmp_path / "a.tar").write_bytes(damaged[damage])
    with pytest.raises(BadInput, match=r"a.tar is a damaged tar"):
        rows(open_source(str(tmp_path / "a.tar")))


def test_an_image_deleted_after_the_listing_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", b"x")
    source = open_source(str(tmp_path))
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadInput, match=r"a.png was listed but cannot be read on"):
        rows(source)
