"""Recipes for CIFAR-10 of the other methods: starting points after their papers and official code, untuned here.

All have the data, network, views, batch and epochs of `cifar10_rn18_200ep`, so that `report RUN RUN ...` compares them.
"""

from __future__ import annotations

from dataclasses import replace

from simclr_ray.config import (
    BarlowTwinsConfig,
    BYOLConfig,
    Config,
    DINOConfig,
    MethodConfig,
    MoCoConfig,
    ModelConfig,
    NNCLRConfig,
    OptimConfig,
    SimSiamConfig,
    SupervisedConfig,
    SwAVConfig,
    VICRegConfig,
)
from simclr_ray.recipes.cifar10 import cifar10_rn18_200ep


def _recipe(method: MethodConfig, optim: OptimConfig, *, layers: int = 2, hidden: int = 2048, dim: int = 256) -> Config:
    model = ModelConfig(
        arch="resnet18",
        stem="cifar",
        head_layers=3 if layers == 3 else 2,
        head_hidden=hidden,
        head_dim=dim,
        head_batchnorm=True,
    )
    return replace(cifar10_rn18_200ep(), method=method, model=model, optim=optim)


def cifar10_byol_200ep() -> Config:
    """BYOL; lightly's benchmark reaches 86.8 % kNN with another optimizer; here unmeasured.

    python experiments/pretrain.py cifar10_byol_200ep --name byol
    """
    return _recipe(BYOLConfig(momentum=0.99), OptimConfig(lr_per_256=1.0, weight_decay=1e-5), hidden=4096)


def cifar10_simsiam_200ep() -> Config:
    """SimSiam with the paper's values for CIFAR-10 (appendix D: 91.8 % linear after 800 epochs); here unmeasured.

    python experiments/pretrain.py cifar10_simsiam_200ep --name simsiam
    """
    optim = OptimConfig(optimizer="sgd", lr_per_256=0.03, weight_decay=5e-4, warmup_epochs=0)
    return _recipe(SimSiamConfig(predictor_hidden=512), optim, dim=2048)


def cifar10_moco_200ep() -> Config:
    """MoCo with a queue; lightly's benchmark reaches 84.7 % kNN; here unmeasured.

    python experiments/pretrain.py cifar10_moco_200ep --name moco
    """
    optim = OptimConfig(optimizer="sgd", lr_per_256=0.03, weight_decay=5e-4, warmup_epochs=0)
    return _recipe(MoCoConfig(temperature=0.1, momentum=0.99, queue=4096), optim, hidden=512, dim=128)


def cifar10_nnclr_200ep() -> Config:
    """NNCLR with SimCLR's optimizer and the paper's head; here unmeasured.

    python experiments/pretrain.py cifar10_nnclr_200ep --name nnclr
    """
    return _recipe(NNCLRConfig(), OptimConfig(lr_per_256=1.0, weight_decay=1e-6), layers=3)


def cifar10_barlow_twins_200ep() -> Config:
    """Barlow Twins; lightly's benchmark reaches 81.9 % kNN with another optimizer; here unmeasured.

    python experiments/pretrain.py cifar10_barlow_twins_200ep --name barlow
    """
    return _recipe(BarlowTwinsConfig(), OptimConfig(lr_per_256=0.3, weight_decay=1e-4), layers=3, dim=2048)


def cifar10_vicreg_200ep() -> Config:
    """VICReg; solo-learn reports 92.1 % linear after 1000 epochs; here unmeasured.

    python experiments/pretrain.py cifar10_vicreg_200ep --name vicreg
    """
    return _recipe(VICRegConfig(), OptimConfig(lr_per_256=0.3, weight_decay=1e-4), layers=3, dim=2048)


def cifar10_swav_200ep() -> Config:
    """SwAV of two views (multi-crop by --augment.local-views 4 --augment.local-size 16); here unmeasured.

    python experiments/pretrain.py cifar10_swav_200ep --name swav
    """
    method = SwAVConfig(prototypes=1000, frozen_epochs=1)
    return _recipe(method, OptimConfig(lr_per_256=0.3, weight_decay=1e-6), dim=128)


def cifar10_dino_200ep() -> Config:
    """DINO of two views; lightly's benchmark reaches 81.3 % kNN with another optimizer; here unmeasured.

    python experiments/pretrain.py cifar10_dino_200ep --name dino
    """
    method = DINOConfig(frozen_epochs=1)
    recipe = _recipe(method, OptimConfig(lr_per_256=0.3, weight_decay=1e-4), layers=3)
    return replace(recipe, model=replace(recipe.model, head_activation="gelu"))


def cifar10_supervised_200ep() -> Config:
    """The baseline, on the labels; here unmeasured.

    python experiments/pretrain.py cifar10_supervised_200ep --name supervised
    """
    optim = OptimConfig(optimizer="sgd", lr_per_256=0.1, weight_decay=5e-4, warmup_epochs=5)
    return replace(cifar10_rn18_200ep(), method=SupervisedConfig(), optim=optim)
