"""Learning rate (linear warm-up from 0, then half a cosine) and weight decay as pure functions of the global step."""

from __future__ import annotations

import math

from simclr_ray.config import Config


def peak_lr(lr_per_256: float, scaling: str, global_batch: int) -> float:
    """The rate after warm-up: linear or square-root scaling with the batch (SimCLR, appendix B.1)."""
    ratio = global_batch / 256
    return lr_per_256 * (ratio if scaling == "linear" else math.sqrt(ratio))


def half_cosine(start: float, end: float, progress: float) -> float:
    """From `start` at a progress of 0 to `end` at 1, slowly at both."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int, end: float = 0.0) -> float:
    """The rate of global step `step`, 0-based: 0 at step 0 of a warm-up, `peak` at its end, `end` at `total_steps`."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    return half_cosine(peak, end, (step - warmup_steps) / max(1, total_steps - warmup_steps))


def rate_at(config: Config, step: int, steps_per_epoch: int) -> float:
    """The rate of `step` of the run that `config` describes; a warm-up longer than the run is cut to it."""
    total = config.train.epochs * steps_per_epoch
    warmup = min(round(config.optim.warmup_epochs * steps_per_epoch), total)
    peak = peak_lr(config.optim.lr_per_256, config.optim.lr_scaling, config.train.global_batch)
    return learning_rate(step, peak, warmup, total, config.optim.lr_end_fraction * peak)


def weight_decay_at(config: Config, step: int, steps_per_epoch: int) -> float:
    """The weight decay of `step`: without a warm-up (Caron et al. 2021, arXiv 2104.14294, section 3.2)."""
    start, end = config.optim.weight_decay, config.optim.weight_decay_end
    return start if end is None else half_cosine(start, end, step / (config.train.epochs * steps_per_epoch))
