"""The teacher that method.teacher names: of a run with a classifier, or of a file."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from simclr_ray.config import CLASSIFYING, BadInput, Config, DistillationConfig
from simclr_ray.export.encoder import encoder_file, load_pretrained
from simclr_ray.export.head import checkpoint_with
from simclr_ray.methods.build import build_teacher
from simclr_ray.methods.teacher import Teacher, is_teacher, teacher_file, teacher_in
from simclr_ray.storage.location import Location

PARTS = ("encoder.", "head.", "classifier.")
"""What a run's checkpoint calls the parts of its classifier, as `Supervised` does."""


def teacher_of(config: Config) -> tuple[bytes, dict[str, Any]]:
    """The run folder's file of the teacher, and the settings that it resolves: its sha256 and its classes.

    Raises BadInput if there is no such teacher, if it cannot take the run's images, and if its sha256 or its number of
    classes is another one than `config` has.
    """
    method = config.method
    assert isinstance(method, DistillationConfig)
    if method.teacher is None:
        raise BadInput("method distillation needs a teacher: name a run with a classifier by --method.teacher")
    try:
        content = _content(encoder_file(method.teacher))
        teacher = teacher_in(content)
        _require_usable(teacher, config)
    except BadInput as error:
        raise BadInput(f"method.teacher: {error}") from None
    trained = teacher.config.method
    assert isinstance(trained, CLASSIFYING)
    found = {"method.teacher_sha256": sha256(content).hexdigest(), "method.classes": trained.classes}
    for key, now in config.flat().items():
        if key in found and now not in (None, found[key]):
            raise BadInput(f"{key} is {now!r}, that of method.teacher {method.teacher} is {found[key]!r}: leave it out")
    return content, found


def _content(file: Location) -> bytes:
    """The teacher's file: `file` itself, or of the checkpoint beside it that has the weights of this encoder."""
    content = file.read_bytes()
    try:
        safetensors.torch.load(content)
    except SafetensorError as error:
        raise BadInput(f"{file} is no safetensors file ({error})") from None
    if is_teacher(content):
        return content
    pretrained = load_pretrained(file)
    config = pretrained.config
    if not isinstance(config.method, CLASSIFYING):
        raise BadInput(
            f"{file} was trained by {config.method.name}, without a classifier: fine-tune it by evaluate.py RUN "
            "finetune, and name the run that this makes"
        )
    saved = checkpoint_with(pretrained.encoder.state_dict(), file.parent)
    if saved is None:
        raise BadInput(f"no checkpoint beside {file} has its weights, and the classifier is in checkpoints alone")
    return teacher_file(config, {name: value for name, value in saved.model.items() if name.startswith(PARTS)})


def _require_usable(teacher: Teacher, config: Config) -> None:
    """Raises BadInput if it was trained on images of another normalisation, or cannot take views of this size."""
    for name in ("mean", "std"):
        wanted = getattr(teacher.config.data, name)
        if getattr(config.data, name) != wanted:
            raise BadInput(f"it was trained with data.{name} {wanted}: set it to that")
    size, own = config.augment.size, teacher.config.augment.size
    try:
        network = build_teacher(teacher).eval()
        with torch.no_grad():
            network(torch.zeros(1, 3, size, size, dtype=network.classifier.weight.dtype))
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"its network cannot take views of {size} pixels ({reason}): its own have {own}") from None
