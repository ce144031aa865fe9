"""BatchNorm over the whole global pass, on any number of workers, under torch's parameter and buffer names.

`nn.SyncBatchNorm` rejects CPU tensors and breaks the compiler's graph. Here are three paths to the same mathematics:
- a single CPU process: torch's own fused kernel (1.5 times the step rate of written-out arithmetic);
- several CPU processes: the same fused kernels around one all-reduce of the moments, and of their gradients;
- a GPU: plain tensor arithmetic around the same all-reduces, which torch.compile traces whole and fuses itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from simclr_ray import collective


class BatchNorm(nn.Module):
    """Normalises channel dimension 1 of (n, c) or (n, c, h, w) by the statistics of all workers' rows.

    Workers may hold different numbers of rows: means are weighted by them. Statistics are float32 (float64 for float64
    input) also under autocast. `update_running = False` keeps the running statistics, for the first of the two forwards
    of `pass_size`.
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
        if not has_fused_kernels(x):
            return self._arithmetic(x)
        if not collective.alone():
            y, mean, var, rows = _FusedOverWorkers.apply(x, self.weight, self.bias, self.eps)
            self._update_running(mean, var, rows * x[0, 0].numel())
            return y
        if not self.update_running:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, self.momentum, self.eps)
        self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )

    def _arithmetic(self, x: Tensor) -> Tensor:
        """Every operation written out, for the compiler to fuse; autograd derives the backward."""
        dims = [0, *range(2, x.dim())]
        wide = x if x.dtype == torch.float64 else x.float()
        mean, square = wide.mean(dims), wide.square().mean(dims)
        rows: Tensor | int = x.shape[0]
        if not collective.alone():
            mean, square, rows = _moments_over_workers(mean, square, x.shape[0])
        # float32 may put E[x^2] - E[x]^2 of a constant channel just below zero.
        var = (square - mean.square()).clamp(min=0)
        self._update_running(mean.detach(), var.detach(), rows * x[0, 0].numel())
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = [1, -1, *[1] * (x.dim() - 2)]
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)

    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor | int) -> None:
        if not self.update_running:
            return
        with torch.no_grad():
            unbiased = var * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, bias={self.bias is not None}"


def has_fused_kernels(x: Tensor) -> bool:
    """Whether to use torch's BatchNorm kernels: they are faster on a CPU; on a GPU the compiled arithmetic is."""
    return x.device.type == "cpu"


def _moments_over_workers(mean: Tensor, square: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """E[x] and E[x^2] over all workers' rows, and how many rows those are; one all-reduce carries all three."""
    total = collective.sum_with_gradient(torch.cat([mean * rows, square * rows, mean.new_full((1,), rows)]))
    all_rows = total[-1].detach()
    mean, square = (total[:-1] / all_rows).chunk(2)
    return mean, square, all_rows


class _FusedOverWorkers(torch.autograd.Function):
    """(x, weight, bias, eps) -> output, mean, biased variance, rows; the last three over all workers.

    With x^ = (x - mean) / sqrt(var + eps) and N elements of a channel over all workers (Ioffe and Szegedy 2015):
    dx = weight / sqrt(var + eps) (dy - sum(dy) / N - x^ sum(dy x^) / N), both sums over all workers. torch's kernel in
    eval mode gives the first term, sum(dy x^) = d weight and sum(dy) = d bias. The other two terms are affine in x^, so
    F.batch_norm computes them: slope times x^ plus offset.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The kernel's results have the dtype of the running statistics passed to it, which are not used further.
        own_mean, own_var = torch.batch_norm_update_stats(x, torch.zeros_like(weight), torch.ones_like(weight), 0.0)
        own_mean, own_var = own_mean.double(), own_var.double()
        mean, square, rows = _moments_over_workers(own_mean, own_var + own_mean.square(), x.shape[0])
        mean, var = mean.to(weight.dtype), (square - mean.square()).clamp(min=0).to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var, rows)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, rows)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, rows

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight, mean, var, rows = ctx.saved_tensors
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = collective.summed(torch.cat([d_weight, d_bias])) / (rows * x[0, 0].numel()).to(weight.dtype)
        slope, offset = (-weight * torch.rsqrt(var + ctx.eps) * sums.view(2, -1)).unbind()
        dx += F.batch_norm(x, mean, var, slope, offset, False, 0.0, ctx.eps)
        return dx, d_weight, d_bias if ctx.needs_input_grad[2] else None, None


def set_update_running(module: nn.Module, update: bool) -> None:
    """Turns the running statistics of every BatchNorm below `module` on or off."""
    for layer in module.modules():
        if isinstance(layer, BatchNorm):
            layer.update_running = update
