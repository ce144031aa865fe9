"""Initial weights of an encoder from a file: a warm start, instead of weights drawn from the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import safetensors.torch
from torch import Tensor, nn

from simclr_ray.config import BadInput
from simclr_ray.model.encoder import Encoder
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import INITIAL

HEAD = "projection_head"
"""What this file calls the layers of a projection head, for fine-tuning from there."""
CLASSIFIERS = ("fc", "classifier", "head", "heads", "head_dist", "AuxLogits", "aux1", "aux2", HEAD)
"""What torchvision and timm call the layers after the features, and HEAD; an encoder does not have them."""
MOST_NAMED = 4


def load_initial(encoder: Encoder, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies `weights`, under published names, into `encoder`, BatchNorm's statistics too; a classifier is left out.

    Raises BadInput that lists what does not fit. `source`: where they are from, for that message.
    """
    own = encoder.network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    # Files from before torch 1.0 do not count the batches.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in own and name.partition(".")[0] not in CLASSIFIERS]
    reshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and name not in fitting
    ]
    complaints = [("it lacks", missing), ("of another shape", reshaped), ("unknown", unknown)]
    if any(names for _, names in complaints):
        listed = "; ".join(f"{what}: {_listed(names)}" for what, names in complaints if names)
        raise BadInput(f"{source} does not fit the network: {listed}")
    encoder.network.load_state_dict(fitting, strict=False)


def load_head(head: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies a projection head's layers from `weights` into `head`; where these have none, it stays as drawn."""
    found = {name.removeprefix(f"{HEAD}."): value for name, value in weights.items() if name.startswith(f"{HEAD}.")}
    if found:
        head.load_state_dict(found)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def initial_file(encoder: Encoder, head: Mapping[str, Tensor]) -> tuple[bytes, str]:
    """The weights as the file that a run folder keeps, and its sha256; equal weights give equal bytes.

    `head`: those of the layers of a projection head, where fine-tuning begins there.
    """
    weights = encoder.network.state_dict() | {f"{HEAD}.{name}": value for name, value in head.items()}
    content = safetensors.torch.save({name: value.detach().contiguous() for name, value in weights.items()})
    return content, sha256(content).hexdigest()


def read_initial(run: Location, expected_sha256: str | None) -> dict[str, Tensor] | None:
    """The weights that the run starts from, on the CPU; None if it draws them. Raises BadInput for another file."""
    if expected_sha256 is None:
        return None
    try:
        content = (run / INITIAL).read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{run / INITIAL}, the weights that the run starts from, is gone: use another --name") from None
    if sha256(content).hexdigest() != expected_sha256:
        raise BadInput(f"{run / INITIAL} is not the file that the run was started from: use another --name")
    return safetensors.torch.load(content)
