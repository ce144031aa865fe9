"""The augmented views of an image (SimCLR, appendix A): `draw_views` draws their parameters, `render` the pixels."""

from simclr_ray.data.augment.views import (
    Jitter,
    ViewParams,
    augment_local,
    augment_pair,
    draw_local_views,
    draw_views,
    render,
)

__all__ = [
    "Jitter",
    "ViewParams",
    "augment_local",
    "augment_pair",
    "draw_local_views",
    "draw_views",
    "render",
]
