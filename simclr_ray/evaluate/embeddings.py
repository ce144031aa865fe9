"""The features of a dataset's images as Parquet files, and embeddings.json, which says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import Dataset
from simclr_ray.storage.location import Location, open_location
from simclr_ray.storage.run_folder import ENCODER

INDEX = "embeddings.json"
FEATURES = "features"
"""The folder of the Parquet files, which other tools read as one table."""
FORMAT = 1
PART_ROWS = 2048
"""At most so many rows make a part: what an interruption can cost a worker, and seconds of work even on a GPU."""

Precision = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The content of embeddings.json, written first: the folder is complete once every part is there."""

    location: Location
    dataset: str
    """Address of the dataset whose images these are; `id` is the row there."""
    fingerprint: str
    """That of the dataset."""
    rows: int
    """Of the dataset. An image that cannot be decoded has no row here."""
    part_rows: int
    encoder_sha256: str
    """Of encoder.safetensors, a copy of which lies beside the parts."""
    feature_dim: int
    dtype: Precision
    format: int = FORMAT

    @property
    def parts(self) -> int:
        return -(-self.rows // self.part_rows)

    @property
    def schema(self) -> pa.Schema:
        """id, path and label as in the dataset, and the feature h, not normalised."""
        number = pa.float16() if self.dtype == "float16" else pa.float32()
        columns = {"id": pa.int64(), "path": pa.string(), "label": pa.int32()}
        return pa.schema([*columns.items(), ("feature", pa.list_(number, self.feature_dim))])

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in vars(self).items() if key != "location"}, indent=1) + "\n"

    def missing(self) -> list[int]:
        """The parts that are still to be written, in order."""
        found = {entry.name for entry in (self.location / FEATURES).files()}
        return [part for part in range(self.parts) if _name(part) not in found]

    def write(self, part: int, ids: np.ndarray, paths: pa.Array, labels: pa.Array, features: np.ndarray) -> None:
        """Writes one part; it appears whole or not at all, so a part that is there need not be made again."""
        numbers = pa.array(features.astype(self.dtype).reshape(-1))
        feature = pa.FixedSizeListArray.from_arrays(numbers, self.feature_dim)
        with (self.location / FEATURES / _name(part)).writing() as stream:
            pq.write_table(pa.table([pa.array(ids), paths, labels, feature], schema=self.schema), stream)

    def read(self) -> Iterator[tuple[pa.Table, Float[np.ndarray, "n d"]]]:
        """Every part in turn. Raises BadInput if parts are missing or damaged."""
        missing = self.missing()
        if missing:
            raise BadInput(f"{self.location} lacks {len(missing)} of {self.parts} parts: finish embed.py first")
        return map(self.read_part, range(self.parts))

    def read_part(self, part: int) -> tuple[pa.Table, Float[np.ndarray, "n d"]]:
        """The columns id, path and label, and the features in float32. Raises BadInput if there is no such part."""
        file = self.location / FEATURES / _name(part)
        try:
            with file.reading() as stream:
                table = pq.read_table(stream)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise BadInput(f"{file} is missing or damaged ({error}): delete it, and run embed.py again") from None
        numbers = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return table.drop_columns(["feature"]), numbers.astype(np.float32).reshape(-1, self.feature_dim)


def begin_embeddings(out: Location, encoder: bytes, dataset: Dataset, feature_dim: int, dtype: Precision) -> Embeddings:
    """The embeddings in `out`, to be begun or continued. `encoder`: the content of its file.

    Raises BadInput if the folder holds those of another encoder, dataset or precision, or anything else.
    """
    wanted = Embeddings(
        location=out,
        dataset=dataset.uri,
        fingerprint=dataset.fingerprint,
        rows=dataset.rows,
        part_rows=max(1, PART_ROWS // dataset.slice_rows) * dataset.slice_rows,
        encoder_sha256=hashlib.sha256(encoder).hexdigest(),
        feature_dim=feature_dim,
        dtype=dtype,
    )
    try:
        return _begun(wanted, encoder)
    except OSError as error:
        raise BadInput(f"cannot write {out}: {str(error).splitlines()[0]}; choose another place") from None


def _begun(wanted: Embeddings, encoder: bytes) -> Embeddings:
    out = wanted.location
    if (out / INDEX).exists():
        found = open_embeddings(out.uri)
        for key in ("fingerprint", "encoder_sha256", "dtype"):
            if getattr(found, key) != getattr(wanted, key):
                raise BadInput(f"{out} holds embeddings with another {key}: choose another place")
        return found
    other = next((entry.name for entry in out.files() if entry.name != ENCODER), None)
    if other:
        raise BadInput(f"{out} is not empty (it holds {other}): choose a new place for the embeddings")
    (out / ENCODER).write_bytes(encoder)
    (out / INDEX).write_bytes(wanted.to_json().encode())
    return wanted


def open_embeddings(uri: str) -> Embeddings:
    """Reads embeddings.json. Raises BadInput if there is none that this version can read."""
    location = open_location(uri)
    try:
        fields = json.loads((location / INDEX).read_bytes())
        if fields["format"] != FORMAT:
            raise BadInput(f"{uri} has format {fields['format']}, this version reads {FORMAT}: embed again")
        return Embeddings(location=location, **fields)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{uri} holds no embeddings (it has no {INDEX}): write them with embed.py") from None
    except OSError as error:
        raise BadInput(f"cannot read {uri}: {str(error).splitlines()[0]}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{uri}/{INDEX} is damaged ({error!r}): embed again into a new place") from None


def rows_of_part(embeddings: Embeddings, part: int) -> range:
    """Rows of the dataset that belong to a part: whole slices."""
    start = part * embeddings.part_rows
    return range(start, min(start + embeddings.part_rows, embeddings.rows))


def _name(part: int) -> str:
    return f"part-{part:06d}.parquet"
