"""Prepares a source of images as a dataset, on all CPUs of a Ray cluster; small sources in this process."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator

import pyarrow as pa
import ray

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import BAD_LIST, Dataset, is_dataset, open_dataset
from simclr_ray.data.prepare.build import check, in_threads, ordered_work, require_settings, write_dataset
from simclr_ray.data.prepare.progress import shown
from simclr_ray.data.prepare.source import Source, is_address, open_source, source_digest
from simclr_ray.data.prepare.writer import require_writable
from simclr_ray.orchestrate.cluster import bad_input_unwrapped, join_or_start
from simclr_ray.storage.location import open_location

# Up to this size the threads of one machine are about done when a cluster's first tasks return (1-3 s).
SMALL_BYTES = 256 * 2**20


def prepare(
    source: str,
    dest: str,
    *,
    seed: int = 0,
    max_side: int | None = None,
    slice_rows: int = 32,
    progress: bool = True,
) -> Dataset:
    """Decodes every image of `source` once and writes them, shuffled, to `dest`; the result is the same on any cluster.

    `seed` decides the order; images with a side above `max_side` are scaled down and re-encoded. Raises BadInput.
    """
    require_settings(seed, max_side, slice_rows)
    location = open_location(dest)
    _require_apart(source, dest)
    opened = open_source(source)
    for remark in opened.remarks:
        print(f"data: {remark}", flush=True)
    require_writable(location)
    run = in_threads if opened.bytes <= SMALL_BYTES or not opened.anywhere else on_ray
    checked = run(opened, ordered_work(opened, seed), max_side)
    if progress:
        checked = shown(checked, opened.rows, opened.bytes)
    return write_dataset(opened, location, checked, seed=seed, max_side=max_side, slice_rows=slice_rows)


def prepare_into(
    storage: str,
    source: str,
    *,
    seed: int = 0,
    max_side: int | None = None,
    slice_rows: int = 32,
    progress: bool = True,
) -> Dataset:
    """`source` if it is a dataset, else its prepared copy in STORAGE/data, which is made if there is none yet.

    A source whose listing has changed gets another copy.
    """
    if is_address(source) and is_dataset(source):
        dataset = open_dataset(source)
        print(f"data: {dataset.rows:,} images in {dataset.uri}", flush=True)
        return dataset
    name = open_location(source).uri if is_address(source) else source
    key = repr((name, source_digest(source), seed, max_side, slice_rows))
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source.partition("?")[0].rstrip("/").rpartition("/")[2]).strip("-").lower()
    dest = open_location(storage) / "data" / f"{slug[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if is_dataset(dest.uri):
        print(f"data: {source} as prepared before in {dest}", flush=True)
        return open_dataset(dest.uri)
    print(f"data: preparing {source} into {dest}", flush=True)
    dataset = prepare(source, dest.uri, seed=seed, max_side=max_side, slice_rows=slice_rows, progress=progress)
    if dataset.bad:
        print(f"data: {dataset.bad:,} bad images were left out, listed in {dest / BAD_LIST}", flush=True)
    return dataset


def on_ray(source: Source, work: pa.Table, max_side: int | None) -> Iterator[pa.Table]:
    """Reads and checks the work in tasks on the cluster; tables in order. Raises a task's BadInput unwrapped."""
    read = source.read

    def read_and_check(part: pa.Table) -> Iterator[pa.Table]:
        for rows in read(part):
            yield check(rows, max_side)

    join_or_start()
    tasks = ray.data.from_arrow(work).repartition(target_num_rows_per_block=source.rows_per_task)
    checked = tasks.map_batches(read_and_check, batch_size=None, batch_format="pyarrow")
    checked.context.execution_options.preserve_order = True
    checked.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs every execution, and that progress bars are off
    with bad_input_unwrapped():
        yield from checked.iter_batches(batch_size=None, batch_format="pyarrow")


def _require_apart(source: str, dest: str) -> None:
    """Raises BadInput for a dataset inside its own source: it would be part of the source's next listing."""
    outer, inner = open_location(source), open_location(dest)
    if outer.filesystem.type_name == inner.filesystem.type_name and f"{inner.path}/".startswith(f"{outer.path}/"):
        raise BadInput(f"{dest} lies inside the source {source}: choose a place outside it")
