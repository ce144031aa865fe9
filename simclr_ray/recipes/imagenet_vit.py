"""Recipes for ImageNet of vision transformers, with the values of papers and official code; here all unmeasured."""

from __future__ import annotations

from dataclasses import replace

from simclr_ray.config import Config, DINOConfig, MoCoConfig, ModelConfig, OptimConfig, TrainConfig
from simclr_ray.recipes.imagenet import imagenet_rn50_100ep
from simclr_ray.recipes.imagenet_methods import BYOL_VIEWS, DINO_VIEWS


def imagenet_moco_v3_vit_b_300ep() -> Config:
    """MoCo v3, ViT-B/16, B 4096, 300 epochs: 76.7 % linear in the official code, which fixes the position embedding.

    python experiments/pretrain.py imagenet_moco_v3_vit_b_300ep --data.train s3://bucket/imagenet
    """
    return replace(
        imagenet_rn50_100ep(),
        augment=BYOL_VIEWS,
        model=ModelConfig(
            arch="torchvision:vit_b_16", head_layers=3, head_hidden=4096, head_dim=256, head_batchnorm=True
        ),
        method=MoCoConfig(temperature=0.2, momentum=0.99, queue=0, predictor_hidden=4096, predictor_batchnorm=True),
        optim=OptimConfig(optimizer="adamw", lr_per_256=1.5e-4, weight_decay=0.1, warmup_epochs=40),
        train=TrainConfig(epochs=300, global_batch=4096),
    )


def imagenet_dino_vit_s_100ep() -> Config:
    """DINO, ViT-S/16 of timm, B 512, 100 epochs, 2 x 224 + 8 x 96: 74.0 % linear, 69.3 % kNN in the official code.

    Stochastic depth up to 0.1, of the student alone, is the official code's default. That code clips the gradient of
    each parameter to a norm of 3, too, and draws the head's weights with a deviation of 0.02; here no gradient is
    clipped, and they start as torch's dense layers do.
    python experiments/pretrain.py imagenet_dino_vit_s_100ep --data.train s3://bucket/imagenet
    """
    return replace(
        imagenet_rn50_100ep(),
        augment=replace(DINO_VIEWS, crop_min=0.4, local_crop_max=0.4),
        model=ModelConfig(
            arch="timm:vit_small_patch16_224",
            drop_path=0.1,
            head_layers=3,
            head_hidden=2048,
            head_dim=256,
            head_activation="gelu",
        ),
        method=DINOConfig(prototypes=65_536, frozen_epochs=1),
        optim=OptimConfig(
            optimizer="adamw",
            lr_per_256=5e-4,
            lr_end_fraction=0.001,
            weight_decay=0.04,
            weight_decay_end=0.4,
            warmup_epochs=10,
        ),
        train=TrainConfig(epochs=100, global_batch=512),
    )
