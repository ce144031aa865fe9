"""An encoder in the formats of other tools: torchvision, timm, ONNX, torch.export, safetensors."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, get_args

import safetensors.torch
import torch
from torch import Tensor

from simclr_ray.config import BadInput, ModelConfig
from simclr_ray.config.science import RESNETS
from simclr_ray.export.encoder import LibraryNetwork, Pretrained, as_encoder, library_network
from simclr_ray.export.transform import Transform
from simclr_ray.storage.location import Location
from simclr_ray.storage.run_folder import ENCODER

Format = Literal["torchvision", "timm", "onnx", "torch.export", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
ONNX_OPSET = 18


def write_format(form: Format, pretrained: Pretrained, content: bytes, out: Location) -> str:
    """Writes the encoder to `out` and returns Python lines that load it. `content`: that of its encoder.safetensors.

    Raises BadInput for a network that the library does not have, or a package that is not installed.
    """
    if form == "safetensors":
        (out / ENCODER).write_bytes(content)
        return f"import simclr_ray\nencoder = simclr_ray.load({(out / ENCODER).uri!r})"
    writers: dict[Format, Callable[[Pretrained, Location], str]] = {
        "torchvision": _torchvision,
        "timm": _timm,
        "onnx": _onnx,
        "torch.export": _torch_export,
    }
    return writers[form](pretrained, out)


def _torchvision(pretrained: Pretrained, out: Location) -> str:
    found = _library_network(pretrained, "torchvision")
    if found.library != "torchvision":
        raise _not_in("torchvision", pretrained.config.model)
    buffer = io.BytesIO()
    torch.save(_weights(pretrained), buffer)
    (out / "model.pth").write_bytes(buffer.getvalue())
    arguments = "".join(f", {key}={value!r}" for key, value in found.settings.items())
    lines = [
        "import torch",
        "from torchvision.models import get_model",
        f"model = get_model({found.name!r}{arguments})",
        f"weights = torch.load({(out / 'model.pth').uri!r}, weights_only=True)",
        "model.load_state_dict(weights, strict=False)  # all but the classifier",
        *as_encoder(found),
    ]
    return "\n".join(lines)


def _timm(pretrained: Pretrained, out: Location) -> str:
    """The layout of the Hugging Face hub: config.json and model.safetensors."""
    library, name, settings, _ = _library_network(pretrained, "timm")
    if library != "timm" and name not in RESNETS:  # these have torchvision's names and shapes there
        raise _not_in("timm", pretrained.config.model)
    transform, size = transform_of(pretrained), pretrained.size
    described = {
        "architecture": name,
        "num_classes": 0,
        "num_features": pretrained.encoder.feature_dim,
        "model_args": {key: value for key, value in settings.items() if key != "num_classes"},
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bilinear",
            "crop_pct": transform.crop_fraction,
            "crop_mode": "center",
            "mean": list(pretrained.mean),
            "std": list(pretrained.std),
            "num_classes": 0,
        },
    }
    (out / "config.json").write_bytes((json.dumps(described, indent=2) + "\n").encode())
    (out / "model.safetensors").write_bytes(safetensors.torch.save(_weights(pretrained), {"format": "pt"}))
    return f'import timm\nmodel = timm.create_model("local-dir:{out.uri}", pretrained=True)\nmodel.eval()'


def _onnx(pretrained: Pretrained, out: Location) -> str:
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise BadInput("--format onnx needs packages that are not installed: pip install 'simclr_ray[onnx]'")
    program = torch.onnx.export(
        pretrained.encoder.float().eval(),
        (_example(pretrained),),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        opset_version=ONNX_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    (out / "model.onnx").write_bytes(program.model_proto.SerializeToString())
    return (
        f"import onnxruntime\nsession = onnxruntime.InferenceSession({(out / 'model.onnx').uri!r})\n"
        '(features,) = session.run(["features"], {"images": images})  # images: preprocessing.json says which'
    )


def _torch_export(pretrained: Pretrained, out: Location) -> str:
    program = torch.export.export(
        pretrained.encoder.float().eval(), (_example(pretrained),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    (out / "model.pt2").write_bytes(buffer.getvalue())
    return f"import torch\nmodel = torch.export.load({(out / 'model.pt2').uri!r}).module()"


def transform_of(pretrained: Pretrained) -> Transform:
    return Transform(size=pretrained.size, mean=pretrained.mean, std=pretrained.std)


def _example(pretrained: Pretrained) -> Tensor:
    return torch.zeros(2, 3, pretrained.size, pretrained.size)


def _weights(pretrained: Pretrained) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in pretrained.encoder.network.state_dict().items()}


def _library_network(pretrained: Pretrained, wanted: str) -> LibraryNetwork:
    found = library_network(pretrained.config.model, pretrained.size)
    if found is None:
        raise _not_in(wanted, pretrained.config.model)
    return found


def _not_in(library: str, model: ModelConfig) -> BadInput:
    what = f"{model.arch} of width {model.width:g} with the stem {model.stem}" if model.arch in RESNETS else model.arch
    own = model.arch.rpartition(":")[0]
    fitting = ", ".join(([own] if own else []) + ["onnx", "torch.export"])
    return BadInput(f"{library} has no network {what}: use --format {fitting} or safetensors")
