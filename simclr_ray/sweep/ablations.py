"""The ablations of the SimCLR paper (Chen et al. 2020): what each compares, and what the paper found.

The paper's figures are linear top-1 on ImageNet of a ResNet-50 after 100 epochs at a batch of 4096, where nothing else
is said. They are there for the order: yours is another dataset, network and budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from simclr_ray.config import BadInput, Config
from simclr_ray.config.suggest import suggestion
from simclr_ray.sweep.space import Choices, Space

PAIR = "{} + {}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One of the configs that an ablation compares."""

    label: str
    values: dict[str, Any]
    """By dotted key: what differs from the recipe."""
    paper: float | None = None
    """Top-1 in percent that the paper has for it."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is compared, and which order of it the paper found."""

    title: str
    source: str
    """Where in the paper."""
    points: Callable[[Config], list[Point]]
    order: tuple[str, ...] = ()
    """Labels from the best on, as the paper found them."""
    best: str | None = None
    """The label that the paper found above all others."""
    projections: bool = False
    """Whether the projections z are measured beside the features h, above which they shall not be."""


OFF = {
    **dict.fromkeys(("augment.crop_min", "augment.crop_max"), 1.0),
    **{f"augment.{name}_p": 0.0 for name in ("flip", "jitter", "grayscale", "blur", "solarize")},
    **{f"augment.{name}_p": 0.0 for name in ("rotate", "sobel", "noise", "cutout")},
    "augment.second_plain": True,
}
OFF_TOO = {
    **dict.fromkeys(("augment.second_blur_p", "augment.second_solarize_p", "augment.saturation"), None),
    "augment.local_views": 0,
}
"""Of what other methods' recipes have and SimCLR's have not."""
BY_STRENGTH_ALONE = dict.fromkeys(("augment.saturation", "augment.second_blur_p", "augment.local_blur_p"))
"""Colours and blur of no view have a setting of their own."""
OPERATIONS: dict[str, dict[str, Any]] = {
    "crop": {"augment.crop_min": 0.08, "augment.flip_p": 0.5},
    "cutout": {"augment.cutout_p": 1.0},
    "colour": {"augment.jitter_p": 0.8, "augment.grayscale_p": 0.2},
    "Sobel": {"augment.sobel_p": 1.0},
    "noise": {"augment.noise_p": 1.0},
    "blur": {"augment.blur_p": 1.0},
    "rotate": {"augment.rotate_p": 0.75},
}
FIGURE_5 = (
    *((33.1, 33.9, 56.3, 46.0, 39.9, 35.0, 30.2), (25.6, 33.9, 40.0, 26.5, 25.2, 22.4), (18.8, 21.0, 11.4, 16.5, 20.8)),
    *((4.0, 9.3, 6.2, 4.2), (9.8, 9.8, 9.6), (2.6, 6.7), (2.6,)),
)
"""From the diagonal on: each operation alone, then followed by each of those after it."""
FIGURE_B1 = {256: (57.5, 62.8), 512: (60.7, 63.8), 1024: (62.8, 64.3), 2048: (64.0, 64.7), 4096: (64.6, 64.5)}
"""By batch: with linear and with square-root scaling of the learning rate."""


def _augmentation(config: Config) -> list[Point]:
    points, off = [], OFF | _other_than(config, OFF_TOO)
    for at, (first, values) in enumerate(OPERATIONS.items()):
        points.append(Point(label=first, values=off | values, paper=FIGURE_5[at][0]))
    for (i, first), (k, second) in combinations(enumerate(OPERATIONS), 2):
        values = off | OPERATIONS[first] | OPERATIONS[second]
        points.append(Point(label=PAIR.format(first, second), values=values, paper=FIGURE_5[i][k - i]))
    return points


def _strength(config: Config) -> list[Point]:
    own = _other_than(config, BY_STRENGTH_ALONE)
    found = [
        Point(label=label, values=own | {"augment.strength": strength, "augment.blur_p": 0.0}, paper=paper)
        for label, strength, paper in (("1/8", 0.125, 59.6), ("1/4", 0.25, 61.0), ("1/2", 0.5, 62.6), ("1", 1.0, 63.2))
    ]
    return [
        *found,
        Point(label="1 and blur", values=own | {"augment.strength": 1.0, "augment.blur_p": 0.5}, paper=64.5),
    ]


def _head(config: Config) -> list[Point]:
    return [
        Point(label=head, values={"model.head": head}, paper=paper)
        for head, paper in (("none", 60.6), ("linear", 65.6), ("mlp", 66.6))
    ]


def _temperature(config: Config) -> list[Point]:
    return [
        Point(label=f"{value:g}", values={"method.temperature": value}, paper=paper)
        for value, paper in ((0.05, 59.7), (0.1, 64.4), (0.5, 60.7), (1.0, 58.0))
    ]


def _batch(config: Config) -> list[Point]:
    """Both rules give the recipe's learning rate at the recipe's batch."""
    whole, optim = config.train.global_batch, config.optim
    peak = optim.lr_per_256 * (whole / 256 if optim.lr_scaling == "linear" else (whole / 256) ** 0.5)
    points = []
    for batch in _parts(whole, "train.global_batch"):
        for at, (rule, power) in enumerate((("linear", 1.0), ("sqrt", 0.5))):
            values = {
                "train.global_batch": batch,
                "train.pass_size": config.train.pass_size and min(config.train.pass_size, batch),
                "optim.lr_scaling": rule,
                "optim.lr_per_256": peak / (whole / 256) ** power,
            }
            paper = FIGURE_B1[batch][at] if batch in FIGURE_B1 else None
            points.append(Point(label=f"{batch}, {rule}", values=values, paper=paper))
    return points


def _batchnorm(config: Config) -> list[Point]:
    """A pass is what a worker's own batch would be without synchronisation: the statistics are over it."""
    sizes = _parts(config.train.global_batch, "train.global_batch")
    return [Point(label=f"over {size} images", values={"train.pass_size": size}) for size in sizes]


def _epochs(config: Config) -> list[Point]:
    return [Point(label=str(n), values={"train.epochs": n}) for n in _parts(config.train.epochs, "train.epochs")]


def _width(config: Config) -> list[Point]:
    found = [
        Point(label=f"{factor:g}", values={"model.width": config.model.width * factor}, paper=paper)
        for factor, paper in ((1, 69.3), (2, 74.2), (4, 76.5))
    ]
    return found


def _other_than(config: Config, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that the config does not have, so that points are as few settings as they can be."""
    own = config.flat()
    return {key: value for key, value in values.items() if own[key] != value}


def _parts(whole: int, key: str) -> list[int]:
    """The whole, a half and a quarter of it, smallest first."""
    if whole % 4:
        raise BadInput(f"this ablation takes a quarter of --{key.replace('_', '-')}: {whole} is no multiple of 4")
    return [whole // 4, whole // 2, whole]


ABLATIONS = {
    "augmentation": Ablation(
        title="Augmentations alone and in pairs, of one view; the other is the whole image",
        source="Figure 5",
        points=_augmentation,
        best=PAIR.format("crop", "colour"),
    ),
    "strength": Ablation(
        title="Strength of the colour distortion, without blur",
        source="Table 1",
        points=_strength,
        order=("1", "1/2", "1/4", "1/8"),
    ),
    "head": Ablation(
        title="Projection head",
        source="Figure 8, as read off it; z: 56 to 58",
        points=_head,
        order=("mlp", "linear", "none"),
        projections=True,
    ),
    "temperature": Ablation(title="Temperature", source="Table 5", points=_temperature),
    "batch": Ablation(title="Batch and rule of the learning rate", source="Table B.1", points=_batch),
    "batchnorm": Ablation(
        title="Images over which BatchNorm's statistics are", source="section 2.2", points=_batchnorm
    ),
    "epochs": Ablation(title="Epochs", source="Figure 9", points=_epochs),
    "width": Ablation(
        title="Width, as a multiple of the recipe's",
        source="Table 6, 1,000 epochs",
        points=_width,
        order=("4", "2", "1"),
    ),
}


def ablation(name: str) -> Ablation:
    """By its name. Raises BadInput."""
    if name not in ABLATIONS:
        raise BadInput(f"no ablation is called {name!r}{suggestion(name, tuple(ABLATIONS))}")
    return ABLATIONS[name]


def points_of(name: str, config: Config) -> list[Point]:
    """Those of an ablation of this config. Raises BadInput where one of them is none, as without a projection head."""
    points = ablation(name).points(config)
    for point in points:
        config.with_overrides(point.values)
    return points


def space_of(points: Sequence[Point], config: Config) -> Space:
    """Each setting that the points differ in from the recipe, with all its values, the recipe's included."""
    flat = config.flat()
    space: Space = {}
    for key in dict.fromkeys(key for point in points for key in point.values):
        values = dict.fromkeys([*(point.values.get(key, flat[key]) for point in points), flat[key]])
        space[key] = Choices(choices=tuple(values))
    return space
