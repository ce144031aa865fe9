"""SimCLR on Ray: self-supervised vision pretraining that does not depend on the machines it gets.

The packages, each of which imports only those before it:

config       a run's settings, grouped by consequence
group        a process group that survives its workers; membership: who trains, generation after generation
collective   what torch.distributed is asked; storage: files, run folders; recipes: functions that return a config
data         from a source of images to augmented views; model: encoders, heads, BatchNorm over all workers
methods      the objectives; optim: LARS and the learning rate
train        the step, the loop, checkpoints, one attempt at a run, without Ray
evaluate     kNN, linear, fine-tuning, label-free; export: the encoder as a file; sweep, planning: what needs no Ray
report       what run and sweep folders say afterwards
orchestrate  the same under Ray: streams, worker groups, failures, preemption, sweeps
cli          the commands
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simclr_ray.export.transform import Transform
    from simclr_ray.model.encoder import Encoder


def load(run_or_file: str) -> Encoder:
    """The pretrained encoder of a run folder or of an encoder.safetensors, local or by URI; on the CPU, in eval mode.

    (n, 3, h, w) images, normalised with the run's mean and std -> (n, feature_dim). Raises BadInput if none is there.
    """
    from simclr_ray.export.encoder import load_encoder  # here, so that data workers never import torch

    return load_encoder(run_or_file)


def load_with_transform(run_or_file: str) -> tuple[Encoder, Transform]:
    """`load`, and the transform from a Pillow image or uint8 (h, w, 3) pixels to one normalised image of its input."""
    from simclr_ray.export.encoder import load_pretrained
    from simclr_ray.export.formats import transform_of

    pretrained = load_pretrained(run_or_file)
    return pretrained.encoder, transform_of(pretrained)
