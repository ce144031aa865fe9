"""The transform of an exported encoder: from an image to the normalised view that evaluation uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from simclr_ray.data.augment.center import CROPPED_FROM, center_view


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
    def resized(self) -> int:
        """The shorter side of the resized image, of which the view is the centre."""
        return round(self.size * 256 / 224) if self.size >= CROPPED_FROM else self.size

    @property
    def crop_fraction(self) -> float:
        """Side of the crop over the shorter side of the resized image, which timm takes as floor(size / fraction)."""
        fraction = self.size / self.resized
        return fraction if int(self.size / fraction) == self.resized else self.size / (self.resized + 0.5)

    def to_dict(self) -> dict[str, Any]:
        """The same in words, for tools that build it of their own parts."""
        return {
            "resize_shorter_side": self.resized,
            "interpolation": "bilinear, antialiased",
            "centre_crop": self.size,
            "scale": "1/255",
            "mean": list(self.mean),
            "std": list(self.std),
            "layout": "float32 (n, 3, height, width), RGB",
        }
