"""torchvision's datasets as a source: `torchvision:CIFAR10`, `torchvision:STL10:unlabeled`, downloaded if missing."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torchvision
from PIL import Image

from simclr_ray.config import BadInput
from simclr_ray.data.dataset import IMAGE
from simclr_ray.data.prepare.source import Source, spec_digest


def open_torchvision(spec: str) -> Source:
    """The source `torchvision:NAME[:SPLIT]`; SPLIT is train by default.

    A dataset class with a parameter `split` gets SPLIT; one with `train` gets whether SPLIT is train (else it must be
    test); others cannot be used. Raises BadInput also if the download fails.
    """
    parts = spec.split(":")
    name, split = parts[1], parts[2] if len(parts) > 2 else "train"
    dataset_class = getattr(torchvision.datasets, name, None)
    parameters = inspect.signature(dataset_class).parameters if inspect.isclass(dataset_class) else {}
    arguments: dict[str, Any]
    if "split" in parameters:
        arguments = {"split": split}
    elif "train" in parameters and split in ("train", "test"):
        arguments = {"train": split == "train"}
    else:
        raise BadInput(f"{spec}: torchvision.datasets has no {name} with a split {split}; try torchvision:CIFAR10")
    root = Path(torch.hub.get_dir()).parent / "datasets"
    try:
        dataset = dataset_class(root, download=True, **arguments)  # type: ignore[misc]
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"cannot load {spec}: {reason}; put its files into {root}, or give another source") from None
    classes = getattr(dataset, "classes", None)
    return Source(
        spec=spec,
        digest=spec_digest(spec),
        work=pa.table({"index": pa.array(range(len(dataset)), pa.int64())}),
        listed=True,
        read=partial(_read, dataset, split),
        classes=tuple(str(name) for name in classes) if classes else None,
        rows=len(dataset),
        bytes=len(dataset) * len(_png(dataset[0][0])),
        anywhere=False,
    )


def _read(dataset: Any, split: str, work: pa.Table) -> Iterator[pa.Table]:
    """One table with the images of these numbers as PNG; labels that are no whole numbers are left out."""
    numbers = work["index"].to_pylist()
    samples = [dataset[i] for i in numbers]
    images = [_png(image) for image, _ in samples]
    labels = [int(label) if isinstance(label, int) else None for _, label in samples]
    yield pa.table([images, labels, [f"{split}/{i}" for i in numbers]], schema=IMAGE)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
