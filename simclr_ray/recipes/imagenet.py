"""Recipes for ImageNet: the paper's, and one with a batch for one device."""

from __future__ import annotations

from dataclasses import replace

from simclr_ray.config import Config, DataConfig, ModelConfig, OptimConfig, ResourcesConfig, SimCLRConfig, TrainConfig


def imagenet_rn50_100ep() -> Config:
    """ImageNet, ResNet-50, B 4096, 100 epochs: 64.6 % linear in the paper; here unmeasured.

    python experiments/pretrain.py imagenet_rn50_100ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    At 3,641 images/s on one H200 (measured for the bare step) 100 epochs take about 10 hours; one device holds a pass
    of 1024 (86 GiB): --train.pass-size 1024 on fewer than four, and 12 hours, as 3 of 4 passes are forwarded twice.
    """
    return Config(
        data=DataConfig(train="imagenet/train"),
        model=ModelConfig(arch="resnet50", head_hidden=2048, head_dim=128),
        method=SimCLRConfig(temperature=0.1),
        optim=OptimConfig(lr_per_256=0.3, weight_decay=1e-6, warmup_epochs=10),
        train=TrainConfig(epochs=100, global_batch=4096),
        resources=ResourcesConfig(max_workers=8),
    )


def imagenet_rn50_b256_100ep() -> Config:
    """ImageNet, ResNet-50 with a batch for one device, learning rate 0.075 sqrt(B): 62.8 % linear in the paper.

    python experiments/pretrain.py imagenet_rn50_b256_100ep --data.train s3://bucket/imagenet
    Here unmeasured.
    """
    base = imagenet_rn50_100ep()
    return replace(
        base,
        optim=replace(base.optim, lr_per_256=1.2, lr_scaling="sqrt"),
        train=replace(base.train, global_batch=256),
        resources=ResourcesConfig(),
    )


def imagenet_rn50_1000ep() -> Config:
    """ImageNet, ResNet-50, B 4096, 1000 epochs: 69.3 % linear in the paper; here unmeasured.

    python experiments/pretrain.py imagenet_rn50_1000ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    base = imagenet_rn50_100ep()
    return replace(base, train=replace(base.train, epochs=1000))


def imagenet_rn50x4_1000ep() -> Config:
    """ImageNet, ResNet-50 of width 4, B 4096, 1000 epochs: 76.5 % linear in the paper; here unmeasured.

    python experiments/pretrain.py imagenet_rn50x4_1000ep --data.train s3://bucket/imagenet --storage s3://bucket/runs
    """
    base = imagenet_rn50_1000ep()
    return replace(base, model=replace(base.model, width=4.0, head_hidden=None))
