"""Small sources of images as files: a folder, Parquet, tars; and what a dataset made of them holds."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.decode import decode


def encoded(value: int, kind: str = "PNG", size: tuple[int, int] = (9, 6)) -> bytes:
    """A small image that says which one it is: its first pixel is about `value`."""
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, kind)
    return stream.getvalue()


def save_folder(root: Path, count: int, bad: tuple[int, ...] = ()) -> str:
    for i in range(count):
        path = root / f"class{i % 4}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if i in bad else encoded(i))
    return str(root)


def save_parquet(root: Path) -> str:
    root.mkdir()
    for part in range(3):
        images = [{"bytes": encoded(i) if i != 5 else None, "path": None} for i in range(40 * part, 40 * part + 40)]
        pq.write_table(pa.table({"image": images, "label": [part] * 40}), root / f"{part}.parquet", row_group_size=16)
    return str(root)


def save_tars(root: Path) -> str:
    root.mkdir()
    for part in range(3):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            for i in range(40 * part, 40 * part + 40):
                for suffix, content in ((".cls", str(part).encode()), (".png", encoded(i) if i != 5 else b"torn")):
                    member = tarfile.TarInfo(f"{i:05d}{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return str(root)


def contents(dataset: Dataset) -> pa.Table:
    return pa.concat_tables(SliceReader(dataset).rows(0, dataset.rows))


def values(dataset: Dataset) -> list[int]:
    return [int(decode(image.as_py())[0, 0, 0]) for image in contents(dataset)["image"]]
