"""The projection head that was trained with an encoder: exported files do not hold it, the run's checkpoints do."""

from __future__ import annotations

from torch import Tensor

from simclr_ray.config import BadInput, ModelConfig
from simclr_ray.export.encoder import load_pretrained
from simclr_ray.model.heads import leading_layers, projection_head
from simclr_ray.storage.location import Location
from simclr_ray.train import checkpoint
from simclr_ray.train.state import Snapshot

SHAPE = ("head", "head_layers", "head_hidden", "head_batchnorm")
"""The settings of model on which the layers before the last depend."""


def trained_head(file: Location, layers: int, model: ModelConfig) -> dict[str, Tensor]:
    """The weights of the first `layers` layers, by their names in `leading_layers`; `file`: an exported encoder's.

    They are those of the run folder's checkpoint with the very weights of the file. Raises BadInput if there is none,
    or if the head was not one of `model`.
    """
    pretrained = load_pretrained(file)
    trained = pretrained.config.model
    for name in SHAPE:
        if getattr(trained, name) != getattr(model, name):
            raise BadInput(f"{file} was trained with model.{name} {getattr(trained, name)}: set it to that")
    names = list(leading_layers(projection_head(trained, pretrained.encoder.feature_dim), layers).state_dict())
    saved = checkpoint_with(pretrained.encoder.state_dict(), file.parent)
    if saved is None:
        raise BadInput(
            f"no checkpoint beside {file} has its weights, and the projection head is in checkpoints alone: name the "
            "encoder.safetensors of a run folder that still has its last checkpoint, or leave out the head"
        )
    try:
        return {name: saved.model[f"head.{name}"] for name in names}
    except KeyError:
        method = pretrained.config.method.name
        raise BadInput(f"{file} was trained by {method}, without a projection head: leave out the head") from None


def checkpoint_with(encoder: dict[str, Tensor], run: Location) -> Snapshot | None:
    """The newest valid checkpoint of this encoder. A run that went on has others; one is pruned some time after."""
    for step in reversed(checkpoint.complete_steps(run)):
        try:
            saved = checkpoint.read(run, step)
        except checkpoint.Damaged:
            continue
        if all(value.equal(saved.model[f"encoder.{name}"].to(value.dtype)) for name, value in encoder.items()):
            return saved
    return None
