"""Files by path or URI through pyarrow.fs: a folder of this machine, s3://, gs:// or abfs://."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast
from urllib.parse import quote

from pyarrow import fs

from simclr_ray.config import BadInput
from simclr_ray.storage.object_store import StoreFile, open_store, with_retries

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file below a location: its path relative to it, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Location:
    """A folder or file. It pickles as its URI: the other side opens it with its own credentials.

    Requests to an object store that fail are repeated for PATIENCE_S; then OSError is raised. The URI holds no secret
    (`open_store` refuses one that does), so it may stand in messages and records.
    """

    uri: str
    filesystem: fs.FileSystem
    path: str

    def __truediv__(self, name: str) -> Location:
        if "://" not in self.uri:
            return Location(f"{self.uri.rstrip('/')}/{name}", self.filesystem, f"{self.path.rstrip('/')}/{name}")
        base, mark, query = self.uri.partition("?")  # ?endpoint_override=...
        uri = f"{base.rstrip('/')}/{quote(name)}{mark}{query}"
        return Location(uri, self.filesystem, f"{self.path.rstrip('/')}/{name}")

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

    def kind(self) -> fs.FileType:
        """File, Directory or NotFound."""
        return self._info().type

    def exists(self) -> bool:
        return self.kind() != fs.FileType.NotFound

    def is_folder(self) -> bool:
        return self.kind() == fs.FileType.Directory

    def size(self) -> int:
        """Bytes of this file."""
        return self._info().size

    def reading(self) -> BinaryIO:
        """The file as a seekable stream, which the caller closes."""
        if self.local is None:
            return cast(BinaryIO, StoreFile(self.uri, self.filesystem, self.path))
        return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        with self.reading() as stream:
            return stream.read()

    def write_bytes(self, content: bytes | memoryview, *, patience_s: float | None = None) -> None:
        """Writes the whole file: an old or the new content is seen, never a part. `patience_s`: see `with_retries`."""
        if self.local is None:
            with_retries(self.uri, lambda: self._upload(content), patience_s)
            return
        with self.writing() as stream:
            stream.write(content)

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """A stream whose content appears at the end, all at once; on an error nothing appears.

        For an object store it is held in memory: pyarrow's own stream would complete a half file when it is closed,
        and could not be sent again.
        """
        local = self.local
        if local is None:
            held = io.BytesIO()
            yield held
            self.write_bytes(held.getbuffer())
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
        """Every file below this folder, sorted by name; hidden ones (a name part beginning with '.') left out.

        Links are followed, but for those to a folder that they lie in.
        """
        if self.local is not None:
            return iter(sorted(_files_below(str(self.local)), key=lambda entry: entry.name))
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found = []
        for info in self._retrying(lambda: self.filesystem.get_file_info(selector)):
            name = info.path[len(self.path.rstrip("/")) :].lstrip("/")
            if info.type == fs.FileType.File and not any(part.startswith(".") for part in name.split("/")):
                found.append(Entry(name, info.size))
        return iter(sorted(found, key=lambda entry: entry.name))

    def folders(self) -> list[str]:
        """Names of the folders directly below."""
        # Of a folder in which it has only seen files, pyarrow's gs:// says nothing; it lists all below in any case.
        selector = fs.FileSelector(self.path, recursive=self.filesystem.type_name == "gcs", allow_not_found=True)
        found = set()
        for info in self._retrying(lambda: self.filesystem.get_file_info(selector)):
            name, below, _ = info.path[len(self.path.rstrip("/")) :].lstrip("/").partition("/")
            if below or info.type == fs.FileType.Directory:
                found.add(name)
        return sorted(found)

    def delete(self) -> None:
        """Removes this file or folder with all it holds; nothing happens where there is none."""
        self._retrying(self._delete)

    def _delete(self) -> None:
        kind = self.filesystem.get_file_info(self.path).type
        if kind == fs.FileType.Directory:
            with suppress(FileNotFoundError):  # gs:// says so once all files are gone: the folder itself is no object
                self.filesystem.delete_dir(self.path)
        elif kind != fs.FileType.NotFound:
            self.filesystem.delete_file(self.path)

    def _upload(self, content: bytes | memoryview) -> None:
        try:
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(content)
        except FileNotFoundError as error:  # Google's words for a missing bucket; files need no folder
            raise OSError(f"Bucket '{self.path.partition('/')[0]}' not found") from error

    def _info(self) -> fs.FileInfo:
        return self._retrying(lambda: self.filesystem.get_file_info(self.path))

    def _retrying(self, operation: Callable[[], T]) -> T:
        return with_retries(self.uri, operation) if self.local is None else operation()


def _files_below(folder: str, prefix: str = "", around: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Entry]:
    """pyarrow's own listing goes round a circle of links until the system refuses, and lists every file 41 times."""
    if not os.path.exists(folder):
        return
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in around:
        return
    around |= {(status.st_dev, status.st_ino)}
    with os.scandir(folder) as found:
        for entry in found:
            name = prefix + os.fsencode(entry.name).decode()
            if entry.name.startswith(".") or (entry.is_symlink() and not os.path.exists(entry.path)):
                continue
            if entry.is_dir():
                yield from _files_below(entry.path, f"{name}/", around)
            elif entry.is_file():
                yield Entry(name, entry.stat().st_size)


def open_location(uri: str) -> Location:
    """The location of a local path (relative ones and `~` are made absolute) or of a URI.

    Raises BadInput for a URI that `open_store` refuses.
    """
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        return Location(str(path), fs.LocalFileSystem(), str(path))
    filesystem, path_in_store = open_store(uri)
    if isinstance(filesystem, fs.LocalFileSystem):  # file://
        return Location(path_in_store, filesystem, path_in_store)
    return Location(uri, filesystem, path_in_store)


def unreachable(action: str, place: object, error: OSError) -> BadInput:
    """For a place that could not be read or listed, which is what `action` says, in one line."""
    reason = str(error).splitlines()[0]
    return BadInput(f"cannot {action} {place}: {reason}; check the address, the credentials and the network")
