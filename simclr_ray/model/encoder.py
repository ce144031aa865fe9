"""What every encoder is, whatever its architecture."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray.model.stochastic_depth import KeyedStochasticDepth


class Encoder(nn.Module):
    """The encoder f: normalised images in, features h out."""

    feature_dim: int
    stochastic_depth: Sequence[KeyedStochasticDepth] = ()
    """Its layers, in the order of their masks; see `keeping`."""

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """The features; d is `feature_dim`."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The module whose weights have the names of published ones: those of torchvision, or of timm."""
        return self

    @property
    def patch_projection(self) -> nn.Module | None:
        """The first layer of a vision transformer, which cuts an image into patches; None for other networks."""
        return None
