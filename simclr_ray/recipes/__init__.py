"""The recipes: functions that return a config. Their docstrings give command, hardware, time and expected accuracy.

Every value can be overridden on the command line, such as --method.temperature 0.2.
"""

from __future__ import annotations

from collections.abc import Callable

from simclr_ray.config import Config
from simclr_ray.recipes.cifar10 import cifar10_rn18_200ep
from simclr_ray.recipes.cifar10_methods import (
    cifar10_barlow_twins_200ep,
    cifar10_byol_200ep,
    cifar10_dino_200ep,
    cifar10_moco_200ep,
    cifar10_nnclr_200ep,
    cifar10_simsiam_200ep,
    cifar10_supervised_200ep,
    cifar10_swav_200ep,
    cifar10_vicreg_200ep,
)
from simclr_ray.recipes.imagenet import (
    imagenet_rn50_100ep,
    imagenet_rn50_1000ep,
    imagenet_rn50_b256_100ep,
    imagenet_rn50x4_1000ep,
)
from simclr_ray.recipes.imagenet_methods import (
    imagenet_barlow_twins_1000ep,
    imagenet_byol_1000ep,
    imagenet_dino_rn50_100ep,
    imagenet_moco_v2_200ep,
    imagenet_nnclr_1000ep,
    imagenet_simsiam_100ep,
    imagenet_swav_800ep,
    imagenet_swav_b256_200ep,
    imagenet_vicreg_1000ep,
)
from simclr_ray.recipes.imagenet_vit import imagenet_dino_vit_s_100ep, imagenet_moco_v3_vit_b_300ep
from simclr_ray.recipes.quickstart import quickstart

RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        quickstart,
        cifar10_rn18_200ep,
        cifar10_byol_200ep,
        cifar10_simsiam_200ep,
        cifar10_moco_200ep,
        cifar10_nnclr_200ep,
        cifar10_barlow_twins_200ep,
        cifar10_vicreg_200ep,
        cifar10_swav_200ep,
        cifar10_dino_200ep,
        cifar10_supervised_200ep,
        imagenet_rn50_b256_100ep,
        imagenet_rn50_100ep,
        imagenet_rn50_1000ep,
        imagenet_rn50x4_1000ep,
        imagenet_byol_1000ep,
        imagenet_simsiam_100ep,
        imagenet_moco_v2_200ep,
        imagenet_nnclr_1000ep,
        imagenet_barlow_twins_1000ep,
        imagenet_vicreg_1000ep,
        imagenet_swav_800ep,
        imagenet_swav_b256_200ep,
        imagenet_dino_rn50_100ep,
        imagenet_dino_vit_s_100ep,
        imagenet_moco_v3_vit_b_300ep,
    )
}
