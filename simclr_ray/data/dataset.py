"""A prepared dataset: its description in dataset.json, and a reader of its slices by number."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simclr_ray.config import BadInput
from simclr_ray.data.recent import Recent
from simclr_ray.storage.location import Location, open_location, unreachable

INDEX = "dataset.json"
BAD_LIST = "bad.jsonl"
FORMAT = 1

# The columns of every shard; sources yield the same without `id`, the row position.
IMAGE = pa.schema([("image", pa.binary()), ("label", pa.int32()), ("path", pa.string())])
SCHEMA = IMAGE.insert(0, pa.field("id", pa.int64()))

UNLABELLED = -1
"""Label of an image without one, in arrays."""

# What a reader keeps of the shards that it has read from last. A parsed footer takes 3.5 KB for each slice of its shard
# and 10 us to parse: those of all shards of ImageNet were 136 MB in each data worker.
PARSED_SLICES = 8192
FOOTER_BYTES = 32 * 2**20
"""Of footers as they are in the files, 216 bytes for each slice: without one, an object store is asked once more."""
OPEN_FILES, OPEN_STORE_FILES = 128, 1024
"""A local file holds one of the process's descriptors (1,024 as a rule), and opening it again is cheap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One Parquet file of whole slices: a row group is a slice. Only the dataset's last slice may be short."""

    name: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The content of dataset.json. It pickles as values and an address, so any node can read from it."""

    location: Location
    rows: int
    slice_rows: int
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] | None
    """Class names by label, if the source has them."""
    labelled: bool
    """Every image has a label."""
    pixel_bytes: int
    """Bytes of all images decoded."""
    bad: int
    """Images of the source that could not be decoded; bad.jsonl beside dataset.json lists them."""
    source: dict[str, Any]
    """Its source and preparation: spec, digest of the listing, seed, max_side."""
    fingerprint: str
    """SHA-256 over slice_rows and every row's id, label and image, in order."""
    format: int = FORMAT

    @property
    def uri(self) -> str:
        return self.location.uri

    @property
    def slices(self) -> int:
        """All slices, a short last one included."""
        return -(-self.rows // self.slice_rows)

    def to_json(self) -> str:
        fields = {key: value for key, value in self.__dict__.items() if key != "location"}
        return json.dumps(fields | {"shards": [asdict(shard) for shard in self.shards]}, indent=1) + "\n"


def is_dataset(uri: str) -> bool:
    """Whether there is a prepared dataset at `uri`. Raises BadInput if the location cannot be read."""
    location = open_location(uri)
    try:
        return (location / INDEX).exists()
    except OSError as error:
        raise unreachable("read", location, error) from None


def open_dataset(uri: str) -> Dataset:
    """Reads dataset.json and nothing else. Raises BadInput if there is none that this version can read."""
    location = open_location(uri)
    try:
        text = (location / INDEX).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{uri} is not a prepared dataset (it has no {INDEX}): prepare it first") from None
    except OSError as error:
        raise unreachable("read", location, error) from None
    try:
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise BadInput(f"{uri} has format {fields['format']}, this version reads {FORMAT}: prepare it again")
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        fields["classes"] = fields["classes"] and tuple(fields["classes"])
        return Dataset(location=location, **fields)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BadInput(f"{uri}/{INDEX} is damaged ({error!r}): prepare the dataset again") from None


def bad_images(dataset: Dataset) -> list[dict[str, str]]:
    """Path and problem of every image of the source that was left out, sorted by path."""
    return [json.loads(line) for line in (dataset.location / BAD_LIST).read_bytes().splitlines()]


class SliceReader:
    """Slices of a dataset by number, one row group each. One reader per thread: open files are not shared."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._ends = np.cumsum([-(-shard.rows // dataset.slice_rows) for shard in dataset.shards])
        open_files = OPEN_FILES if dataset.location.local else OPEN_STORE_FILES
        self._streams: Recent[BinaryIO] = Recent(open_files, lambda stream: 1, drop=lambda stream: stream.close())
        self._footers: Recent[bytes] = Recent(FOOTER_BYTES, len)
        self._parsed: Recent[pq.FileMetaData] = Recent(PARSED_SLICES, lambda footer: footer.num_row_groups)

    def read_slice(self, g: int, columns: list[str] | None = None) -> pa.Table:
        """Rows from slice_rows * g on, with these columns of SCHEMA (None: all). Raises BadInput for a missing or
        damaged shard."""
        if not 0 <= g < self._dataset.slices:
            raise IndexError(f"slice {g} of {self._dataset.slices}")
        shard = int(np.searchsorted(self._ends, g, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        try:
            return self._file(shard).read_row_group(g - first, columns, use_threads=False)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            where = self._dataset.location / self._dataset.shards[shard].name
            raise BadInput(f"{where} is missing or damaged ({error}): prepare the dataset again") from None

    def rows(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Rows start..stop - 1 in order, a table for each slice that they overlap."""
        size = self._dataset.slice_rows
        for g in range(start // size, -(-stop // size)):
            begin = max(start - g * size, 0)
            yield self.read_slice(g).slice(begin, stop - g * size - begin)

    def _file(self, shard: int) -> pq.ParquetFile:
        """A new one for each slice: with pre_buffer it would keep the bytes of the last slice."""
        stream = self._streams.get(shard, lambda: (self._dataset.location / self._dataset.shards[shard].name).reading())
        packed = self._footers.get(shard, lambda: _packed(pq.read_metadata(stream)))
        footer = self._parsed.get(shard, lambda: pq.read_metadata(pa.BufferReader(packed)))
        # pre_buffer reads a row group's columns in one request of an object store; local files are a third faster
        # without.
        return pq.ParquetFile(stream, metadata=footer, pre_buffer=self._dataset.location.local is None)


def _packed(footer: pq.FileMetaData) -> bytes:
    stream = io.BytesIO()
    footer.write_metadata_file(stream)
    return stream.getvalue()
