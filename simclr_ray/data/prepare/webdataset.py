"""WebDataset tars: images with their labels beside them, `key.jpg` and `key.cls`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Self

import pyarrow as pa

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import IMAGE
from simclr_ray.storage.location import Location

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
BATCH_ROWS = 256
BATCH_BYTES = 32 * 2**20

MOST_PADDING = 2**20
"""Zeros at the end of a tar, of the largest records that are in use; a download that was never filled has more."""

ImageRow = dict[str, object]


class _Member(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of the archive, and what follows is lost in silence."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(str(error)) from None


def read(location: Location, work: pa.Table) -> Iterator[pa.Table]:
    """The images of these tars, in their order and in batches. Raises BadInput for a damaged tar."""
    for name in work["name"].to_pylist():
        batch: list[ImageRow] = []
        size = 0
        for image in _images(location / name):
            batch.append(image)
            size += len(image["image"])  # type: ignore[arg-type]
            if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
                yield pa.Table.from_pylist(batch, IMAGE)
                batch, size = [], 0
        if batch:
            yield pa.Table.from_pylist(batch, IMAGE)


def _images(where: Location) -> Iterator[ImageRow]:
    """Images with the label of their sample: the files in a row that share a name up to its first dot."""
    sample: list[ImageRow] = []
    label: int | None = None
    current = None
    for name, content in _files(where):
        folder, _, base = name.rpartition("/")
        key = f"{folder}/{base.partition('.')[0]}"
        if key != current:
            yield from (image | {"label": label} for image in sample)
            sample, label, current = [], None, key
        if name.lower().endswith(".cls"):
            label = _label(where, name, content)
        elif name.lower().endswith(SUFFIXES):
            sample.append({"image": content, "path": f"{where.name}:{name}"})
    yield from (image | {"label": label} for image in sample)


def _files(where: Location) -> Iterator[tuple[str, bytes]]:
    try:
        with (
            where.reading() as stream,
            tarfile.open(fileobj=stream, mode="r|", bufsize=2**20, tarinfo=_Member) as tar,
        ):
            for member in tar:
                if member.isfile() and member.name.lower().endswith((*SUFFIXES, ".cls")):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
                tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps the headers of all members
            _require_end(tar)
    except tarfile.TarError as error:
        raise BadInput(f"{where} is a damaged tar ({error}): fetch it again") from None


def _require_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError where more than padding follows the end mark, as in two tars that were joined."""
    assert tar.fileobj is not None
    padding = tar.fileobj.read(MOST_PADDING)
    if padding.count(0) < len(padding) or tar.fileobj.read(1):
        raise tarfile.ReadError("data after its end")


def _label(where: Location, name: str, content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise BadInput(f"{where}: {name} must hold the number of a class, not {content[:40]!r}") from None
