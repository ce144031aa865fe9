"""The learning rate as a pure function of the global step: linear warm-up from 0, then cosine to 0."""

from __future__ import annotations

import math

from simclr_ray.config import Config


def peak_lr(lr_per_256: float, scaling: str, global_batch: int) -> float:
    """The rate after warm-up: linear or square-root scaling with the batch (SimCLR, appendix B.1)."""
    ratio = global_batch / 256
    return lr_per_256 * (ratio if scaling == "linear" else math.sqrt(ratio))


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of global step `step`, 0-based: 0 at step 0 of a warm-up, `peak` at its end, 0 at `total_steps`."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2


def rate_at(config: Config, step: int, steps_per_epoch: int) -> float:
    """The rate of `step` of the run that `config` describes; a warm-up longer than the run is cut to it."""
    total = config.train.epochs * steps_per_epoch
    warmup = min(round(config.optim.warmup_epochs * steps_per_epoch), total)
    peak = peak_lr(config.optim.lr_per_256, config.optim.lr_scaling, config.train.global_batch)
    return learning_rate(step, peak, warmup, total)
