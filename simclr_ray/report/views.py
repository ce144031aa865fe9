"""A contact sheet of images beside the views that a run draws of them in its first epoch, with their parameters."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from jaxtyping import UInt8

from simclr_ray.config import AugmentConfig, BadInput
from simclr_ray.data.augment.views import Jitter, ViewParams, draw_local_views, draw_views, render
from simclr_ray.data.dataset import Dataset, SliceReader
from simclr_ray.data.decode import BadImage, decode
from simclr_ray.data.prepare.source import open_source
from simclr_ray.report.sheet import contact_sheet

Pixels = UInt8[np.ndarray, "h w 3"]
LINES = 4
"""Of a view's caption."""


def images_of(dataset: Dataset, count: int) -> Iterable[tuple[int, Pixels]]:
    """The first `count` images of a dataset that can be decoded, with their ids."""
    tables = SliceReader(dataset).rows(0, dataset.rows)
    encoded = (image for table in tables for image in table["image"].to_pylist())
    return islice(_decoded(encoded), count)


def images_in(source: str, count: int) -> Iterable[tuple[int, Pixels]]:
    """Some images of whatever `prepare` takes, numbered; nothing is prepared. Raises BadInput if there are none."""
    opened = open_source(source)
    work = opened.work
    if opened.listed:  # evenly, as a folder is listed class by class
        work = work.take(np.linspace(0, work.num_rows - 1, min(count, work.num_rows)).astype(int))
    tables = opened.read(work)
    found = list(islice(_decoded(image for table in tables for image in table["image"].to_pylist()), count))
    if not found:
        raise BadInput(f"{source} holds no image that can be decoded")
    return found


def _decoded(encoded: Iterable[bytes]) -> Iterable[tuple[int, Pixels]]:
    for number, content in enumerate(encoded):
        try:
            yield number, decode(content)
        except BadImage:
            continue


def views_sheet(images: Iterable[tuple[int, Pixels]], seed: int, config: AugmentConfig) -> bytes:
    """A PNG: in each row an image and its views, the local ones last, with what was drawn for them."""
    cells: list[Pixels] = []
    captions: list[str] = []
    for number, image in images:
        height, width, _ = image.shape
        cells.append(image)
        captions.append(f"image {number}\n{width} x {height}")
        key = (seed, 0, number, height, width, config)
        sized = [(params, config.size) for params in draw_views(*key)]
        sized += [(params, config.local_size) for params in draw_local_views(*key)]
        cells += [render(image, params, size) for params, size in sized]
        captions += [described(params) for params, _ in sized]
    return contact_sheet(cells, captions, columns=3 + config.local_views, lines=LINES)


def described(params: ViewParams) -> str:
    """The parameters of a view in at most LINES lines."""
    crop = f"{params.width} x {params.height} at {params.left}, {params.top}" + (" flipped" if params.flip else "")
    lines = [crop, *(_jitter_lines(params.jitter) if params.jitter else [])]
    others = ["gray"] if params.grayscale else []
    others += [f"blur {params.blur_sigma:.2f}"] if params.blur_sigma else []
    others += ["solarized"] if params.solarize else []
    others += [f"turned {90 * params.turns}"] if params.turns else []
    others += ["Sobel"] if params.sobel else []
    others += ["noise"] if params.noise_key is not None else []
    others += ["cutout"] if params.cutout else []
    return "\n".join([*lines, *([", ".join(others)] if others else [])])


def _jitter_lines(jitter: Jitter) -> list[str]:
    return [
        f"bright {jitter.brightness:.2f}, contrast {jitter.contrast:.2f}",
        f"satur. {jitter.saturation:.2f}, hue {jitter.hue:+.3f}",
    ]
