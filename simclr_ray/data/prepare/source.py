"""Sources of images, and the parsing of a string into one: a folder, Parquet, tars or the synthetic images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from simclr_ray.data.prepare import folder, hf_parquet, synthetic, webdataset
from simclr_ray.data.prepare.listing import Kind, list_files

TORCHVISION_PREFIX = "torchvision:"

# A task is large enough to hide its overhead, and small enough to balance and to fit memory many times over.
TASK_BYTES = 32 * 2**20
TASK_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images that can be prepared. `read` takes rows of `work` and yields tables of encoded images, in order."""

    spec: str
    digest: str
    """SHA-256 of the listing, names and sizes; it identifies the source."""
    work: pa.Table
    """The work to read. `listed`: a row for each image, to be read in any order; else a row for each part of an
    archive."""
    listed: bool
    read: Callable[[pa.Table], Iterator[pa.Table]]
    classes: tuple[str, ...] | None
    rows: int | None
    """Number of images, if the listing gives it."""
    bytes: int
    """Size of all that will be read."""
    remarks: tuple[str, ...] = ()
    """Lines for the user about what was listed."""
    anywhere: bool = True
    """Whether any node can read it; if not, only this process can."""

    @property
    def rows_per_task(self) -> int:
        """Rows of `work` that make a task of about TASK_BYTES."""
        most = TASK_ROWS if self.listed else self.work.num_rows
        return max(1, min(most, TASK_BYTES * self.work.num_rows // max(1, self.bytes)))


def is_synthetic(spec: str) -> bool:
    return spec.startswith(synthetic.PREFIX)


def is_torchvision(spec: str) -> bool:
    return spec.startswith(TORCHVISION_PREFIX)


def is_address(spec: str) -> bool:
    """Whether `spec` is a path or URI, not the name of images that are made or downloaded."""
    return not (is_synthetic(spec) or is_torchvision(spec))


def source_digest(spec: str) -> str:
    """The digest of the source, from the listing alone. Raises BadInput as `open_source` does."""
    if not is_address(spec):
        return spec_digest(spec)
    return list_files(spec).digest


def spec_digest(spec: str) -> str:
    """The digest of a source that its name determines."""
    return hashlib.sha256(spec.encode()).hexdigest()


def open_source(spec: str) -> Source:
    """Lists the files of `spec`. Raises BadInput if there is nothing to prepare, or files of several kinds."""
    if is_synthetic(spec):
        return _synthetic(spec)
    if is_torchvision(spec):
        from simclr_ray.data.prepare.torchvision import open_torchvision  # imports torch, which takes seconds

        return open_torchvision(spec)
    files = list_files(spec)
    location, kind, names = files.location, files.kind, [entry.name for entry in files.entries]
    classes: tuple[str, ...] | None = None
    rows: int | None = None
    remarks: tuple[str, ...] = ()
    if kind is Kind.IMAGES:
        remarks = folder.remarks(names, files.unread)
        work, classes = folder.list_images(names)
        read, rows = partial(folder.read, location), len(names)
    elif kind is Kind.PARQUET:
        work, layout = hf_parquet.list_groups(location, names)
        read, classes, rows = partial(hf_parquet.read, location, layout), layout.classes, pc.sum(work["rows"]).as_py()
    else:
        work, read = pa.table({"name": names}), partial(webdataset.read, location)
    return Source(
        spec=spec,
        digest=files.digest,
        work=work,
        listed=kind is Kind.IMAGES,
        read=read,
        classes=classes,
        rows=rows,
        bytes=sum(entry.size for entry in files.entries),
        remarks=remarks,
    )


def _synthetic(spec: str) -> Source:
    split, size, count = synthetic.parse(spec)
    return Source(
        spec=spec,
        digest=spec_digest(spec),
        work=pa.table({"index": pa.array(range(count), pa.int64())}),
        listed=True,
        read=partial(synthetic.read, split, size),
        classes=synthetic.CLASSES,
        rows=count,
        bytes=count * synthetic.typical_bytes(size),
    )
