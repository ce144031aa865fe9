"""The trained encoder as one safetensors file: torchvision's weight names, and the metadata that loading needs.

Nothing is pickled, so an untrusted file can be loaded without running code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError

from simclr_ray.config import BadInput, Config, ModelConfig
from simclr_ray.methods.build import build_encoder
from simclr_ray.model.build import draw_encoder
from simclr_ray.model.encoder import Encoder
from simclr_ray.storage.location import Location, open_location, unreachable
from simclr_ray.storage.run_folder import ENCODER
from simclr_ray.storage.tensor_file import metadata_of, with_metadata

FORMAT = "simclr_ray encoder 1"
LIBRARY_LINES = {
    "torchvision": ("from torchvision.models import get_model", "get_model"),
    "timm": ("import timm", "timm.create_model"),
}
"""How each library's network is imported and built."""


@dataclass(frozen=True)
class Pretrained:
    """An encoder in eval mode, the size and normalisation of its input, and the config of its run."""

    encoder: Encoder
    size: int
    """Side in pixels of the views it was trained on."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    config_json: str
    sha256: str
    """Of the file."""

    @property
    def config(self) -> Config:
        return Config.from_json(self.config_json)


def export_encoder(encoder: Encoder, config: Config, folder: Location | str, name: str = ENCODER) -> Location:
    """Writes the file `name` into the run folder and returns its location.

    The weights are written in their own precision, under the names of torchvision or timm: their network of the same
    name loads them, all but its classifier, a resnet's at width 1 with the imagenet stem. Equal weights and configs
    give equal bytes.
    """
    location = _opened(folder) / name
    location.write_bytes(exported(encoder, config))
    return location


def exported(encoder: Encoder, config: Config) -> bytes:
    """The content of that file."""
    metadata = {
        "format": FORMAT,
        "arch": config.model.arch,
        "width": str(config.model.width),
        "stem": config.model.stem,
        "size": str(config.augment.size),
        "mean": json.dumps(config.data.mean),
        "std": json.dumps(config.data.std),
        "config": config.to_json(),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.network.state_dict().items()}
    return with_metadata(safetensors.torch.save(weights), metadata)


def load_encoder(run_or_file: Location | str) -> Encoder:
    """The encoder of a run folder or of a .safetensors file, local or by URI; on the CPU, in eval mode.

    Raises BadInput if there is none, or if `export_encoder` did not write the file.
    """
    return load_pretrained(run_or_file).encoder


def load_pretrained(run_or_file: Location | str) -> Pretrained:
    """`load_encoder`, with the size, mean and std of the images and the config of the run."""
    location = encoder_file(run_or_file)
    content = location.read_bytes()
    try:
        weights = safetensors.torch.load(content)
    except SafetensorError as error:
        raise BadInput(f"{location} is no safetensors file ({error}); export the run again") from None
    metadata = metadata_of(content)
    if not is_exported(content):
        raise BadInput(f"{location} was not written by this version of simclr_ray (its metadata lack '{FORMAT}')")
    size = int(metadata["size"])
    model = ModelConfig(arch=metadata["arch"], width=float(metadata["width"]), stem=metadata["stem"])  # type: ignore
    encoder = build_encoder(model, seed=0, size=size)
    encoder.to(next(value.dtype for value in weights.values() if value.is_floating_point()))
    encoder.network.load_state_dict(weights)
    return Pretrained(
        encoder=encoder.eval(),
        size=size,
        mean=_channels(metadata["mean"]),
        std=_channels(metadata["std"]),
        config_json=metadata["config"],
        sha256=sha256(content).hexdigest(),
    )


def is_exported(content: bytes) -> bool:
    """Whether `export_encoder` wrote this content of a safetensors file."""
    return metadata_of(content).get("format") == FORMAT


def encoder_file(run_or_file: Location | str) -> Location:
    """The location of a run folder's encoder, or of the file itself. Raises BadInput if it does not exist."""
    location = _opened(run_or_file)
    is_file = location.name.endswith(".safetensors")
    file = location if is_file else location / ENCODER
    try:
        found = file.exists()
    except OSError as error:
        raise unreachable("read", file, error) from None
    if found:
        return file
    if is_file:
        raise BadInput(f"there is no file {file}; give a run folder or an {ENCODER}")
    raise BadInput(f"{location} has no {ENCODER}: a run writes it when it ends; finish the run or check the path")


def loading_lines(file: Location, config: Config) -> str:
    """Python lines that load the file; without simclr_ray too, where torchvision or timm has the same network."""
    lines = ["import simclr_ray", f"encoder = simclr_ray.load({file.uri!r})"]
    path = str(file.local) if file.local else file.name
    found = library_network(config.model, config.augment.size)
    if found:
        arguments = "".join(f", {key}={value!r}" for key, value in found.settings.items())
        imported, build = LIBRARY_LINES[found.library]
        lines += [
            "",
            f"# or with {found.library} alone" + ("" if file.local else f", from a copy of {file.uri}"),
            *(["import torch"] if found.classifier else []),
            "from safetensors.torch import load_file",
            imported,
            f"model = {build}({found.name!r}{arguments})",
            f"model.load_state_dict(load_file({path!r}), strict=False)  # all but the classifier",
            *as_encoder(found),
        ]
    return "\n".join(lines) + "\n"


class LibraryNetwork(NamedTuple):
    """A network of torchvision or timm, what it is asked for beside its name, and the path of its classifier if any."""

    library: str
    name: str
    settings: dict[str, Any]
    classifier: str | None


def as_encoder(network: LibraryNetwork) -> list[str]:
    """Lines after which the library's `model` gives features, by the statistics of training."""
    replaced = f"model.set_submodule({network.classifier!r}, torch.nn.Identity())  # features, no classes"
    return [*([replaced] if network.classifier else []), "model.eval()"]


def library_network(model: ModelConfig, size: int) -> LibraryNetwork | None:
    """The library's network that this one is but for its classifier; None: no library has it.

    A resnet of torchvision's shape is called by torchvision's name, which is timm's too.
    """
    if model.width != 1 or model.stem != "imagenet":
        return None
    library, _, name = model.arch.rpartition(":")
    with torch.device("meta"):
        encoder = draw_encoder(model, size)
    settings, classifier = getattr(encoder, "settings", {}), getattr(encoder, "removed", "fc")
    return LibraryNetwork(library or "torchvision", name, dict(settings), classifier)


def _channels(text: str) -> tuple[float, float, float]:
    red, green, blue = map(float, json.loads(text))
    return red, green, blue


def _opened(where: Location | str) -> Location:
    return open_location(where) if isinstance(where, str) else where
