"""Our training step and a bare torch loop's, on a fixed batch that lies on the device; and how they are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from checks.check import Machine
from plain_loop import nt_xent
from simclr_ray.config import Config, SupervisedConfig
from simclr_ray.model import batchnorm
from simclr_ray.recipes import cifar10_rn18_200ep, imagenet_rn50_100ep
from simclr_ray.train.precision import auto_precision
from simclr_ray.train.state import TrainState, initial_state
from simclr_ray.train.step import StepResult, forward_of, training_step

Step = Callable[[], object]
IMAGENET_BATCH = 512
WARM_UP = 2
"""Steps before those that are measured, in every round; the first round's compile."""


def imagenet(machine: Machine, batch: int = IMAGENET_BATCH) -> Config:
    """ResNet-50 at 224; on a CPU a ResNet-18 at 32 px, in the precision that it has instructions for."""
    small = {"model.arch": "resnet18", "model.head_hidden": 64, "augment.size": 32, "train.global_batch": 32}
    config = imagenet_rn50_100ep().with_overrides(machine.size({"train.global_batch": batch}, small))
    return config.with_overrides({"train.precision": auto_precision(on_gpu=machine.on_gpu, gpu_has_bf16=True)})


def cifar(machine: Machine, **changes: object) -> Config:
    """`cifar10_rn18_200ep`, on a CPU narrow; in float32 unless `changes` say otherwise."""
    small = {"model.width": 0.0625, "model.head_hidden": 32, "augment.size": 16, "train.global_batch": 32}
    config = cifar10_rn18_200ep().with_overrides(machine.size({}, small))
    return config.with_overrides({"train.precision": "float32"} | changes)


class OurStep:
    """The step of a config on random pixels; a call trains one. Each of `workers` has a batch of its own."""

    def __init__(self, config: Config, device: torch.device, *, compiled: bool, workers: int = 1) -> None:
        self.config, self.device, self.workers = config, device, workers
        self.state: TrainState = initial_state(config, device)
        data = config.data
        self.forward = forward_of(
            self.state.model, data.mean, data.std, config.train.precision, device, compiled=compiled
        )
        self.views = random_views(config, device)
        labels = torch.arange(len(self.views), device=device)
        self.labels = labels % config.method.classes if isinstance(config.method, SupervisedConfig) else None

    def __call__(self) -> StepResult:
        batch = self.config.train.global_batch
        pass_size = self.config.train.pass_size or batch
        return training_step(
            self.state.model,
            self.forward,
            self.state.optimizer,
            self.views,
            passes=batch // pass_size,
            rows_per_worker=[pass_size] * self.workers,
            labels=self.labels,
        )

    def gradients(self) -> Tensor:
        """All of the last step's, as one vector."""
        return torch.cat([p.grad.flatten() for p in self.state.model.parameters() if p.grad is not None])


def random_views(config: Config, device: torch.device) -> Tensor:
    """uint8 (global_batch, 2, size, size, 3), the same on every device."""
    shape = (config.train.global_batch, 2, config.augment.size, config.augment.size, 3)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8).to(device)


@contextmanager
def torchs_batchnorm() -> Iterator[None]:
    """Ours computes by torch's own kernel of the device, as it otherwise does on a CPU alone."""
    with patch.object(batchnorm, "has_fused_kernels", lambda x: True):
        yield


def bare_step(config: Config, device: torch.device, *, compiled: bool) -> Step:
    """What a user would write with torchvision alone: nn.BatchNorm2d, the 2N x 2N matrix, SGD, autocast, the compiler.

    Its images are normalised already, which ours are not.
    """
    encoder = getattr(resnet, config.model.arch)()
    hidden = config.model.head_hidden
    encoder.fc = nn.Sequential(
        nn.Linear(encoder.fc.in_features, hidden), nn.ReLU(), nn.Linear(hidden, config.model.head_dim)
    )
    encoder.to(device, memory_format=torch.channels_last)
    forward = torch.compile(encoder) if compiled else encoder
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6)
    rows, size, bf16 = 2 * config.train.global_batch, config.augment.size, config.train.precision == "bf16"
    images = torch.randn(rows, 3, size, size, device=device).to(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            z = forward(images)
        nt_xent(z.float(), temperature=0.1).backward()
        optimizer.step()

    return step


def rates(arms: list[Step], images: int, machine: Machine) -> list[list[float]]:
    """Images/s of each arm, a figure for every round, in which all arms have their turn."""
    found: list[list[float]] = [[] for _ in arms]
    for _ in range(machine.size(3, 1)):
        for arm, figures in zip(arms, found, strict=True):
            figures.append(images / _step_seconds(arm, machine))
            if machine.on_gpu:
                torch.cuda.empty_cache()  # the other arm's blocks have other sizes: two pools do not fit into 80 GB
    return found


def _step_seconds(step: Step, machine: Machine) -> float:
    """Of one of several steps that follow each other without waiting, as in training."""
    for _ in range(WARM_UP):
        step()
    count = machine.size(8, 1)

    def steps() -> None:
        for _ in range(count):
            step()

    return synchronised(steps, machine.device) / count


def synchronised(work: Step, device: torch.device) -> float:
    """Seconds from an idle device to an idle device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    before = perf_counter()
    work()
    wait()
    return perf_counter() - before


def relative_error(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|, in float64."""
    expected = expected.detach().cpu().double()
    return float((got.detach().cpu().double() - expected).norm() / expected.norm())
