"""What slows a compiled step down without a trace: host synchronisation, recompilation, an idle GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from checks.check import Bar, Check, Failed, Figures, Machine
from checks.numerics import method_configs
from checks.steps import OurStep, cifar, imagenet
from simclr_ray.optim.build import set_rate

WAITING = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"}
"""Operations whose value the host reads."""
COUNTING = {"aten::nonzero", "aten::masked_select", "aten::_unique2"}
"""Operations whose result has a size that the host must know."""


class _Waits(TorchDispatchMode):
    """Notes the operations for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        by_mask = name in ("aten::index", "aten::index_put_") and _has_mask(args[1])
        # torch.tensor copies from memory that is not pinned. A number that is assigned is lifted too, and not copied.
        from_host = name == "aten::lift_fresh" and args[0].dim() > 0
        if name in WAITING | COUNTING or by_mask or from_host:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def host_waits(machine: Machine) -> Figures:
    """In the third step of every method, not compiled; on a GPU also what CUDA's own check reports."""
    found = {}
    for name, config in method_configs(machine).items():
        step = OurStep(config, machine.device, compiled=False)
        step()
        step()
        with _Waits() as waits, _cuda_waits(machine) as reported:
            step()
        found[name] = waits.found + reported
    total = sum(map(len, found.values()))
    return Figures(ours=total, note=f"{len(found)} methods", details={k: v for k, v in found.items() if v})


@contextmanager
def _cuda_waits(machine: Machine) -> Iterator[list[str]]:
    reported: list[str] = []
    if not machine.on_gpu:
        yield reported
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        yield reported
        torch.cuda.set_sync_debug_mode("default")
    reported += [str(each.message) for each in caught if "synchroniz" in str(each.message)]


def recompilations(machine: Machine) -> Figures:
    """Graphs compiled after the first step, over steps of other rates; in passes, which need one for each forward."""
    config = cifar(machine)
    config = config.with_overrides({"train.pass_size": config.train.global_batch // 2})
    # Guards are the same for any backend, and a true one compiles for a minute.
    with patch.object(torch, "compile", partial(torch.compile, backend="eager")):
        step = OurStep(config, machine.device, compiled=True)
    step()
    graphs = counters["stats"]["unique_graphs"]
    if not graphs:
        raise Failed("nothing was compiled")
    for number in range(machine.size(20, 3)):
        set_rate(step.state.optimizer, 0.1 / (number + 1))
        step()
    return Figures(ours=counters["stats"]["unique_graphs"] - graphs, note=f"{graphs} in the first step")


def gpu_idle(machine: Machine) -> Figures:
    """The part of the time in which no kernel runs, over steps that follow each other."""
    step = OurStep(imagenet(machine), machine.device, compiled=machine.on_gpu)
    for _ in range(machine.size(5, 1)):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if machine.on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(machine.size(6, 1)):
            step()
        if machine.on_gpu:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if machine.on_gpu else DeviceType.CPU
    events = [event for event in profiler.events() if event.device_type == kind and not event.is_user_annotation]
    busy = sorted((event.time_range.start, event.time_range.end) for event in events)
    if not busy:
        raise Failed("the profiler saw no kernel")
    return Figures(ours=idle_part(busy), note=f"{len(busy)} {'kernels' if machine.on_gpu else 'operations'}")


def idle_part(busy: Sequence[tuple[float, float]]) -> float:
    """The part of the time from the first beginning to the last end that no interval covers; sorted by beginnings."""
    idle, until = 0.0, busy[0][0]
    for begin, end in busy:
        idle += max(0.0, begin - until)
        until = max(until, end)
    return idle / (until - busy[0][0])


CHECKS = (
    Check(run=host_waits, claim="times that the host waits for the GPU in a step", bar=Bar(most=0), limit_s=120),
    Check(run=recompilations, claim="graphs compiled after the first step", bar=Bar(most=0), limit_s=120),
    Check(
        run=gpu_idle,
        claim="part of the time of ResNet-50's steps in which the GPU is idle",
        bar=Bar(most=0.02),
        limit_s=120,
        judged_on_cpu=False,
    ),
)
