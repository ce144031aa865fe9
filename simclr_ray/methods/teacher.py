"""The teacher of a distillation as a file: a classifier's weights with the config of the run that trained it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

import safetensors.torch
from torch import Tensor

from simclr_ray.config import BadInput, Config, DistillationConfig, MethodConfig
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import TEACHER
from simclr_ray.storage.tensor_file import metadata_of, with_metadata

FORMAT = "simclr_ray teacher 1"


class Teacher(NamedTuple):
    """A fixed classifier."""

    config: Config
    """Of its run, whose method has a classifier."""
    weights: dict[str, Tensor]
    """By their names in `Supervised`."""


def teacher_file(config: Config, weights: Mapping[str, Tensor]) -> bytes:
    """The file that a run folder keeps; equal weights and configs give equal bytes."""
    metadata = {"format": FORMAT, "config": config.to_json()}
    return with_metadata(
        safetensors.torch.save({name: value.contiguous() for name, value in weights.items()}), metadata
    )


def is_teacher(content: bytes) -> bool:
    """Whether `teacher_file` made this content of a safetensors file."""
    return metadata_of(content).get("format") == FORMAT


def teacher_in(content: bytes) -> Teacher:
    """The teacher of a file that `teacher_file` made."""
    return Teacher(Config.from_json(metadata_of(content)["config"]), safetensors.torch.load(content))


def read_teacher(run: Location, method: MethodConfig) -> Teacher | None:
    """The teacher of a run, on the CPU; None where its method has none. Raises BadInput for another file."""
    if not isinstance(method, DistillationConfig) or method.teacher_sha256 is None:
        return None
    try:
        content = (run / TEACHER).read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{run / TEACHER}, the run's method.teacher, is gone: use another --name") from None
    if sha256(content).hexdigest() != method.teacher_sha256:
        raise BadInput(f"{run / TEACHER} is not the method.teacher that the run was started with: use another --name")
    return teacher_in(content)
