"""What a check is: a function of the machine that measures one claim, and the bar that its figure must meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Skip(Exception):
    """The check cannot run on this machine; the message says why."""


class Failed(Exception):
    """The claim does not hold, or could not be measured; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a check measured."""

    ours: float
    reference: float | None = None
    """The same of what ours is held against; None: the bar is on `ours` alone."""
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the JSON holds besides."""

    @property
    def ratio(self) -> float | None:
        return None if self.reference is None else self.ours / self.reference


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the checks run."""

    device: torch.device
    cores: int
    data: str | None
    """CIFAR-10, or other labelled images of 32 px, as prepare takes them; None: synthetic ones."""
    measured: Mapping[str, Figures]
    """Of the checks before."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def size(self, gpu: T, cpu: T) -> T:
        """The size of a workload: the one that is claimed on a GPU, a small one where only the code is tried."""
        return gpu if self.on_gpu else cpu


@dataclass(frozen=True, kw_only=True)
class Bar:
    """`most` or `least` is the bound on the ratio to the reference, or on ours if there is none."""

    most: float | None = None
    least: float | None = None

    def met(self, figures: Figures) -> bool:
        value = figures.ours if figures.ratio is None else figures.ratio
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)  # NaN: not met

    def __str__(self) -> str:
        return f"<= {self.most:g}" if self.least is None else f">= {self.least:g}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """A claim that can be measured."""

    run: Callable[[Machine], Figures]
    claim: str
    """What `ours` is with its unit, and what it is held against."""
    bar: Bar
    limit_s: float
    """Its process is killed after so long."""
    judged_on_cpu: bool = True
    """Whether the bar holds at the small sizes of a CPU too; a rate there says nothing about a GPU."""

    @property
    def name(self) -> str:
        return self.run.__name__
