"""The nearest images of a query, found in embeddings and shown on a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from simclr_ray.config import BadInput
from simclr_ray.data.augment.center import center_view
from simclr_ray.data.dataset import Dataset, SliceReader, open_dataset
from simclr_ray.data.decode import BadImage, decode
from simclr_ray.evaluate.embeddings import Embeddings, open_embeddings
from simclr_ray.evaluate.features import encode, frozen
from simclr_ray.evaluate.neighbours import Neighbour, feature_of, nearest
from simclr_ray.export.encoder import load_pretrained
from simclr_ray.report.sheet import contact_sheet
from simclr_ray.storage.location import open_location

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True)
class Found:
    query: Pixels
    title: str
    """Of the query on the sheet."""
    neighbours: list[Neighbour]
    """Best first."""
    images: list[Pixels]
    """Theirs."""
    classes: tuple[str, ...] | None
    """Names of the labels, if the dataset has them."""

    def class_of(self, neighbour: Neighbour) -> str:
        if neighbour.label is None:
            return ""
        return self.classes[neighbour.label] if self.classes else str(neighbour.label)

    def sheet(self) -> bytes:
        """A PNG: the query in a frame, then the neighbours."""
        captions = [f"{one.id}: {one.similarity:.3f} {self.class_of(one)}\n{one.path or ''}" for one in self.neighbours]
        return contact_sheet([self.query, *self.images], [self.title, *captions], framed=[0])


def find_neighbours(uri: str, query: str, neighbours: int) -> Found:
    """The images that are nearest to `query`: the id of an embedded image, or an image file, local or by URI.

    Raises BadInput, also if the dataset that was embedded is gone.
    """
    if neighbours < 1:
        raise BadInput(f"at least 1 neighbour can be shown, not {neighbours}")
    embeddings = open_embeddings(uri)
    dataset = open_dataset(embeddings.dataset)
    if dataset.fingerprint != embeddings.fingerprint:
        raise BadInput(f"{dataset.uri} has changed since it was embedded: embed it again into a new place")
    reader, own = SliceReader(dataset), int(query) if query.isdecimal() else None
    image = _decoded(query) if own is None else _image(dataset, reader, own)
    feature = _feature(embeddings, image) if own is None else feature_of(embeddings, own)
    found = nearest(embeddings, feature, neighbours, without=own)
    return Found(
        query=image,
        title=f"query\n{query}",
        neighbours=found,
        images=[_image(dataset, reader, neighbour.id) for neighbour in found],
        classes=dataset.classes,
    )


def _feature(embeddings: Embeddings, image: Pixels) -> Float[np.ndarray, " d"]:
    """The feature of another image, by the encoder that lies beside the embeddings."""
    pretrained = load_pretrained(embeddings.location)
    pixels = torch.from_numpy(center_view(image, pretrained.size).copy())[None]
    with frozen(pretrained.encoder):
        return encode(pretrained.encoder, pixels, pretrained.mean, pretrained.std)[0].numpy()


def _image(dataset: Dataset, reader: SliceReader, row: int) -> Pixels:
    if not 0 <= row < dataset.rows:
        raise BadInput(f"there is no image {row}: {dataset.uri} has ids 0 to {dataset.rows - 1}")
    (table,) = reader.rows(row, row + 1)
    return decode(table["image"][0].as_py())


def _decoded(address: str) -> Pixels:
    try:
        return decode(open_location(address).read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read the query {address}: {str(error).splitlines()[0]}") from None
    except BadImage as error:
        raise BadInput(f"the query {address} is no image that can be decoded: {error}") from None
