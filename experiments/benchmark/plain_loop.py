"""What a user would run instead: SimCLR on CIFAR-10 as a plain torch loop. The baseline of cpu.py, which starts it.

    python experiments/benchmark/plain_loop.py [--width 0.25] [--images IMAGES.npy --workers 2]

torchvision's ResNet-18 with a 3x3 stem and nn.BatchNorm2d, its transforms on PIL, a DataLoader, NT-Xent over the whole
2N x 2N matrix, torch's SGD. Without images it is the step alone, on views that are already normalised as a DataLoader
gives them. Prints a JSON line: images/s, the parameters of the encoder, with images also the part of waiting for data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from statistics import mean, median
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as v1
import tyro
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import BasicBlock, ResNet

from step_rate import images_per_s, warmed_up

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
ROW_STEPS = 4
"""Steps of one figure of images/s, as many as in a metrics row of our runs in cpu.py."""
SKIPPED_ROWS, LEAST_ROWS = 2, 5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    width: float = 0.25
    batch: int = 256
    threads: int = 1
    """Of torch in the training process."""
    seconds: float = 10.0
    images: Path | None = None
    """uint8 (n, 32, 32, 3), as torchvision's CIFAR10 holds it in memory: train from there. None: the step alone."""
    workers: int = 2
    """Of the DataLoader."""


def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    encoder = NarrowResNet(arguments.width)
    facts = {"encoder_parameters": sum(p.numel() for p in encoder.parameters())}
    encoder.fc = projection_head(int(512 * arguments.width))
    step = training_step(encoder)
    if arguments.images is None:
        view_a, view_b = torch.randn(2, arguments.batch, 3, 32, 32).unbind()
        steps = warmed_up(lambda: step(view_a, view_b), arguments.seconds)
        facts["images_per_s"] = images_per_s(lambda: step(view_a, view_b), steps, arguments.batch)
    else:
        dataset = TwoViews(np.load(arguments.images))
        facts |= end_to_end(step, dataset, arguments.batch, arguments.workers, arguments.seconds)
    print(json.dumps(facts))


class NarrowResNet(ResNet):
    """torchvision's ResNet-18 with the 3x3 stem and every channel count times `width`."""

    def __init__(self, width: float) -> None:
        self.width = width
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.conv1 = nn.Conv2d(3, int(64 * width), 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(int(64 * width))
        self.maxpool = nn.Identity()
        self.fc = nn.Identity()

    def _make_layer(
        self, block: type[BasicBlock], planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        narrow = int(planes * self.width)
        if planes == 64:
            self.inplanes = narrow
        return super()._make_layer(block, narrow, blocks, stride, dilate)


def projection_head(features: int) -> nn.Sequential:
    """The recipe's: 512 hidden, 128 out, BatchNorm after both."""
    hidden = [nn.Linear(features, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(512, 128, bias=False), nn.BatchNorm1d(128))


def training_step(model: nn.Module) -> Callable[[Tensor, Tensor], float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)

    def step(view_a: Tensor, view_b: Tensor) -> float:
        loss = nt_xent(model(torch.cat([view_a, view_b])), temperature=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """`z`: all first views, then all second ones."""
    z = F.normalize(z, dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(own, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z) // 2))


class TwoViews(Dataset[tuple[Tensor, Tensor]]):
    """Two views of each image: crop, flip, colours of strength 0.5, grey; no blur on CIFAR."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self._view = v1.Compose(
            [
                v1.RandomResizedCrop(32, scale=(0.08, 1.0)),
                v1.RandomHorizontalFlip(),
                v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v1.RandomGrayscale(0.2),
                v1.ToTensor(),
                v1.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.fromarray(self._images[index])
        return self._view(image), self._view(image)


def end_to_end(
    step: Callable[[Tensor, Tensor], float], dataset: TwoViews, batch: int, workers: int, seconds: float
) -> dict[str, float]:
    """Trains for `seconds` after the first step: the median of the rows but the first ones, as of our runs."""
    loader = DataLoader(
        dataset, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    batches = chain.from_iterable(repeat(loader))
    step(*next(batches))
    rates: list[float] = []
    waits: list[float] = []
    start = perf_counter()
    while perf_counter() - start < seconds or len(rates) < LEAST_ROWS:
        began, waited = perf_counter(), 0.0
        for _ in range(ROW_STEPS):
            before = perf_counter()
            view_a, view_b = next(batches)
            waited += perf_counter() - before
            step(view_a, view_b)
        took = perf_counter() - began
        rates.append(ROW_STEPS * batch / took)
        waits.append(waited / took)
    return {"images_per_s": median(rates[SKIPPED_ROWS:]), "data_wait_fraction": mean(waits[SKIPPED_ROWS:])}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
