"""Numbers of the device against float64 on the CPU: BatchNorm, the losses of all methods, LARS, and a whole step.

BatchNorm is held against torch's. Losses and LARS are held against themselves, for what the device and its precision
change: their formulas are tested in tests/methods and tests/optim.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from checks.check import Bar, Check, Figures, Machine
from checks.steps import OurStep, cifar, relative_error, torchs_batchnorm
from simclr_ray.config import LABELLED, METHODS, Config
from simclr_ray.methods.method import Method
from simclr_ray.model.batchnorm import BatchNorm
from simclr_ray.optim.lars import LARS, parameter_groups
from simclr_ray.train.state import initial_state

CPU = torch.device("cpu")
CLASSES = 10
LEAST_ERROR = 1e-9
"""Stands for an error of nothing, as where torch adds up in the order of the reference."""


def batchnorm(machine: Machine) -> Figures:
    """Outputs, gradients and running statistics, of a kind of which the error is the largest beside torch's."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (_batchnorm_errors(kind, dtype, machine) for kind in (BatchNorm, nn.BatchNorm2d))
        for name, error in ours.items():
            found[f"{name}, {dtype}"] = (error, max(theirs[name], LEAST_ERROR))
    worst = max(found, key=lambda name: found[name][0] / found[name][1])
    ours, theirs = found[worst]
    return Figures(ours=ours, reference=theirs, note=f"largest ratio: {worst}", details=found)


def _batchnorm_errors(kind: type[nn.Module], dtype: torch.dtype, machine: Machine) -> dict[str, float]:
    generator = torch.Generator().manual_seed(2)
    rows, channels, side = machine.size((128, 256, 28), (16, 8, 8))
    x, upstream = (torch.randn(rows, channels, side, side, generator=generator) for _ in range(2))
    x, upstream = (2 * x + 1).to(dtype), upstream.to(dtype)
    expected = _batchnorm_results(nn.BatchNorm2d(channels).double(), x.double(), upstream.double())
    module = kind(channels).to(machine.device)
    device = [values.to(machine.device, memory_format=torch.channels_last) for values in (x, upstream)]
    got = _batchnorm_results(torch.compile(module) if machine.on_gpu else module, *device)
    return {name: relative_error(value, expected[name]) for name, value in got.items()}


def _batchnorm_results(module: Any, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.5, 2, len(module.weight)))
        module.bias.copy_(torch.linspace(-1, 1, len(module.bias)))
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(upstream)
    assert x.grad is not None
    results = {"output": y, "gradient of x": x.grad, "gradient of gamma": module.weight.grad}
    results["gradient of beta"] = module.bias.grad
    return results | {"running mean": module.running_mean, "running variance": module.running_var}


def losses(machine: Machine) -> Figures:
    """Loss and gradient at the outputs of an untrained network, of the method whose error is the largest."""
    errors = {name: _loss_error(config, machine.device) for name, config in method_configs(machine).items()}
    worst = max(errors, key=lambda name: errors[name])
    return Figures(ours=errors[worst], note=f"largest of {len(errors)}: {worst}", details=errors)


def _loss_error(config: Config, device: torch.device) -> float:
    step = OurStep(config, device, compiled=False)
    with torch.no_grad():
        outputs = step.forward(step.views.transpose(0, 1).flatten(0, 1))
    labelled = isinstance(config.method, LABELLED)
    got = _loss_and_gradient(step.state.model, outputs, labelled=labelled)
    wide = deepcopy(step.state.model).to(CPU, torch.float64)
    expected = _loss_and_gradient(wide, outputs.cpu().double(), labelled=labelled)
    return max(map(relative_error, got, expected))


def _loss_and_gradient(model: Method, outputs: Tensor, *, labelled: bool) -> tuple[Tensor, Tensor]:
    leaf, rows = outputs.detach().requires_grad_(), len(outputs) // 2
    labels = torch.arange(rows, device=outputs.device) % CLASSES
    loss = model.labelled_loss(leaf, labels, [rows]) if labelled else model.loss(leaf, [rows])
    loss.backward()
    assert leaf.grad is not None
    return loss, leaf.grad


def method_configs(machine: Machine) -> dict[str, Config]:
    """Each method with a narrow ResNet-18."""
    sizes = {"swav": {"method.prototypes": 64}, "dino": {"method.prototypes": 64}}
    sizes |= {"moco": {"method.queue": 256}, "supervised": {"method.classes": CLASSES}}
    sizes |= {"distillation": {"method.classes": CLASSES}}
    narrow = {"model.width": 0.0625, "augment.size": 16, "train.global_batch": machine.size(256, 32)}
    return {name: cifar(machine, **{"method.name": name} | sizes.get(name, {}) | narrow) for name in METHODS}


def lars(machine: Machine) -> Figures:
    """All weights after ten steps on the same gradients."""
    narrow = {"optim.optimizer": "sgd", "model.width": machine.size(1.0, 0.0625)}
    model = initial_state(cifar(machine, **narrow), CPU).model
    wide = deepcopy(model).double()
    model.to(machine.device)
    optimizers = [LARS(parameter_groups(each, 1e-6), lr=0.5) for each in (model, wide)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        for ours, theirs in zip(model.parameters(), wide.parameters(), strict=True):
            gradient = torch.randn(theirs.shape, generator=generator)
            ours.grad, theirs.grad = gradient.to(machine.device), gradient.double()
        for optimizer in optimizers:
            optimizer.step()
    pairs = zip(model.parameters(), wide.parameters(), strict=True)
    return Figures(ours=max(relative_error(ours, theirs) for ours, theirs in pairs if theirs.norm() > 0))


def whole_step(machine: Machine) -> Figures:
    """All gradients of a bf16 step, against the same step with torch's BatchNorm in place of ours."""
    config = cifar(machine, **{"train.global_batch": machine.size(64, 32)})
    with torchs_batchnorm():
        expected = _gradients(config, "float64", CPU, compiled=False)
        torchs = relative_error(_gradients(config, "bf16", machine.device, compiled=False), expected)
    ours = relative_error(_gradients(config, "bf16", machine.device, compiled=machine.on_gpu), expected)
    float32 = relative_error(_gradients(config, "float32", machine.device, compiled=False), expected)
    return Figures(ours=ours, reference=torchs, note=f"in float32 {float32:.1e}", details={"float32": float32})


def _gradients(config: Config, precision: str, device: torch.device, *, compiled: bool) -> Tensor:
    step = OurStep(config.with_overrides({"train.precision": precision}), device, compiled=compiled)
    step()
    return step.gradients()


CHECKS = (
    Check(
        run=batchnorm,
        claim="error of BatchNorm, against the error of nn.BatchNorm2d (float32 and bf16)",
        bar=Bar(most=8.0),
        limit_s=120,
    ),
    Check(run=losses, claim="error of the losses of all methods, float32", bar=Bar(most=1e-4), limit_s=120),
    Check(run=lars, claim="error of the weights after 10 steps of LARS, float32", bar=Bar(most=1e-5), limit_s=120),
    Check(
        run=whole_step,
        claim="error of a bf16 step's gradients, against that with nn.BatchNorm2d",
        bar=Bar(most=1.5),
        limit_s=120,
    ),
)
