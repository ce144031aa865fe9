"""The two views of an image (SimCLR, appendix A), and smaller local ones: their random parameters and their pixels.

`draw_views` and `draw_local_views` draw the parameters and `render` the pixels; `augment_pair` and `augment_local` do
both in one compiled call, for the stream. All run the same code: draw.py and render.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simclr_ray.config import AugmentConfig
from simclr_ray.data.augment.draw import Distribution, FlatView, draw_view
from simclr_ray.data.augment.render import render_view
from simclr_ray.data.jit import kernel
from simclr_ray.data.philox import LOCAL, VIEW_A, VIEW_B


@dataclass(frozen=True)
class Jitter:
    """Colour factors; hue in turns of the circle, -0.5..0.5. `order` is a permutation of 0..3 in torchvision's
    numbering: brightness, contrast, saturation, hue."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, int, int, int]


@dataclass(frozen=True)
class ViewParams:
    """The parameters of a view: the crop's box in the image's pixels, then the operations in the order of fields."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    jitter: Jitter | None
    grayscale: bool
    blur_sigma: float
    """In pixels of the view; 0 for none."""
    solarize: bool = False
    turns: int = 0
    """Quarter turns, counter-clockwise; unlike the fields around it this comes right after the flip."""
    sobel: bool = False
    noise_key: int | None = None
    """Gaussian noise is a function of this 32-bit word; None for none."""
    cutout: tuple[float, float] | None = None
    """Left and top of the square's centre, as parts of the view's side."""


def draw_views(
    seed: int, epoch: int, sample_id: int, height: int, width: int, config: AugmentConfig
) -> tuple[ViewParams, ViewParams]:
    """The parameters of both views of a decoded image of `height` x `width` pixels."""
    key = (int(seed), int(epoch), int(sample_id))
    first, second = _draw_pair(*key, int(height), int(width), *_pair(config))
    return _params(first), _params(second)


def draw_local_views(
    seed: int, epoch: int, sample_id: int, height: int, width: int, config: AugmentConfig
) -> tuple[ViewParams, ...]:
    """The parameters of the local views of a decoded image, `config.local_views` of them."""
    key, local = (int(seed), int(epoch), int(sample_id)), _local(config)
    return tuple(_params(_draw_local(*key, i, int(height), int(width), local)) for i in range(config.local_views))


def render(image: np.ndarray, params: ViewParams, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the view of a (h, w, 3) uint8 image. Equals torchvision v2 on floats but for rounding.

    Raises ValueError for an image of another shape or type, a crop outside of it, an order that is no permutation, or
    more than three turns.
    """
    image = _checked(image)
    height, width, _ = image.shape
    if not (0 <= params.top <= params.top + params.height <= height and params.height >= 1):
        raise ValueError(f"rows {params.top} + {params.height} of the crop are not within a height of {height}")
    if not (0 <= params.left <= params.left + params.width <= width and params.width >= 1):
        raise ValueError(f"columns {params.left} + {params.width} of the crop are not within a width of {width}")
    if params.jitter is not None and sorted(params.jitter.order) != [0, 1, 2, 3]:
        raise ValueError(f"jitter.order must be a permutation of 0, 1, 2, 3, not {params.jitter.order}")
    if params.turns not in range(4):
        raise ValueError(f"turns must lie in 0..3, not {params.turns}")
    out = np.empty((size, size, 3), np.uint8)
    _render(image, _flat(params), out)
    return out


def augment_pair(
    image: np.ndarray, seed: int, epoch: int, sample_id: int, config: AugmentConfig, out: np.ndarray
) -> None:
    """Writes both views of a (h, w, 3) uint8 image into `out`, (2, size, size, 3) uint8 and contiguous.

    Equals `render` of both `draw_views`, with about 3 us of Python overhead. Releases the GIL.
    """
    if out.shape != (2, config.size, config.size, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 (2, {config.size}, {config.size}, 3)")
    _augment_pair(_checked(image), int(seed), int(epoch), int(sample_id), *_pair(config), out)


def augment_local(
    image: np.ndarray, seed: int, epoch: int, sample_id: int, config: AugmentConfig, out: np.ndarray
) -> None:
    """Writes the local views of an image into `out`, (local_views, local_size, local_size, 3), as `augment_pair`."""
    size = config.local_size
    if out.shape != (config.local_views, size, size, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 ({config.local_views}, {size}, {size}, 3)")
    _augment_local(_checked(image), int(seed), int(epoch), int(sample_id), _local(config), out)


@kernel
def _draw_pair(
    seed: int, epoch: int, sample_id: int, height: int, width: int, first: Distribution, second: Distribution
) -> tuple[FlatView, FlatView]:
    return (
        draw_view(seed, epoch, sample_id, VIEW_A, height, width, first),
        draw_view(seed, epoch, sample_id, VIEW_B, height, width, second),
    )


@kernel
def _draw_local(
    seed: int, epoch: int, sample_id: int, view: int, height: int, width: int, local: Distribution
) -> FlatView:
    return draw_view(seed, epoch, sample_id, LOCAL + view, height, width, local)


@kernel
def _render(image: np.ndarray, view: FlatView, out: np.ndarray) -> None:
    render_view(image, view, out)


@kernel
def _augment_pair(
    image: np.ndarray,
    seed: int,
    epoch: int,
    sample_id: int,
    first: Distribution,
    second: Distribution,
    out: np.ndarray,
) -> None:
    height, width, _ = image.shape
    render_view(image, draw_view(seed, epoch, sample_id, VIEW_A, height, width, first), out[0])
    render_view(image, draw_view(seed, epoch, sample_id, VIEW_B, height, width, second), out[1])


@kernel
def _augment_local(
    image: np.ndarray, seed: int, epoch: int, sample_id: int, local: Distribution, out: np.ndarray
) -> None:
    height, width, _ = image.shape
    for i in range(len(out)):
        render_view(image, draw_view(seed, epoch, sample_id, LOCAL + i, height, width, local), out[i])


def _checked(image: np.ndarray) -> np.ndarray:
    """The image as a read-only contiguous array, or ValueError: one type for kernels, also from a mapped cache."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"an image must be uint8 (h, w, 3), not {image.dtype} {image.shape}")
    view = np.ascontiguousarray(image).view()
    view.flags.writeable = False
    return view


@lru_cache
def _pair(config: AugmentConfig) -> tuple[Distribution, Distribution]:
    """Of the first and of the second view."""
    first = Distribution(
        crop_min=float(config.crop_min),
        crop_max=float(config.crop_max),
        flip_p=float(config.flip_p),
        strength=float(config.strength),
        saturation=0.8 * config.strength if config.saturation is None else float(config.saturation),
        jitter_p=float(config.jitter_p),
        grayscale_p=float(config.grayscale_p),
        blur_p=float(config.blur_p),
        blur_sigma_min=float(config.blur_sigma_min),
        blur_sigma_max=float(config.blur_sigma_max),
        solarize_p=float(config.solarize_p),
        rotate_p=float(config.rotate_p),
        sobel_p=float(config.sobel_p),
        noise_p=float(config.noise_p),
        cutout_p=float(config.cutout_p),
    )
    if config.second_plain:
        return first, _plain(first)
    blur_p, solarize_p = config.second_blur_p, config.second_solarize_p
    return first, first._replace(
        blur_p=first.blur_p if blur_p is None else float(blur_p),
        solarize_p=first.solarize_p if solarize_p is None else float(solarize_p),
    )


def _plain(distribution: Distribution) -> Distribution:
    """The whole image: every probability is 0, and no try finds a crop of twice the area."""
    never = {name: 0.0 for name in Distribution._fields if name.endswith("_p")}
    return distribution._replace(crop_min=2.0, crop_max=2.0, **never)


@lru_cache
def _local(config: AugmentConfig) -> Distribution:
    first, blur_p = _pair(config)[0], config.local_blur_p
    return first._replace(
        crop_min=float(config.local_crop_min),
        crop_max=float(config.local_crop_max),
        blur_p=first.blur_p if blur_p is None else float(blur_p),
        solarize_p=0.0,
    )


def _params(view: FlatView) -> ViewParams:
    jitter = Jitter(view.brightness, view.contrast, view.saturation, view.hue, view.order) if view.jitter else None
    return ViewParams(
        view.top,
        view.left,
        view.height,
        view.width,
        view.flip,
        jitter,
        view.grayscale,
        view.blur_sigma,
        view.solarize,
        view.turns,
        view.sobel,
        view.noise_key if view.noise else None,
        (view.cut_left, view.cut_top) if view.cutout else None,
    )


def _flat(params: ViewParams) -> FlatView:
    jitter = params.jitter or Jitter(1.0, 1.0, 1.0, 0.0, (0, 1, 2, 3))
    first, second, third, fourth = (int(operation) for operation in jitter.order)
    left, top = params.cutout or (0.0, 0.0)
    return FlatView(
        int(params.top),
        int(params.left),
        int(params.height),
        int(params.width),
        bool(params.flip),
        params.jitter is not None,
        float(jitter.brightness),
        float(jitter.contrast),
        float(jitter.saturation),
        float(jitter.hue),
        (first, second, third, fourth),
        bool(params.grayscale),
        float(params.blur_sigma),
        bool(params.solarize),
        int(params.turns),
        bool(params.sobel),
        params.noise_key is not None,
        int(params.noise_key or 0),
        params.cutout is not None,
        float(left),
        float(top),
    )
