"""The momentum teacher of BYOL and MoCo: a copy of the student whose weights are an exponential moving average.

Its update depends on the weights and the step alone, so every worker's copy stays the same without a collective. Its
BatchNorm normalises by the batch, as the student's does.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from simclr_ray.model.stochastic_depth import never_drop


def teacher_of(student: nn.Module) -> nn.Module:
    """A copy with the student's weights that the optimizer does not train, and without its stochastic depth."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    never_drop(teacher)
    return teacher


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum x teacher + (1 - momentum) x student, in place; buffers are the teacher's own."""
    weights: list[Tensor] = list(teacher.parameters())
    if weights:  # a head of `none` has none, and an empty list is refused
        torch._foreach_lerp_(weights, list(student.parameters()), 1 - momentum)


def rising(start: float, progress: float) -> float:
    """A momentum that rises from `start` to 1 along a cosine (BYOL, section 3.1)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
