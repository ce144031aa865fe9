"""Sources of images, and the parsing of a string into one: a folder, Parquet, tars or the synthetic images."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import INDEX
from simclr_ray.data.prepare import folder, hf_parquet, synthetic, webdataset
from simclr_ray.storage.location import Entry, Location, open_location

TORCHVISION_PREFIX = "torchvision:"
TAKES = "a folder of images, Parquet files, WebDataset tars, torchvision:NAME[:SPLIT] or synthetic:N[:test]"

# A task is large enough to hide its overhead, and small enough to balance and to fit memory many times over.
TASK_BYTES = 32 * 2**20
TASK_ROWS = (64, 2048)

SPLIT = re.compile(r"(train|valid|validation|val|test)(?=[-_./])", re.IGNORECASE)


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
    anywhere: bool = True
    """Whether any node can read it; if not, only this process can."""

    @property
    def rows_per_task(self) -> int:
        """Rows of `work` that make a task of about TASK_BYTES."""
        fewest, most = TASK_ROWS if self.listed else (1, self.work.num_rows)
        return max(fewest, min(most, TASK_BYTES * self.work.num_rows // max(1, self.bytes)))


def is_synthetic(spec: str) -> bool:
    return spec.startswith(synthetic.PREFIX)


def is_torchvision(spec: str) -> bool:
    return spec.startswith(TORCHVISION_PREFIX)


def is_address(spec: str) -> bool:
    """Whether `spec` is a path or URI, not the name of images that are made or downloaded."""
    return not (is_synthetic(spec) or is_torchvision(spec))


class Kind(Enum):
    """The kind of files in a folder; the value is its name in messages."""

    IMAGES = "images"
    PARQUET = "Parquet files"
    TARS = "tars"


def source_digest(spec: str) -> str:
    """The digest of the source, from the listing alone. Raises BadInput as `open_source` does."""
    if not is_address(spec):
        return spec_digest(spec)
    _, _, entries = _listing(spec)
    return _digest(entries)


def spec_digest(spec: str) -> str:
    """The digest of a source that its name determines."""
    return hashlib.sha256(spec.encode()).hexdigest()


def open_source(spec: str) -> Source:
    """Lists the files of `spec`. Raises BadInput if there is nothing to prepare, or files of several kinds."""
    if is_synthetic(spec):
        return _synthetic(spec)
    location, kind, entries = _listing(spec)
    names = [entry.name for entry in entries]
    classes: tuple[str, ...] | None = None
    rows: int | None = None
    if kind is Kind.IMAGES:
        work, classes = folder.list_images(names)
        read, rows = partial(folder.read, location), len(names)
    elif kind is Kind.PARQUET:
        work, layout = hf_parquet.list_groups(location, names)
        read, classes, rows = partial(hf_parquet.read, location, layout), layout.classes, pc.sum(work["rows"]).as_py()
    else:
        work, read = pa.table({"name": names}), partial(webdataset.read, location)
    return Source(
        spec=spec,
        digest=_digest(entries),
        work=work,
        listed=kind is Kind.IMAGES,
        read=read,
        classes=classes,
        rows=rows,
        bytes=sum(entry.size for entry in entries),
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


def _listing(spec: str) -> tuple[Location, Kind, list[Entry]]:
    """The folder of a source and the files in it to read, all of one kind, sorted by name."""
    location = open_location(spec)
    pattern = location.name if "*" in location.name else None
    if pattern:
        location = location.parent
    try:
        kind = location.kind()
        if kind == fs.FileType.File:
            entry = Entry(location.name, location.size())
            return location.parent, *_of_one_kind(spec, [entry], single=True)
        found = list(location.files())
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"cannot list {spec}: {reason}; check the address, the credentials and the network") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{spec} holds a file whose name is not UTF-8, {error.object!r}: rename it") from None
    if kind == fs.FileType.NotFound:
        raise BadInput(f"{spec} does not exist; a source is {TAKES}")
    if pattern:
        found = [entry for entry in found if fnmatch.fnmatchcase(entry.name, pattern)]
    return location, *_of_one_kind(spec, found, single=False)


def _of_one_kind(spec: str, found: list[Entry], single: bool) -> tuple[Kind, list[Entry]]:
    if any(entry.name == INDEX for entry in found):
        raise BadInput(f"{spec} is a prepared dataset already: use it as it is")
    kinds: dict[Kind, list[Entry]] = {}
    for entry in found:
        if kind := _kind(entry):
            kinds.setdefault(kind, []).append(entry)
    if not kinds:
        held = f"{len(found)} files of other kinds" if found else "no files"
        raise BadInput(f"no images in {spec}: it holds {held}; a source is {TAKES}")
    if len(kinds) > 1:
        held = " and ".join(f"{len(entries)} {kind.value}" for kind, entries in kinds.items())
        raise BadInput(f"{spec} holds {held}: give a source of one kind, such as {spec.rstrip('/')}/*.parquet")
    kind, entries = kinds.popitem()
    if single and kind is Kind.IMAGES:
        raise BadInput(f"{spec} is a single image: give the folder that it is in")
    _require_one_split(spec, kind, entries)
    return kind, entries


def _require_one_split(spec: str, kind: Kind, entries: list[Entry]) -> None:
    """Raises BadInput for several splits in one source, such as train and test: no curve would show that mistake."""
    nested = kind is Kind.IMAGES
    names = [entry.name if nested else entry.name.rpartition("/")[2] for entry in entries]
    splits = {match[0].lower() if (match := SPLIT.match(name)) else "" for name in names}
    if len(splits) > 1 and "" not in splits:
        one = f"{spec.rstrip('/')}/train" + ("" if nested else "-*")
        raise BadInput(f"{spec} holds the splits {', '.join(sorted(splits))}: name one of them, such as {one}")


def _kind(entry: Entry) -> Kind | None:
    """The kind of a file by its suffix; None for files that no source reads."""
    suffix = entry.name[entry.name.rfind(".") :].lower()
    if suffix in folder.SUFFIXES:
        return Kind.IMAGES
    return {".parquet": Kind.PARQUET, ".tar": Kind.TARS}.get(suffix)


def _digest(entries: list[Entry]) -> str:
    listing = "".join(f"{entry.name}\0{entry.size}\n" for entry in entries)
    return hashlib.sha256(listing.encode()).hexdigest()
