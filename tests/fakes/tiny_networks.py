"""A vision transformer of 30,000 weights, which torchvision knows by the name `vit_tiny_of_tests`."""

from __future__ import annotations

from typing import Any

from torchvision.models import VisionTransformer, list_models
from torchvision.models._api import register_model  # the one way to name a network of one's own

VIT = "vit_tiny_of_tests"


def vit(*, weights: None = None, image_size: int = 224, **settings: Any) -> VisionTransformer:
    """Patches of 4 pixels; `weights` is what torchvision passes to every builder."""
    sizes: dict[str, Any] = {"patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
    return VisionTransformer(image_size=image_size, **sizes | settings)


if VIT not in list_models():
    register_model(VIT)(vit)
