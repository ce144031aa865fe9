"""Files by path or URI through pyarrow.fs: a folder of this machine, s3://, gs:// or abfs://."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from simclr_ray.config import BadInput


@dataclass(frozen=True)
class Entry:
    """One file below a location: its path relative to it, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Location:
    """A folder or file. It pickles as its URI: the other side opens it with its own credentials."""

    uri: str
    filesystem: fs.FileSystem
    path: str

    def __truediv__(self, name: str) -> Location:
        base, mark, query = (
            self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        )  # ?endpoint_override=...
        return Location(f"{base.rstrip('/')}/{name}{mark}{query}", self.filesystem, f"{self.path.rstrip('/')}/{name}")

    @property
    def parent(self) -> Location:
        base, mark, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        path = self.path.rstrip("/").rpartition("/")[0]
        return Location(f"{base.rstrip('/').rpartition('/')[0]}{mark}{query}", self.filesystem, path)

    def __reduce__(self) -> tuple:
        return open_location, (self.uri,)

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The path on this machine, or None for an object store."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def exists(self) -> bool:
        return self._kind() != fs.FileType.NotFound

    def is_folder(self) -> bool:
        return self._kind() == fs.FileType.Directory

    def _kind(self) -> fs.FileType:
        return self.filesystem.get_file_info(self.path).type

    def size(self) -> int:
        """Bytes of this file."""
        return self.filesystem.get_file_info(self.path).size

    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_file(self.path) as stream:
            return stream.read()

    def write_bytes(self, content: bytes) -> None:
        """Writes the whole file: an old or the new content is seen, never a part."""
        with self.writing() as stream:
            stream.write(content)

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """A stream whose content appears at the end, all at once (local: rename; object stores: at close).

        On an error nothing appears locally; an object store may keep what was written so far.
        """
        local = self.local
        if local is None:
            with self.filesystem.open_output_stream(self.path) as stream:
                yield stream
            return
        local.parent.mkdir(parents=True, exist_ok=True)
        part = local.with_name(f".{local.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def make_folder(self) -> None:
        if self.local is not None:  # an object store has no folders
            self.local.mkdir(parents=True, exist_ok=True)

    def files(self) -> Iterator[Entry]:
        """Every file below this folder, sorted by name; hidden ones (a name part beginning with '.') left out."""
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found = []
        for info in self.filesystem.get_file_info(selector):
            name = info.path[len(self.path.rstrip("/")) :].lstrip("/")
            if info.type == fs.FileType.File and not any(part.startswith(".") for part in name.split("/")):
                found.append(Entry(name, info.size))
        return iter(sorted(found, key=lambda entry: entry.name))

    def folders(self) -> list[str]:
        """Names of the folders directly below."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def delete(self) -> None:
        """Removes this file or folder with all it holds; nothing happens where there is none."""
        kind = self._kind()
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind != fs.FileType.NotFound:
            self.filesystem.delete_file(self.path)


def open_location(uri: str) -> Location:
    """The location of a local path (relative ones and `~` are made absolute) or of a pyarrow.fs URI.

    Raises BadInput for a scheme that pyarrow does not know or a URI that it cannot parse.
    """
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        return Location(str(path), fs.LocalFileSystem(), str(path))
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"cannot open {uri}: {reason}; give a folder, or an s3://, gs:// or abfs:// URI") from None
    if isinstance(filesystem, fs.LocalFileSystem):  # file://
        return Location(path, filesystem, path)
    return Location(uri, filesystem, path)
