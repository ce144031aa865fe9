"""Recipes for ImageNet of the other methods, with the values of their papers and official code; here all unmeasured.

The projection heads have BatchNorm after the last layer too, which some of the official code lacks.
"""

from __future__ import annotations

from dataclasses import replace

from simclr_ray.config import (
    AugmentConfig,
    BarlowTwinsConfig,
    BYOLConfig,
    Config,
    DINOConfig,
    MoCoConfig,
    ModelConfig,
    NNCLRConfig,
    OptimConfig,
    ResourcesConfig,
    SimSiamConfig,
    SwAVConfig,
    TrainConfig,
    VICRegConfig,
)
from simclr_ray.recipes.imagenet import imagenet_rn50_100ep

MOCO_V2_VIEWS = AugmentConfig(crop_min=0.2, strength=0.5)
"""Colour jitter 0.4, 0.4, 0.4, 0.1 (Chen et al. 2020, arXiv 2003.04297), which SimSiam takes too."""

BYOL_VIEWS = AugmentConfig(
    strength=0.5, saturation=0.2, blur_p=1.0, second_blur_p=0.1, solarize_p=0.0, second_solarize_p=0.2
)
"""Of BYOL (appendix B), which Barlow Twins, VICReg and MoCo v3 take too."""
DINO_VIEWS = replace(
    BYOL_VIEWS, crop_min=0.14, local_views=8, local_size=96, local_crop_min=0.05, local_crop_max=0.14, local_blur_p=0.5
)
"""Of DINO for ResNet-50; vision transformers have larger global and local crops."""


def imagenet_byol_1000ep() -> Config:
    """BYOL, ResNet-50, B 4096, 1000 epochs: 74.3 % linear in the paper.

    python experiments/pretrain.py imagenet_byol_1000ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    base = imagenet_rn50_100ep()
    return replace(
        base,
        augment=BYOL_VIEWS,
        model=ModelConfig(arch="resnet50", head_hidden=4096, head_dim=256, head_batchnorm=True),
        method=BYOLConfig(momentum=0.996, predictor_hidden=4096),
        optim=OptimConfig(lr_per_256=0.2, weight_decay=1.5e-6, warmup_epochs=10),
        train=replace(base.train, epochs=1000),
    )


def imagenet_simsiam_100ep() -> Config:
    """SimSiam, ResNet-50, B 512, 100 epochs: 68.1 % linear in the paper.

    python experiments/pretrain.py imagenet_simsiam_100ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    return replace(
        imagenet_rn50_100ep(),
        augment=MOCO_V2_VIEWS,
        model=ModelConfig(arch="resnet50", head_layers=3, head_hidden=2048, head_dim=2048, head_batchnorm=True),
        method=SimSiamConfig(predictor_hidden=512),
        optim=OptimConfig(optimizer="sgd", lr_per_256=0.05, weight_decay=1e-4, warmup_epochs=0),
        train=TrainConfig(epochs=100, global_batch=512),
    )


def imagenet_moco_v2_200ep() -> Config:
    """MoCo v2, ResNet-50, B 256, 200 epochs: 67.5 % linear in the paper.

    python experiments/pretrain.py imagenet_moco_v2_200ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    return replace(
        imagenet_rn50_100ep(),
        augment=MOCO_V2_VIEWS,
        method=MoCoConfig(temperature=0.2, momentum=0.999, queue=65_536),
        optim=OptimConfig(optimizer="sgd", lr_per_256=0.03, weight_decay=1e-4, warmup_epochs=0),
        train=TrainConfig(epochs=200, global_batch=256),
        resources=ResourcesConfig(),
    )


def imagenet_nnclr_1000ep() -> Config:
    """NNCLR, ResNet-50, B 4096, 1000 epochs: 75.4 % linear in the paper.

    python experiments/pretrain.py imagenet_nnclr_1000ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    base = imagenet_rn50_100ep()
    return replace(
        base,
        augment=BYOL_VIEWS,
        model=ModelConfig(arch="resnet50", head_layers=3, head_hidden=2048, head_dim=256, head_batchnorm=True),
        method=NNCLRConfig(temperature=0.1, queue=98_304, predictor_hidden=4096),
        optim=OptimConfig(lr_per_256=0.3, weight_decay=1e-6, warmup_epochs=10),
        train=replace(base.train, epochs=1000),
    )


def imagenet_barlow_twins_1000ep() -> Config:
    """Barlow Twins, ResNet-50, B 2048, 1000 epochs: 73.2 % linear in the paper.

    The official code averages gradients over its 32 GPUs that belong to the sum. LARS does not see the difference in
    weights; biases and BatchNorm's parameters took smaller steps there.
    python experiments/pretrain.py imagenet_barlow_twins_1000ep --data.train s3://bucket/imagenet
    """
    return replace(
        imagenet_rn50_100ep(),
        augment=BYOL_VIEWS,
        model=ModelConfig(arch="resnet50", head_layers=3, head_hidden=8192, head_dim=8192, head_batchnorm=True),
        method=BarlowTwinsConfig(off_diagonal_weight=0.005),
        optim=OptimConfig(
            lr_per_256=0.2, bias_lr_fraction=0.024, lr_end_fraction=0.001, weight_decay=1e-6, warmup_epochs=10
        ),
        train=TrainConfig(epochs=1000, global_batch=2048),
    )


def imagenet_vicreg_1000ep() -> Config:
    """VICReg, ResNet-50, B 2048, 1000 epochs: 73.2 % linear in the paper.

    python experiments/pretrain.py imagenet_vicreg_1000ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    base = imagenet_barlow_twins_1000ep()
    return replace(base, method=VICRegConfig(), optim=replace(base.optim, bias_lr_fraction=1.0))


def imagenet_swav_800ep() -> Config:
    """SwAV, ResNet-50, B 4096, 800 epochs, 2 x 224 + 6 x 96: 75.3 % linear in the paper.

    python experiments/pretrain.py imagenet_swav_800ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    return replace(
        imagenet_rn50_100ep(),
        augment=AugmentConfig(crop_min=0.14, local_views=6, local_size=96, local_crop_min=0.05, local_crop_max=0.14),
        model=ModelConfig(arch="resnet50", head_hidden=2048, head_dim=128, head_batchnorm=True),
        method=SwAVConfig(prototypes=3000, frozen_epochs=1),
        optim=OptimConfig(lr_per_256=0.3, lr_end_fraction=0.001, weight_decay=1e-6, warmup_epochs=10),
        train=TrainConfig(epochs=800, global_batch=4096),
    )


def imagenet_swav_b256_200ep() -> Config:
    """SwAV with a batch for one device and a queue, ResNet-50, 200 epochs: 72.7 % linear in the official code.

    python experiments/pretrain.py imagenet_swav_b256_200ep --data.train s3://bucket/imagenet
    """
    base = imagenet_swav_800ep()
    return replace(
        base,
        method=SwAVConfig(prototypes=3000, frozen_epochs=1, queue=3840, queue_epochs=15),
        optim=replace(base.optim, lr_per_256=0.6, warmup_epochs=0),
        train=TrainConfig(epochs=200, global_batch=256),
        resources=ResourcesConfig(),
    )


def imagenet_dino_rn50_100ep() -> Config:
    """DINO, ResNet-50, B 512, 100 epochs, 2 x 224 + 8 x 96, by the command in the official code's README.

    Its weight decay is constant, unlike that of vision transformers. The official code clips the gradient of every
    parameter to a norm of 3, and draws the head's weights with a deviation of 0.02; here no gradient is clipped, and
    they start as torch's dense layers do.

    python experiments/pretrain.py imagenet_dino_rn50_100ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    return replace(
        imagenet_rn50_100ep(),
        augment=DINO_VIEWS,
        model=ModelConfig(arch="resnet50", head_layers=3, head_hidden=2048, head_dim=256, head_activation="gelu"),
        method=DINOConfig(prototypes=65_536, frozen_epochs=1),
        optim=OptimConfig(optimizer="sgd", lr_per_256=0.03, weight_decay=1e-4, warmup_epochs=10),
        train=TrainConfig(epochs=100, global_batch=512),
    )
