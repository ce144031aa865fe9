"""The recipe of a first run, which takes minutes on a CPU."""

from __future__ import annotations

from simclr_ray.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LoggingConfig,
    ModelConfig,
    OptimConfig,
    SavingConfig,
    SimCLRConfig,
    TrainConfig,
)


def quickstart() -> Config:
    """Minutes on two CPU cores: a narrow ResNet-18 learns synthetic images, or yours; its check adapts to them.

    python experiments/pretrain.py quickstart
    """
    return Config(
        data=DataConfig(train="synthetic:4096", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        augment=AugmentConfig(size=32, strength=0.5, blur_p=0.0),
        model=ModelConfig(arch="resnet18", width=0.25, stem="cifar", head_dim=64, head_batchnorm=True),
        method=SimCLRConfig(temperature=0.5),
        optim=OptimConfig(lr_per_256=1.0, warmup_epochs=1),
        train=TrainConfig(epochs=12, global_batch=256),
        evaluate=EvaluateConfig(every_epochs=4, test="synthetic:1024:test"),
        saving=SavingConfig(every_s=30),
        logging=LoggingConfig(every_steps=4),
    )
