"""The features of every image of a source, by tasks on a Ray cluster: on its GPUs if it has any, else on its CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice

import numpy as np
import pyarrow as pa
import ray
import torch

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import UNLABELLED, Dataset, open_dataset
from simclr_ray.data.prepare.progress import ProgressLine
from simclr_ray.evaluate.embeddings import Embeddings, Precision, begin_embeddings, open_embeddings, rows_of_part
from simclr_ray.evaluate.features import encode, frozen
from simclr_ray.evaluate.images import centered, read_images
from simclr_ray.export.encoder import encoder_file, load_pretrained
from simclr_ray.orchestrate.cluster import bad_input_unwrapped, join_or_start
from simclr_ray.orchestrate.prepare import prepare_into
from simclr_ray.storage.location import open_location

IN_FLIGHT = 1000
"""Tasks that Ray is given at a time: more than any cluster runs at once, so an autoscaler sees what is wanted."""

NOT_SHARED = "cannot be seen from every node: give a shared folder or an object store"


class Embedder:
    """Writes parts: decodes their images on `threads`, encodes them, and saves the features."""

    def __init__(self, embeddings: Embeddings, dataset: Dataset, threads: int) -> None:
        self._embeddings, self._dataset, self._threads = embeddings, dataset, threads
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._pretrained = load_pretrained(embeddings.location)
        self._pretrained.encoder.to(self._device).to(memory_format=torch.channels_last)

    def write(self, part: int) -> int:
        """Returns the number of images that could not be decoded. Raises BadInput if the data cannot be read."""
        rows, found, pretrained = rows_of_part(self._embeddings, part), [], self._pretrained
        slices = range(rows.start // self._dataset.slice_rows, -(-rows.stop // self._dataset.slice_rows))
        with frozen(pretrained.encoder):
            for batch in read_images(self._dataset, centered(pretrained.size), slices=slices, threads=self._threads):
                pixels = torch.from_numpy(batch.pixels).to(self._device)
                h = encode(pretrained.encoder, pixels, pretrained.mean, pretrained.std)
                found.append((batch, h.cpu().numpy()))
        batches = [batch for batch, _ in found]
        labels = np.concatenate([batch.labels for batch in batches])
        self._embeddings.write(
            part,
            ids=np.concatenate([batch.ids for batch in batches]),
            paths=pa.array([path for batch in batches for path in batch.paths], pa.string()),
            labels=pa.array(labels, pa.int32(), mask=labels == UNLABELLED),
            features=np.concatenate([h for _, h in found]),
        )
        return sum(batch.bad for batch in batches)


@lru_cache(maxsize=1)
def _embedder(embeddings: str, dataset: str, threads: int) -> Embedder:
    """Ray runs one task after the other in a process, and this keeps the encoder between them."""
    if not torch.cuda.is_available():
        torch.set_num_threads(threads)
    try:
        begun = open_embeddings(embeddings)
    except BadInput:  # the driver has begun them
        raise BadInput(f"{embeddings} {NOT_SHARED}") from None
    return Embedder(begun, open_dataset(dataset), threads)


def _write_part(embeddings: str, dataset: str, threads: int, part: int) -> tuple[int, int]:
    return part, _embedder(embeddings, dataset, threads).write(part)


def embed(run: str, source: str, out: str, *, dtype: Precision = "float32", progress: bool = True) -> Embeddings:
    """Writes the features of all images of `source` to the folder `out`; parts that are there already are kept.

    `run`: a run folder or an encoder.safetensors. `source`: a dataset, or anything that prepare takes: it is then
    prepared once beside the run. A single part is made in this process, more on the cluster: a task takes a GPU, or a
    CPU where there is no GPU. Raises BadInput.
    """
    file = encoder_file(run)
    feature_dim = load_pretrained(file).encoder.feature_dim
    dataset = prepare_into(file.parent.parent.uri, source)
    embeddings = begin_embeddings(open_location(out), file.read_bytes(), dataset, feature_dim, dtype)
    missing = embeddings.missing()
    if len(missing) < embeddings.parts:
        print(f"going on: {embeddings.parts - len(missing)} of {embeddings.parts} parts are there", flush=True)
    bad = 0
    written = _here if len(missing) <= 1 else _on_ray
    line = ProgressLine("embedded", sum(len(rows_of_part(embeddings, part)) for part in missing), shown=progress)
    for part, bad_of_part in written(embeddings, dataset, missing):
        bad += bad_of_part
        line.add(len(rows_of_part(embeddings, part)))
    line.end()
    if bad:
        print(f"{bad:,} images could not be decoded and have no row", flush=True)
    if embeddings.missing():
        raise BadInput(f"{out} {NOT_SHARED}")
    return embeddings


def _here(embeddings: Embeddings, dataset: Dataset, parts: list[int]) -> Iterator[tuple[int, int]]:
    embedder = Embedder(embeddings, dataset, os.cpu_count() or 1)
    for part in parts:
        yield part, embedder.write(part)


def _on_ray(embeddings: Embeddings, dataset: Dataset, parts: list[int]) -> Iterator[tuple[int, int]]:
    """Each part and its number of bad images, in the order in which the tasks end.

    Tasks, so that nodes which join take their share at once, and the parts of one that is lost are made elsewhere.
    """
    join_or_start()
    cpus, gpus = task_resources([node["Resources"] for node in ray.nodes() if node["Alive"]])
    # max_calls 0: else a process that had a GPU would end after each task.
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1, max_calls=0)(_write_part)
    addresses, waiting = (embeddings.location.uri, dataset.uri, cpus), iter(parts)
    running = [task.remote(*addresses, part) for part in islice(waiting, IN_FLIGHT)]
    while running:
        done, running = ray.wait(running)
        with bad_input_unwrapped():
            yield ray.get(done[0])
        running += [task.remote(*addresses, part) for part in islice(waiting, 1)]


def task_resources(nodes: Iterable[Mapping[str, float]]) -> tuple[int, int]:
    """CPUs and GPUs of a task, such that each GPU of `nodes` can have one: the CPUs that there are for a GPU."""
    for_each = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU", 0) >= 1]
    return (max(1, int(min(for_each))), 1) if for_each else (1, 0)
