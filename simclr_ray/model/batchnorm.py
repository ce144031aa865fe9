"""BatchNorm over the whole global pass: one implementation for CPU and GPU, traced whole by torch.compile.

`nn.SyncBatchNorm` refuses CPU tensors and breaks the compiler's graph; this one is plain tensor arithmetic with one
all-reduce each way, and with one worker the all-reduce is left out. Parameter and buffer names are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class _SumOverWorkers(torch.autograd.Function):
    """Every worker gets the sum; the gradient of a sum that all of them use is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad)


def _sum(x: Tensor) -> Tensor:
    world = dist.group.WORLD
    assert world is not None
    return funcol.all_reduce(x.contiguous(), "sum", world)


def _several_workers() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class BatchNorm(nn.Module):
    """Normalises channel dimension 1 of (n, c) or (n, c, h, w) by the statistics of all workers' rows.

    Workers may hold different numbers of rows: means are weighted by them. Statistics are float32 (float64 for float64
    input) whatever autocast does. `update_running = False` leaves the running statistics alone, for a forward that is
    only the first of two (`pass_size`).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, *, bias: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps, self.update_running = momentum, eps, True
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features)) if bias else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Float[Tensor, "n c *hw"]) -> Float[Tensor, "n c *hw"]:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        dims = [0, *range(2, x.dim())]
        wide = x if x.dtype == torch.float64 else x.float()
        mean, square, rows = _global_moments(wide.mean(dims), wide.square().mean(dims), x.shape[0])
        # float32 may put E[x^2] - E[x]^2 of a constant channel just below zero.
        var = (square - mean.square()).clamp(min=0)
        if self.update_running:
            self._update_running(mean.detach(), var.detach(), rows * x[0, 0].numel())
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = [1, -1, *[1] * (x.dim() - 2)]
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)

    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor | int) -> None:
        with torch.no_grad():
            unbiased = var * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked += 1

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, bias={self.bias is not None}"


def _global_moments(mean: Tensor, square: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor | int]:
    """Means over all workers' rows, and how many rows those are; one all-reduce carries all three."""
    if not _several_workers():
        return mean, square, rows
    total = _SumOverWorkers.apply(torch.cat([mean * rows, square * rows, mean.new_full((1,), rows)]))
    all_rows = total[-1].detach()
    mean, square = (total[:-1] / all_rows).chunk(2)
    return mean, square, all_rows


def set_update_running(module: nn.Module, update: bool) -> None:
    """Turns the running statistics of every BatchNorm below `module` on or off."""
    for layer in module.modules():
        if isinstance(layer, BatchNorm):
            layer.update_running = update
