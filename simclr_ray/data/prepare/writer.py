"""Writes a dataset: shards of whole slices first, dataset.json last, so that an incomplete one is not a dataset."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import BAD_LIST, IMAGE, INDEX, SCHEMA, Dataset, Shard, is_dataset, open_dataset
from simclr_ray.storage.location import Location

# The writer's input: IMAGE and the result of the check. `pixel_bytes`: decoded size; `problem`: null for a good image.
CHECKED = IMAGE.append(pa.field("pixel_bytes", pa.int64())).append(pa.field("problem", pa.string()))

SHARD_BYTES = 256 * 2**20
SHARD_SLICES = 256
"""Of small images fewer bytes make a shard: a slice takes as long to read as the footer, which lists every slice."""
OURS = re.compile(rf"shard-\d+\.parquet|{re.escape(BAD_LIST)}")


def require_writable(dest: Location) -> None:
    """Raises BadInput unless `dest` can be written and is empty but for the files of an interrupted prepare."""
    if is_dataset(dest.uri):
        raise BadInput(f"{dest} is a prepared dataset already: use it, or choose another place")
    try:
        for entry in dest.files():
            if not OURS.fullmatch(entry.name):
                raise BadInput(f"{dest} is not empty (it holds {entry.name}): choose a new place for the dataset")
        probe = dest / BAD_LIST
        probe.write_bytes(b"")
        probe.delete()
    except OSError as error:
        raise BadInput(f"cannot write to {dest}: {str(error).splitlines()[0]}; choose another place") from None


class DatasetWriter:
    """Writes checked images in the given order. The shards do not depend on how the images are split into tables."""

    def __init__(self, dest: Location, slice_rows: int) -> None:
        self._dest, self._slice_rows = dest, slice_rows
        self._waiting = CHECKED.empty_table()
        self._bad: list[dict[str, str]] = []
        self._rows = self._pixel_bytes = self._unlabelled = 0
        self._top_label = 0
        self._digest = hashlib.sha256(f"slices of {slice_rows}\n".encode())
        self._shards: list[Shard] = []
        self._shard_rows = self._shard_bytes = 0
        self._closing = ExitStack()
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._closing.__exit__(*raised)

    def add(self, checked: pa.Table) -> None:
        """Adds the next images, as CHECKED; those with a problem are only listed."""
        good = pc.is_null(checked["problem"])
        self._bad += checked.filter(pc.invert(good)).select(["path", "problem"]).to_pylist()
        self._waiting = pa.concat_tables([self._waiting, checked.filter(good)])
        while self._waiting.num_rows >= self._slice_rows:
            self._write_slice(self._waiting.slice(0, self._slice_rows))
            self._waiting = self._waiting.slice(self._slice_rows)

    def finish(self, classes: tuple[str, ...] | None, source: dict[str, Any]) -> Dataset:
        """Writes the rest, the list of bad images and, last, dataset.json. Raises BadInput if no image is good."""
        if self._waiting.num_rows:
            self._write_slice(self._waiting)
        if self._rows == 0:
            first = f", first {self._bad[0]['path']}: {self._bad[0]['problem']}" if self._bad else ""
            raise BadInput(f"no usable image in {source['spec']}: all {len(self._bad)} are bad{first}")
        if classes and self._top_label >= len(classes):
            raise BadInput(f"{source['spec']} has label {self._top_label} but only {len(classes)} class names")
        self._end_shard()
        self._bad.sort(key=lambda bad: bad["path"])
        (self._dest / BAD_LIST).write_bytes("".join(json.dumps(bad) + "\n" for bad in self._bad).encode())
        dataset = Dataset(
            location=self._dest,
            rows=self._rows,
            slice_rows=self._slice_rows,
            shards=tuple(self._shards),
            classes=classes,
            labelled=self._unlabelled == 0,
            pixel_bytes=self._pixel_bytes,
            bad=len(self._bad),
            source=source,
            fingerprint=self._digest.hexdigest(),
        )
        self._publish(dataset)
        return dataset

    def _write_slice(self, rows: pa.Table) -> None:
        rows = rows.combine_chunks()
        size = pc.sum(pc.binary_length(rows["image"])).as_py()
        full = self._shard_rows >= SHARD_SLICES * self._slice_rows
        if full or (self._shard_bytes and self._shard_bytes + size > SHARD_BYTES):
            self._end_shard()
        if self._parquet is None:
            self._parquet = self._begin_shard()
        ids = pa.array(range(self._rows, self._rows + rows.num_rows), pa.int64())
        self._parquet.write_table(rows.select(IMAGE.names).add_column(0, "id", ids))
        for row, (image, label) in enumerate(zip(rows["image"], rows["label"].to_pylist(), strict=True), self._rows):
            content = image.as_buffer()
            self._digest.update(f"{row} {label} {content.size}\n".encode())
            self._digest.update(content)
        self._pixel_bytes += pc.sum(rows["pixel_bytes"]).as_py()
        self._unlabelled += rows["label"].null_count
        self._top_label = max(self._top_label, pc.max(rows["label"]).as_py() or 0)
        self._rows += rows.num_rows
        self._shard_rows += rows.num_rows
        self._shard_bytes += size

    def _begin_shard(self) -> pq.ParquetWriter:
        """Opens the next shard, without compression and dictionaries: images are compressed already and distinct."""
        name = f"shard-{len(self._shards):05d}.parquet"
        stream = self._closing.enter_context((self._dest / name).writing())
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
        return self._closing.enter_context(pq.ParquetWriter(stream, SCHEMA, **options))

    def _end_shard(self) -> None:
        self._closing.close()
        self._parquet = None
        self._shards.append(Shard(name=f"shard-{len(self._shards):05d}.parquet", rows=self._shard_rows))
        self._shard_rows = self._shard_bytes = 0

    def _publish(self, dataset: Dataset) -> None:
        """Writes dataset.json. A re-run has replaced an interrupted one's shards, which have the same names; any that
        remain beyond its own are deleted."""
        ours = {shard.name for shard in dataset.shards} | {BAD_LIST}
        for entry in self._dest.files():
            if OURS.fullmatch(entry.name) and entry.name not in ours:
                (self._dest / entry.name).delete()
        # Another process may have prepared the same source meanwhile: equal contents, and so equal files.
        if is_dataset(self._dest.uri) and open_dataset(self._dest.uri).fingerprint != dataset.fingerprint:
            raise BadInput(f"{self._dest} became another dataset meanwhile: choose another place")
        (self._dest / INDEX).write_bytes(dataset.to_json().encode())
