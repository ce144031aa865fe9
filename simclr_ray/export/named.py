"""An encoder by name: of a run, of torchvision or timm, or of a file of weights; with the transform of its images."""

from __future__ import annotations

from typing import Any

from simclr_ray.config import ModelConfig
from simclr_ray.config.science import LIBRARIES
from simclr_ray.export.encoder import Pretrained, load_pretrained
from simclr_ray.export.formats import transform_of
from simclr_ray.export.published import TORCH_FILES, published_weights
from simclr_ray.export.transform import Transform
from simclr_ray.methods.build import build_encoder
from simclr_ray.model.encoder import Encoder
from simclr_ray.model.initial import load_initial


def load_named(name: str, own: Pretrained) -> tuple[Encoder, Transform]:
    """The encoder `name`, on the CPU in eval mode, and the transform of the images that it was trained on.

    `name`: a run folder or an encoder.safetensors; torchvision:NAME, torchvision:WEIGHTS or timm:NAME, which their
    libraries fetch; ARCH=FILE, weights for a network that model.arch names, whose images are those of its library's
    own weights; a torch FILE, weights for the network of `own`, for images like its own. Raises BadInput.
    """
    arch, mark, file = name.partition("=")
    if mark and "/" not in arch:
        return _loaded(ModelConfig(arch=arch), file, _published_transform(arch) or transform_of(own))
    if name.partition(":")[0] in LIBRARIES:
        model = ModelConfig(arch=_arch(name))
        return _loaded(model, name, _published_transform(name) or transform_of(own))
    if name.endswith(TORCH_FILES):
        return _loaded(own.config.model, name, transform_of(own))
    pretrained = load_pretrained(name)
    return pretrained.encoder, transform_of(pretrained)


def _loaded(model: ModelConfig, weights: str, transform: Transform) -> tuple[Encoder, Transform]:
    encoder = build_encoder(model, seed=0, size=transform.size)
    load_initial(encoder, published_weights(weights), weights)
    return encoder.eval(), transform


def _arch(name: str) -> str:
    """The network of published weights: torchvision calls those of vit_b_16 ViT_B_16_Weights.SOMETHING."""
    return name.partition("_Weights.")[0].lower() if "_Weights." in name else name


def _published_transform(name: str) -> Transform | None:
    """That of a library's weights for a network, or of these weights; None where it has none."""
    library, _, network = name.rpartition(":")
    if library == "timm":
        from simclr_ray.model.backbones import timm_for  # imports torchvision, which takes a second

        found: Any = timm_for(network).get_pretrained_cfg(network)
        return Transform(size=found.input_size[-1], mean=found.mean, std=found.std) if found else None
    from torchvision import models

    try:
        weights = models.get_weight(network) if "." in network else models.get_model_weights(network).DEFAULT
    except (ValueError, KeyError, AttributeError):
        return None
    preset: Any = weights.transforms()
    return Transform(size=preset.crop_size[0], mean=tuple(preset.mean), std=tuple(preset.std))
