"""Fine-tuning: the whole encoder and a new classifier, trained on labels (SimCLR, section 3 and appendix B.5)."""

from __future__ import annotations

import math
from dataclasses import replace

from simclr_ray.config import (
    AugmentConfig,
    Config,
    EvaluateConfig,
    LoggingConfig,
    OptimConfig,
    ResourcesConfig,
    SavingConfig,
    SupervisedConfig,
    TrainConfig,
)
from simclr_ray.data.dataset import Dataset

LARGEST_BATCH = 2048
"""Images of a step, each in two crops: the paper's 4,096 crops."""
STEPS_PER_EPOCH = 4
"""At least, in small datasets. ImageNet has 3 with 1 % of its labels in the paper, and 31 with 10 %."""
LEAST_STEPS = 180
"""Those of the paper's 60 epochs on 1 % of ImageNet; a few hundred images get more epochs."""
FEW = 0.05


def finetune_config(
    run: Config,
    train: Dataset,
    test: Dataset,
    *,
    classes: int,
    fraction: float,
    epochs: int | None,
    from_head: int,
    seed: int,
) -> Config:
    """The supervised run that fine-tunes the encoder of a pretraining run, whose config is `run`.

    It starts from drawn weights until model.init names others. `train`: `fraction` of all labelled images.
    SGD with Nesterov momentum 0.9, learning rate 0.05 x crops / 256, no warm-up and no decay, random crops and flips.
    `epochs` None: 15, and 30 below 5 % of the labels (a step takes two crops of an image: the paper's 30 and 60),
    and at least LEAST_STEPS steps. `from_head`: layers of the projection head that stay before the classifier, under
    the same settings (SimCLR v2 has LARS there). A pass is no larger than one of the pretraining, which fitted into
    memory. Raises BadInput for settings out of their range.
    """
    batch = min(LARGEST_BATCH, train.rows // STEPS_PER_EPOCH) // train.slice_rows * train.slice_rows
    batch = max(batch, train.slice_rows, 2)
    largest = (run.train.pass_size or run.train.global_batch) // train.slice_rows * train.slice_rows
    pass_size = largest if 0 < largest < batch else None
    if pass_size:
        batch = batch // pass_size * pass_size
    if epochs is None:
        steps_per_epoch = max(1, train.rows // batch)
        epochs = max(30 if fraction < FEW else 15, math.ceil(LEAST_STEPS / steps_per_epoch))
    return replace(
        run,
        data=replace(run.data, train=train.uri),
        augment=AugmentConfig(size=run.augment.size, jitter_p=0.0, grayscale_p=0.0, blur_p=0.0),
        model=replace(run.model, init=None, init_sha256=None),
        method=SupervisedConfig(classes=classes, from_head=from_head),
        optim=OptimConfig(
            optimizer="sgd", lr_per_256=0.1, momentum=0.9, nesterov=True, weight_decay=0.0, warmup_epochs=0.0
        ),
        train=TrainConfig(
            epochs=epochs,
            global_batch=batch,
            pass_size=pass_size if pass_size != batch else None,
            precision="auto",
            seed=seed,
        ),
        evaluate=EvaluateConfig(every_epochs=epochs, test=test.uri, test_rows=test.rows),
        resources=ResourcesConfig(),
        saving=SavingConfig(),
        logging=LoggingConfig(),
    )
