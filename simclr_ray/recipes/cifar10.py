"""Recipes for CIFAR-10."""

from __future__ import annotations

from simclr_ray.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    SimCLRConfig,
    TrainConfig,
)

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cifar10_rn18_200ep() -> Config:
    """CIFAR-10, ResNet-18 with the 3x3 stem.

    python experiments/pretrain.py cifar10_rn18_200ep --name c10
    One H200 with 16 cores. A bare loop with these values reached 83.7 % kNN (86.6 % linear) after 200 epochs in
    295 s; through Ray unmeasured.
    """
    return Config(
        data=DataConfig(train="torchvision:CIFAR10", mean=CIFAR10_MEAN, std=CIFAR10_STD),
        augment=AugmentConfig(size=32, strength=0.5, blur_p=0.0),
        model=ModelConfig(arch="resnet18", stem="cifar", head_hidden=512, head_dim=128, head_batchnorm=True),
        method=SimCLRConfig(temperature=0.5),
        optim=OptimConfig(lr_per_256=1.0, weight_decay=1e-6, warmup_epochs=10),
        train=TrainConfig(epochs=200, global_batch=512),
        evaluate=EvaluateConfig(every_epochs=10, test="torchvision:CIFAR10:test"),
    )
