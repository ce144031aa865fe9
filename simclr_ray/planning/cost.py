"""What one image costs a model, counted by running it without data, and how fast a device should then train it.

A GPU's time for an image is its activations over the memory's bandwidth plus its arithmetic over the tensor cores'
rate, divided by an efficiency that is chosen so that one H200 trains ResNet-50 at 224 with the 3,641 images/s measured.
For CIFAR's ResNet-18 this gives 43,000 images/s; a bare loop took 1.2 s for an epoch of 50,000, which is 41,700.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simclr_ray.config import MethodConfig, ModelConfig, SimCLRConfig
from simclr_ray.methods.build import draw_method
from simclr_ray.model.batchnorm import BatchNorm
from simclr_ray.planning.machines import H200, Gpu


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Of one source image: all its views, forward and backward."""

    flop: float
    activations: float
    """Elements that convolutions and dense layers give."""
    parameters: int
    trained_parameters: int
    """Without those of a momentum teacher, which have no gradient."""
    batchnorms: int
    """Layers; each is an all-reduce forward and one backward."""


COUNTED = 2
"""Images that are counted: a BatchNorm of features needs more than one row, and some methods part the views."""


def model_cost(
    config: ModelConfig,
    size: int,
    method: MethodConfig | None = None,
    *,
    local_views: int = 0,
    local_size: int = 96,
) -> ModelCost:
    """Counted on PyTorch's meta device, which knows shapes and computes nothing; views of `size` pixels.

    `method`: SimCLR by default. A teacher's forward is counted too.
    """
    with torch.device("meta"):
        model = draw_method(replace(config, drop_path=0.0), method or SimCLRConfig(), size)
        views = torch.empty(COUNTED * 2, 3, size, size)
        local = torch.empty(COUNTED * local_views, 3, local_size, local_size)
    sizes: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        sizes.append(output.numel())

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter:
        model(views).sum().backward()
        if local_views:
            model.forward_local(local).sum().backward()
    return ModelCost(
        flop=counter.get_total_flops() / COUNTED,
        activations=sum(sizes) / COUNTED,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained_parameters=sum(each.numel() for each in model.parameters() if each.requires_grad),
        batchnorms=sum(isinstance(module, BatchNorm) and module.training for module in model.modules()),
    )


RESNET50 = ModelCost(
    flop=48.6e9, activations=22.2e6, parameters=27_966_656, trained_parameters=27_966_656, batchnorms=53
)
"""At 224, head 2048-128."""
RESNET50_BYTES = 0.45e9
"""Activations that it moves, measured with one H200 on which 4.2 of 4.8 TB/s and 800 of 989 TFLOP/s were reached."""
REACHED_BANDWIDTH, REACHED_ARITHMETIC = 4.2 / H200.bandwidth_tb_s, 800 / H200.bf16_tflops
H200_IMAGES_PER_S = 3641.0
RESNET50_GIB = 41 / 512
"""Memory of an image in a pass, compiled, bf16: 41 GiB for 512 images, measured."""
QUICKSTART_FLOP, QUICKSTART_IMAGES_PER_S = 0.419e9, 235.0
"""A ResNet-18 of width 1/4 at 32 px on one thread of a Zen 5 core, B 256, float32; measured."""


def gpu_images_per_s(cost: ModelCost, gpu: Gpu) -> float:
    """Of the compiled bf16 step, images enough in each pass."""
    return H200_IMAGES_PER_S * _unhindered_s(RESNET50, H200) / _unhindered_s(cost, gpu)


def cpu_images_per_s(cost: ModelCost, cores: float) -> float:
    """Of the float32 step, in proportion to its arithmetic: a rough guess, as caches matter more."""
    return QUICKSTART_IMAGES_PER_S * QUICKSTART_FLOP / cost.flop * cores


def pass_gib(cost: ModelCost, rows: int) -> float:
    """GPU memory that a pass of `rows` images takes on one device: activations, weights, gradients and momentum."""
    weights = 4 * cost.parameters + 8 * cost.trained_parameters
    return rows * RESNET50_GIB * cost.activations / RESNET50.activations + weights / 2**30


def _unhindered_s(cost: ModelCost, gpu: Gpu) -> float:
    moved = RESNET50_BYTES * cost.activations / RESNET50.activations
    memory = moved / (REACHED_BANDWIDTH * gpu.bandwidth_tb_s * 1e12)
    return memory + cost.flop / (REACHED_ARITHMETIC * gpu.bf16_tflops * 1e12)
