"""The files of a source by their names alone: images, Parquet files or tars, and never two kinds at once."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from enum import Enum

from pyarrow import fs

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import INDEX
from simclr_ray.data.prepare import folder
from simclr_ray.storage.location import Entry, Location, open_location, unreachable

TAKES = "a folder of images, Parquet files, WebDataset tars, torchvision:NAME[:SPLIT] or synthetic:N[:test]"
SPLIT = re.compile(r"(train|valid|validation|val|test)(?=[-_./])", re.IGNORECASE)


class Kind(Enum):
    """The kind of files in a folder; the value is its name in messages."""

    IMAGES = "images"
    PARQUET = "Parquet files"
    TARS = "tars"


@dataclass(frozen=True)
class Listing:
    """Where a source lies, and its files, sorted by name."""

    location: Location
    kind: Kind
    entries: list[Entry]
    unread: dict[str, int]
    """By suffix, how many other pictures there are, in formats that are not read."""

    @property
    def digest(self) -> str:
        """SHA-256 of names and sizes."""
        found = hashlib.sha256()
        for entry in self.entries:
            found.update(f"{entry.name}\0{entry.size}\n".encode())
        return found.hexdigest()


def list_files(spec: str) -> Listing:
    """The folder of a source and the files in it to read, all of one kind, sorted by name."""
    location = open_location(spec)
    pattern = location.name if "*" in location.name else None
    if pattern:
        location = location.parent
    try:
        kind = location.kind()
        if kind == fs.FileType.File:
            entry = Entry(location.name, location.size())
            return Listing(location.parent, *_of_one_kind(spec, [entry], single=True), unread={})
        found = list(location.files())
    except OSError as error:
        raise unreachable("list", spec, error) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{spec} holds a file whose name is not UTF-8, {error.object!r}: rename it") from None
    if kind == fs.FileType.NotFound:
        raise BadInput(f"{spec} does not exist; a source is {TAKES}")
    if pattern:
        # As in a shell, of this folder alone: what is prepared from `*.parquet` below it is Parquet too.
        found = [entry for entry in found if "/" not in entry.name and fnmatch.fnmatchcase(entry.name, pattern)]
    unread = Counter(_suffix(entry) for entry in found if _suffix(entry) in folder.UNREAD)
    return Listing(location, *_of_one_kind(spec, found, single=False), unread=dict(unread))


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
    names = (entry.name if nested else entry.name.rpartition("/")[2] for entry in entries)
    splits = {match[0].lower() if (match := SPLIT.match(name)) else "" for name in names}
    if len(splits) > 1 and "" not in splits:
        one = f"{spec.rstrip('/')}/train" + ("" if nested else "-*")
        raise BadInput(f"{spec} holds the splits {', '.join(sorted(splits))}: name one of them, such as {one}")


def _kind(entry: Entry) -> Kind | None:
    """The kind of a file by its suffix; None for files that no source reads."""
    suffix = _suffix(entry)
    if suffix in folder.SUFFIXES:
        return Kind.IMAGES
    return {".parquet": Kind.PARQUET, ".tar": Kind.TARS}.get(suffix)


def _suffix(entry: Entry) -> str:
    return entry.name[entry.name.rfind(".") :].lower()
