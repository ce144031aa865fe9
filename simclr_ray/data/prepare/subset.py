"""A part of a dataset as a dataset of its own: some of each class's images, or those that a list of paths names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import IMAGE, Dataset, SliceReader, is_dataset, open_dataset
from simclr_ray.data.philox import SUBSET, sort_words
from simclr_ray.data.prepare.writer import CHECKED, DatasetWriter, require_writable
from simclr_ray.storage.location import Location, open_location

SLICES = 100
"""A small part gets at least so many slices, so that few images are lost in the last one, which is not trained on."""


def subset_into(storage: str, dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """`fraction` of the images of each class, kept in STORAGE/data; all of them are the dataset itself.

    Raises BadInput for a fraction out of (0, 1], or if images have no label.
    """
    if fraction == 1:
        return dataset
    dest = open_location(storage) / "data" / f"{dataset.fingerprint[:8]}-{100 * fraction:g}-percent-seed{seed}"
    if is_dataset(dest.uri):
        return open_dataset(dest.uri)
    return _write_balanced(dataset, dest, fraction, seed)


def in_enough_slices(storage: str, dataset: Dataset) -> Dataset:
    """A small dataset in SLICES slices, or as many as it has images, kept in STORAGE/data; a larger one as it is."""
    if dataset.slices >= min(SLICES, dataset.rows):
        return dataset
    dest = open_location(storage) / "data" / f"{dataset.fingerprint[:8]}-in-{SLICES}-slices"
    if is_dataset(dest.uri):
        return open_dataset(dest.uri)
    return write_subset(dataset, dest, np.arange(dataset.rows), "all of it in small slices")


def take_part(source: str, dest: str, *, fraction: float | None, paths: str | None, seed: int) -> Dataset:
    """Writes a part of the dataset `source` to `dest`: of each class a fraction, or what the file `paths` names."""
    if (fraction is None) == (paths is None):
        raise BadInput("a part is taken by --fraction or by --paths, not by both")
    if not is_dataset(source):
        raise BadInput(f"{source} is not a prepared dataset: prepare it first, then take a part of that")
    dataset, location = open_dataset(source), open_location(dest)
    require_writable(location)
    if fraction is not None:
        return _write_balanced(dataset, location, fraction, seed)
    try:
        listed = open_location(str(paths)).read_bytes().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {paths}: {str(error).splitlines()[0]}") from None
    rows = listed_rows(dataset, [line.strip() for line in listed if line.strip()])
    return write_subset(dataset, location, rows, f"the images of {paths}")


def balanced_rows(dataset: Dataset, fraction: float, seed: int) -> np.ndarray:
    """Ids of `fraction` of each class's images, as `balanced_part` has them.

    Raises BadInput for a fraction out of (0, 1], or if images have no label.
    """
    if not 0 < fraction <= 1:
        raise BadInput(f"fraction must lie in (0, 1], not {fraction}")
    if not dataset.labelled:
        raise BadInput(f"{dataset.uri} has images without labels: a part of each class needs them")
    labels = np.concatenate([table["label"].to_numpy() for table in _columns(dataset, ["label"])])
    return balanced_part(labels, fraction, seed)


def balanced_part(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows of `fraction` of each label's rows, rounded but at least one, sorted; those with the lowest keyed words."""
    order = np.argsort(sort_words(seed, 0, SUBSET, len(labels)), kind="stable")
    chosen = []
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        chosen.append(rows[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(chosen))


def count_classes(dataset: Dataset) -> int:
    """As many as the dataset names, or as its labels need."""
    if dataset.classes:
        return len(dataset.classes)
    return 1 + max(pc.max(table["label"]).as_py() for table in _columns(dataset, ["label"]))


def listed_rows(dataset: Dataset, paths: list[str]) -> np.ndarray:
    """Ids of the images with these paths or file names, sorted.

    Raises BadInput for one that is not in the dataset, and for a file name that several have.
    """
    found: dict[str, int] = {}
    named: dict[str, list[int]] = {}
    for table in _columns(dataset, ["id", "path"]):
        for row, path in zip(table["id"].to_pylist(), table["path"].to_pylist(), strict=True):
            if path is not None:
                named.setdefault(path.rpartition("/")[2], []).append(row)
                found[path] = row
    for name in set(paths) & named.keys() - found.keys():
        if len(named[name]) > 1:
            raise BadInput(f"{dataset.uri} has {len(named[name])} images called {name}: list their whole paths")
        found[name] = named[name][0]
    missing = [path for path in paths if path not in found]
    if missing:
        raise BadInput(f"{dataset.uri} has no image {missing[0]}, nor {len(missing) - 1} others of {len(paths)} listed")
    return np.unique([found[path] for path in paths])


def write_subset(dataset: Dataset, dest: Location, rows: np.ndarray, part: str) -> Dataset:
    """Writes these rows, in their order, to `dest`. `part`: what they are, for dataset.json."""
    if not len(rows):
        raise BadInput(f"no image of {dataset.uri} is wanted")
    slice_rows = min(dataset.slice_rows, max(1, len(rows) // SLICES))
    with DatasetWriter(dest, slice_rows) as writer:
        for table in _taken(dataset, rows):
            sizes = pa.array([dataset.pixel_bytes // dataset.rows] * table.num_rows, pa.int64())
            columns = [*table.select(IMAGE.names).columns, sizes, pa.nulls(table.num_rows, pa.string())]
            writer.add(pa.table(columns, schema=CHECKED))
        spec = f"{dataset.source['spec']}: {part}"
        return writer.finish(dataset.classes, dataset.source | {"spec": spec, "of": dataset.fingerprint})


def _write_balanced(dataset: Dataset, dest: Location, fraction: float, seed: int) -> Dataset:
    part = f"{100 * fraction:g} % of each class, seed {seed}"
    return write_subset(dataset, dest, balanced_rows(dataset, fraction, seed), part)


def _taken(dataset: Dataset, rows: np.ndarray) -> Iterator[pa.Table]:
    reader, slices = SliceReader(dataset), rows // dataset.slice_rows
    for g in np.unique(slices):
        yield reader.read_slice(int(g)).take(rows[slices == g] - int(g) * dataset.slice_rows)


def _columns(dataset: Dataset, names: list[str]) -> Iterator[pa.Table]:
    reader = SliceReader(dataset)
    return (reader.read_slice(g, names) for g in range(dataset.slices))
