"""Memory and seconds of what grows with the number of images, from metadata alone: no image is made.

    python experiments/benchmark/scale.py [--rows 1000000] [--parts manifest worker ...] [--folder-files 100000]

Each part runs in a process of its own. `peak` is its largest resident memory (VmHWM; ru_maxrss starts at the parent's),
`added` that without what its imports take. Where a driver or a data worker would open many files, one small file stands
for all of them, under many names or many times in the manifest, so footers, names and row groups are as many as in the
real thing.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simclr_ray.cli.command import parse, run_command
from simclr_ray.data.dataset import INDEX, Dataset, Shard, SliceReader, open_dataset
from simclr_ray.data.order import Order
from simclr_ray.data.philox import PREPARE, sort_words
from simclr_ray.data.prepare.build import ordered_work
from simclr_ray.data.prepare.shuffle import shuffled
from simclr_ray.data.prepare.source import open_source
from simclr_ray.data.prepare.writer import CHECKED, SHARD_BYTES, SHARD_SLICES, DatasetWriter
from simclr_ray.storage.location import open_location

SLICE_ROWS = 32
PICKLED = "dataset.pickle"
"""As a data worker gets it."""
FILE_ROWS, GROUP_ROWS = 10_000, 100
"""Of a Parquet file of images as Hugging Face's library writes it."""
EPOCHS, BATCH, WORKERS = 10, 4096, 8
READS = 5000
"""Slices that the data worker reads, in the order of a run."""
TABLE_ROWS = 20_000
WRITTEN_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Arguments:
    rows: int = 1_000_000
    """Images of the data."""
    image_kb: float = 110.0
    """Size of an encoded image, which decides how many rows a shard has."""
    folder_files: int = 100_000
    """Images of the part `folder`: its files must exist, so it gets a number of its own."""
    parts: tuple[str, ...] = ("manifest", "worker", "order", "parquet", "folder", "shuffle", "write")
    scratch: str | None = None
    """Folder for the files; None: the system's temporary one."""
    within: str | None = None
    """Set for the process of a part: the folder of the files that were made for it."""


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    if arguments.within:
        _run_part(arguments, Path(arguments.within))
        return
    print(f"{arguments.rows:,} images of {arguments.image_kb:g} KB\n")
    print(f"{'part':<12}{'seconds':>10}{'peak MiB':>10}{'added MiB':>11}  what")
    for part in arguments.parts:
        with TemporaryDirectory(dir=arguments.scratch) as folder:
            MAKE.get(part, _nothing)(arguments, Path(folder))
            _print(part, arguments, folder)


def _print(part: str, arguments: Arguments, folder: str) -> None:
    flags = ["--rows", arguments.rows, "--image-kb", arguments.image_kb, "--folder-files", arguments.folder_files]
    command = [sys.executable, __file__, *map(str, flags), "--parts", part, "--within", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{part:<12}failed: exit code {done.returncode}")
        return
    found = json.loads(done.stdout)
    peak, before = (found[key] / 1024 for key in ("peak_kib", "before_kib"))
    print(f"{part:<12}{found['seconds']:>10.2f}{peak:>10.0f}{peak - before:>11.0f}  {found['what']}", flush=True)


def _run_part(arguments: Arguments, folder: Path) -> None:
    _order(arguments).slice_at(0)  # compiles, or loads what was compiled
    sort_words(0, 0, PREPARE, 1)
    before, start = _peak_kib(), perf_counter()
    what = PARTS[arguments.parts[0]](arguments, folder)
    seconds = perf_counter() - start
    print(json.dumps({"before_kib": before, "peak_kib": _peak_kib(), "seconds": seconds, "what": what}))


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


# What a part measures, in a process of its own; it returns what that was.


def manifest(arguments: Arguments, folder: Path) -> str:
    """The driver of a run."""
    dataset = open_dataset(str(folder))
    return f"opens a manifest of {len(dataset.shards):,} shards, {os.path.getsize(folder / INDEX) / 2**20:.1f} MiB"


def worker(arguments: Arguments, folder: Path) -> str:
    dataset: Dataset = pickle.loads((folder / PICKLED).read_bytes())
    reader, order = SliceReader(dataset), _order(arguments)
    for position in np.asarray(order.worker_positions(0, order.steps_per_epoch, 0, 1)[:READS]):
        _, number = order.slice_at(int(position))
        reader.read_slice(number, ["image"])
    return f"reads {READS:,} slices, in the order of the run"


def order(arguments: Arguments, folder: Path) -> str:
    found = _order(arguments)
    last = EPOCHS * found.steps_per_epoch
    positions = found.worker_positions(0, last, 0, WORKERS)
    for position in np.asarray(positions[-READS:]):
        found.slice_at(int(position))
    return f"{EPOCHS} epochs, {last:,} steps: the positions of one of {WORKERS} workers, and the last {READS:,} slices"


def parquet(arguments: Arguments, folder: Path) -> str:
    source = open_source(str(folder))
    ordered_work(source, 0)
    return f"lists {_files(arguments):,} Parquet files, {source.work.num_rows:,} row groups, {source.rows:,} images"


def folder_of_images(arguments: Arguments, folder: Path) -> str:
    source = open_source(str(folder))
    ordered_work(source, 0)
    return f"lists and shuffles {source.rows:,} image files"


def shuffle(arguments: Arguments, folder: Path) -> str:
    rows = sum(table.num_rows for table in shuffled(_tables(arguments.rows), 0, _bytes(arguments), folder))
    return f"shuffles {rows:,} rows without their images through files"


def write(arguments: Arguments, folder: Path) -> str:
    """The one process that writes a dataset; random bytes stand for the images."""
    size, start = round(1000 * arguments.image_kb), perf_counter()
    tables = -(-WRITTEN_BYTES // (size * SLICE_ROWS))
    images = np.random.default_rng(0).integers(0, 256, (SLICE_ROWS, size), np.uint8)
    table = _table(SLICE_ROWS).set_column(0, "image", pa.array([image.tobytes() for image in images], pa.binary()))
    with DatasetWriter(open_location(str(folder)), SLICE_ROWS) as writer:
        for _ in range(tables):
            writer.add(table)
        writer.finish(None, {"spec": "none", "digest": "", "seed": 0, "max_side": None})
    rate = tables * SLICE_ROWS * size / 1e6 / (perf_counter() - start)
    return f"writes {tables * SLICE_ROWS:,} images of {arguments.image_kb:g} KB, {rate:,.0f} MB/s"


PARTS: dict[str, Callable[[Arguments, Path], str]] = {
    "manifest": manifest,
    "worker": worker,
    "order": order,
    "parquet": parquet,
    "folder": folder_of_images,
    "shuffle": shuffle,
    "write": write,
}


# What is made before it.


def make_dataset(arguments: Arguments, folder: Path) -> None:
    """A manifest whose shards all are the same small file, with as many slices as a shard would have."""
    slices = max(1, min(SHARD_SLICES, SHARD_BYTES // round(1000 * arguments.image_kb) // SLICE_ROWS))
    shard_rows = slices * SLICE_ROWS
    with DatasetWriter(open_location(str(folder)), SLICE_ROWS) as writer:
        writer.add(_table(shard_rows))
        one = writer.finish(None, {"spec": "none", "digest": "", "seed": 0, "max_side": None})
    whole, rest = divmod(arguments.rows, shard_rows)
    name = one.shards[0].name
    shards = (*(Shard(name=name, rows=shard_rows) for _ in range(whole)), Shard(name=name, rows=rest))
    fields = {key: value for key, value in one.__dict__.items() if key not in ("rows", "shards")}
    dataset = Dataset(**fields, rows=arguments.rows, shards=shards)
    (folder / INDEX).write_text(dataset.to_json())
    (folder / PICKLED).write_bytes(pickle.dumps(dataset))


def make_parquet(arguments: Arguments, folder: Path) -> None:
    """Links to one file."""
    images = pa.array([{"bytes": b"", "path": f"{i:09d}.jpg"} for i in range(FILE_ROWS)])
    table = pa.table({"image": images, "label": pa.array(range(FILE_ROWS), pa.int64())})
    pq.write_table(table, folder / ".one", row_group_size=GROUP_ROWS)
    for number in range(_files(arguments)):
        os.link(folder / ".one", folder / f"train-{number:05d}-of-{_files(arguments):05d}.parquet")


def make_folder(arguments: Arguments, folder: Path) -> None:
    """A thousand class folders of links to empty files; a file has at most 65,000 links."""
    for name in range(1000):
        (folder / f"n{name:08d}").mkdir()
    for number in range(arguments.folder_files):
        one = folder / f".{number // 60_000}"
        if number % 60_000 == 0:
            one.touch()
        os.link(one, folder / f"n{number % 1000:08d}" / f"n{number % 1000:08d}_{number:010d}.JPEG")


def _nothing(arguments: Arguments, folder: Path) -> None:
    pass


MAKE = {"manifest": make_dataset, "worker": make_dataset, "parquet": make_parquet, "folder": make_folder}


def _order(arguments: Arguments) -> Order:
    return Order(seed=0, rows=arguments.rows, slice_rows=SLICE_ROWS, global_batch=BATCH, pass_size=BATCH)


def _files(arguments: Arguments) -> int:
    return -(-arguments.rows // FILE_ROWS)


def _bytes(arguments: Arguments) -> int:
    return round(1000 * arguments.image_kb * arguments.rows)


def _tables(rows: int, table_rows: int = TABLE_ROWS) -> Iterator[pa.Table]:
    """CHECKED rows: no image, a label, a path."""
    table = _table(table_rows)
    yield from islice(_repeated(table), rows // table_rows)
    if rows % table_rows:
        yield table.slice(0, rows % table_rows)


def _repeated(table: pa.Table) -> Iterator[pa.Table]:
    while True:
        yield table


def _table(rows: int) -> pa.Table:
    paths = [f"train-00000-of-41000.parquet:{row}" for row in range(rows)]
    columns = [[b""] * rows, pa.array(range(rows), pa.int32()), paths, [1] * rows, pa.nulls(rows, pa.string())]
    return pa.table(columns, schema=CHECKED)


if __name__ == "__main__":
    run_command(main)
