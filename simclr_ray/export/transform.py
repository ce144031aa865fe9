"""The transform of an exported encoder: from an image to the normalised view that evaluation uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from simclr_ray.data.augment.center import center_view, resized_side


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Resize, centre crop, normalise: what `evaluate.py` and `embed.py` show the encoder."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 s s"]:
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        view = torch.from_numpy(center_view(pixels, self.size).copy()).float() / 255
        return ((view - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1)

    @property
    def crop_fraction(self) -> float:
        """Side of the crop over the shorter side of the resized image, which timm takes as floor(size / fraction)."""
        side = resized_side(self.size)
        fraction = self.size / side
        return fraction if int(self.size / fraction) == side else self.size / (side + 0.5)

    def to_dict(self) -> dict[str, Any]:
        """The same in words, for tools that build it of their own parts."""
        return {
            "resize_shorter_side": resized_side(self.size),
            "interpolation": "bilinear, antialiased",
            "centre_crop": self.size,
            "scale": "1/255",
            "mean": list(self.mean),
            "std": list(self.std),
            "layout": "float32 (n, 3, height, width), RGB",
        }
