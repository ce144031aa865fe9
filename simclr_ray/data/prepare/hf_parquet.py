"""Parquet files of images as Hugging Face datasets writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import IMAGE
from simclr_ray.storage.location import Location

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")  # CIFAR-100 has the second
BATCH_ROWS = 256
FOOTER_REQUESTS = 16


@dataclass(frozen=True)
class Layout:
    """Which columns the images and labels are in, and the class names."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def list_groups(location: Location, names: list[str]) -> tuple[pa.Table, Layout]:
    """A row (name, group, first, rows) for each row group, from the footers; the layout that all files share."""
    shared: Layout | None = None
    rows: list[np.ndarray] = []
    with ThreadPoolExecutor(FOOTER_REQUESTS) as pool:
        # One after the other: all footers together would be gigabytes where there are many files.
        for name, (layout, groups) in zip(names, pool.map(lambda name: _groups(location / name), names), strict=True):
            shared = shared or layout
            if layout != shared:
                raise BadInput(f"{location / name} and {location / names[0]} differ in their columns or class names")
            rows.append(groups)
    counts = [len(groups) for groups in rows]
    if shared is None or not sum(counts):
        raise BadInput(f"no images in {location}: its Parquet files have no rows")
    columns = {
        "name": pa.array(names).take(np.repeat(np.arange(len(names)), counts)),
        "group": np.concatenate([np.arange(count) for count in counts]),
        "first": np.concatenate([np.cumsum(groups) - groups for groups in rows]),
        "rows": np.concatenate(rows),
    }
    return pa.table(columns), shared


def read(location: Location, layout: Layout, work: pa.Table) -> Iterator[pa.Table]:
    """The images of these row groups, in batches."""
    columns = [layout.image] + ([layout.label] if layout.label else [])
    for piece in work.to_pylist():
        where, row = location / piece["name"], piece["first"]
        with where.reading() as stream:
            batches = pq.ParquetFile(stream).iter_batches(BATCH_ROWS, [piece["group"]], columns)
            for batch in batches:
                yield _images(batch, layout, f"{piece['name']}:", row)
                row += batch.num_rows


def _groups(where: Location) -> tuple[Layout, np.ndarray]:
    """The layout of a file, and the rows of its row groups."""
    try:
        with where.reading() as stream:
            opened = pq.ParquetFile(stream)
            # Not footer.schema: footer and schema hold each other, and wait for the garbage collector.
            footer, schema = opened.metadata, opened.schema_arrow
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{where} is no Parquet file that can be read: {reason}") from None
    rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    return _layout(where, schema), np.array(rows, np.int64)


def _layout(where: Location, schema: pa.Schema) -> Layout:
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    if image is None:
        raise BadInput(f"{where} has no column image or img; its columns are {', '.join(schema.names)}")
    kind = schema.field(image).type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise BadInput(f"{where}: column {image} must hold encoded images, but is {kind}")
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if label and not pa.types.is_integer(schema.field(label).type):
        raise BadInput(f"{where}: column {label} must be whole numbers, but is {schema.field(label).type}")
    return Layout(image, label, _class_names(schema, label) if label else None)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = described.get("info", {}).get("features", {}).get(label, {}).get("names")
    return tuple(names) if names else None


def _images(batch: pa.RecordBatch, layout: Layout, prefix: str, first: int) -> pa.Table:
    """The rows of a batch; an image without a path of its own is named by file and row."""
    images = batch[layout.image]
    given: list[str | None] = [None] * batch.num_rows
    if pa.types.is_struct(images.type):
        if images.type.get_field_index("path") >= 0:
            given = pc.struct_field(images, "path").to_pylist()
        images = pc.struct_field(images, "bytes")
    paths = [path or f"{prefix}{first + i}" for i, path in enumerate(given)]
    labels = batch[layout.label].cast(pa.int32()) if layout.label else pa.nulls(batch.num_rows, pa.int32())
    return pa.table([images.cast(pa.binary()), labels, paths], schema=IMAGE)
