"""Weights to start from: of torchvision, of timm, of an earlier run, or of a file."""

from __future__ import annotations

import io
import pickle
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from simclr_ray.config import CLASSIFYING, BadInput, Config
from simclr_ray.config.science import LIBRARIES
from simclr_ray.config.suggest import suggestion
from simclr_ray.export.encoder import encoder_file, is_exported
from simclr_ray.export.head import trained_head
from simclr_ray.methods.build import build_encoder
from simclr_ray.model.initial import initial_file, load_initial
from simclr_ray.storage.location import open_location

TORCH_FILES = (".pth", ".pt", ".pth.tar", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts save the weights beside other values."""


def initial_of(config: Config) -> tuple[bytes, str]:
    """The run folder's file of `model.init`'s weights, and its sha256.

    A classifier on layers of a projection head gets these too. Raises BadInput if the weights do not fit the encoder,
    if there is no such head, or if `model.init_sha256` names others.
    """
    assert config.model.init is not None
    encoder = build_encoder(config.model, config.train.seed, size=config.augment.size)
    try:
        load_initial(encoder, published_weights(config.model.init), config.model.init)
    except BadInput as error:
        raise BadInput(f"model.init: {error}") from None
    content, found = initial_file(encoder, _head(config))
    if config.model.init_sha256 not in (None, found):
        raise BadInput(f"the weights of model.init {config.model.init} have sha256 {found}, not model.init_sha256")
    return content, found


def _head(config: Config) -> dict[str, Tensor]:
    """The layers of a projection head that stay before a classifier. Published weights have none: it is drawn."""
    source, method = str(config.model.init), config.method
    layers = method.from_head if isinstance(method, CLASSIFYING) else 0
    if not layers or source.partition(":")[0] in LIBRARIES or source.endswith(TORCH_FILES):
        return {}
    file = encoder_file(source)
    return trained_head(file, layers, config.model) if is_exported(file.read_bytes()) else {}


def published_weights(source: str) -> dict[str, Tensor]:
    """The weights of `torchvision:WEIGHTS`, `timm:NAME`, a run folder, a .safetensors or a torch file, by name.

    WEIGHTS: a network, for torchvision's best weights of it, or weights such as ResNet50_Weights.IMAGENET1K_V1. Both
    libraries keep what they fetch in their own caches. Raises BadInput.
    """
    library, _, name = source.partition(":")
    try:
        if library == "torchvision":
            return _of_torchvision(name)
        if library == "timm":
            return _of_timm(name)
    except (URLError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{source} cannot be fetched ({reason}): name a file that holds the weights") from None
    return _of_torch_file(source) if source.endswith(TORCH_FILES) else _of_safetensors(source)


def _of_torchvision(name: str) -> dict[str, Tensor]:
    from torchvision import models  # takes a second

    try:
        weights = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError, KeyError):
        known = models.list_models(module=models)
        raise BadInput(f"torchvision has no weights {name!r}{suggestion(name, known)}") from None
    return dict(weights.get_state_dict(progress=True, check_hash=True))


def _of_timm(name: str) -> dict[str, Tensor]:
    from simclr_ray.model.backbones import timm_for  # imports torchvision, which takes a second

    timm = timm_for(name)
    if not timm.list_pretrained(name):
        raise BadInput(f"timm has no weights {name!r}{suggestion(name, timm.list_pretrained())}")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except RuntimeError as error:  # how the hub's client reports that it has no network
        raise OSError(str(error)) from error


def _of_safetensors(source: str) -> dict[str, Tensor]:
    file = encoder_file(source)
    try:
        return safetensors.torch.load(file.read_bytes())
    except SafetensorError as error:
        raise BadInput(f"{file} is no safetensors file ({error})") from None


def _of_torch_file(source: str) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote; nothing but tensors is unpickled."""
    try:
        content: Any = torch.load(io.BytesIO(open_location(source).read_bytes()), "cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"{source} cannot be read: {str(error).splitlines()[0]}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadInput(f"{source} holds no plain weights ({str(error).splitlines()[0]})") from None
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInput(f"{source} holds no weights by name")
    return {name.removeprefix("module."): value for name, value in content.items()}
