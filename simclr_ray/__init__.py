"""SimCLR on Ray: self-supervised vision pretraining that does not depend on the machines it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simclr_ray.model.resnet import ResNet


def load(run_or_file: str) -> ResNet:
    """The pretrained encoder of a run folder or of an encoder.safetensors, local or by URI; on the CPU, in eval mode.

    (n, 3, h, w) images, normalised with the run's mean and std -> (n, feature_dim). Raises BadInput if none is there.
    """
    from simclr_ray.export.encoder import load_encoder  # here, so that data workers never import torch

    return load_encoder(run_or_file)
