"""Writes a pretrained encoder for other tools, with its preprocessing and a model card.

    python experiments/export.py RUN OUT --format torchvision|timm|onnx|torch.export|safetensors

timm: the layout of the Hugging Face hub, for timm.create_model("local-dir:OUT", pretrained=True) and for an upload.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from simclr_ray.cli.command import parse


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder or an encoder.safetensors, local or by URI."""
    out: tyro.conf.Positional[str]
    """A new folder."""
    format: Literal["torchvision", "timm", "onnx", "torch.export", "safetensors"]


def main(argv: list[str]) -> None:
    arguments = parse(Arguments, argv, description=__doc__)
    from simclr_ray.export.export import export  # imports torch, which takes a second

    command = shlex.join(["python", "experiments/export.py", *argv])
    lines = export(arguments.run, arguments.out, arguments.format, command)
    print(f"{arguments.out}: the encoder, preprocessing.json, and README.md, its card\n\n{lines}")
