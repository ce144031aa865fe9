"""One training step: both views through the model, NT-Xent over the global batch, gradients summed, weights moved.

A batch that does not fit is taken in passes (`pass_size`): BatchNorm is then over each pass, NT-Xent still over all of
B, by the two runs of GradCache (Gao et al. 2021). Nothing here depends on the number of workers but the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from simclr_ray import collective
from simclr_ray.methods.network import SimCLR
from simclr_ray.methods.simclr import nt_xent
from simclr_ray.model.batchnorm import set_update_running
from simclr_ray.train.batch import channel_scale, normalise

Project = Callable[[UInt8[Tensor, "n h w 3"]], Float[Tensor, "n d"]]


@dataclass(frozen=True)
class StepResult:
    """Still on the device: reading them waits for it."""

    loss: Float[Tensor, ""]
    """This worker's share; the loss is the sum over workers."""
    view_a: Float[Tensor, "n d"]
    view_b: Float[Tensor, "n d"]


def projector(
    model: SimCLR, mean: Sequence[float], std: Sequence[float], precision: str, device: torch.device, *, compiled: bool
) -> Project:
    """The function from pixels to projections, normalisation and autocast included; compiled it has no graph break."""
    scale, shift = channel_scale(mean, std, torch.float64 if precision == "float64" else torch.float32, device)
    if compiled:
        torch._dynamo.reset()  # it counts the graphs of one function over all runs of a process, and stops at eight

    def project(pixels: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n d"]:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(normalise(pixels, scale, shift))

    return torch.compile(project, fullgraph=True, dynamic=False) if compiled else project


def training_step(
    model: SimCLR,
    project: Project,
    optimizer: torch.optim.Optimizer,
    views: UInt8[Tensor, "n 2 h w 3"],
    *,
    temperature: float,
    passes: int,
    rows_per_worker: Sequence[int],
) -> StepResult:
    """Moves the weights by one step over this worker's rows `views`; `rows_per_worker` are those of one pass."""
    optimizer.zero_grad(set_to_none=True)
    batch_rows = [rows * passes for rows in rows_per_worker]
    if passes == 1:
        view_a, view_b = project(_both_views(views)).chunk(2)
        loss = nt_xent(view_a, view_b, temperature, rows_per_worker=batch_rows)
        loss.backward()
    else:
        loss, view_a, view_b = _backward_in_passes(model, project, views.chunk(passes), temperature, batch_rows)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    collective.sum_gradients(parameters)
    optimizer.step()
    return StepResult(loss.detach(), view_a.detach(), view_b.detach())


def _backward_in_passes(
    model: nn.Module, project: Project, parts: Sequence[Tensor], temperature: float, batch_rows: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    set_update_running(model, False)
    with torch.no_grad():
        pairs = [project(_both_views(part)).chunk(2) for part in parts]
    set_update_running(model, True)
    view_a = torch.cat([a for a, _ in pairs]).requires_grad_()
    view_b = torch.cat([b for _, b in pairs]).requires_grad_()
    loss = nt_xent(view_a, view_b, temperature, rows_per_worker=batch_rows)
    loss.backward()
    assert view_a.grad is not None
    assert view_b.grad is not None
    for part, grad_a, grad_b in zip(parts, view_a.grad.chunk(len(parts)), view_b.grad.chunk(len(parts)), strict=True):
        project(_both_views(part)).backward(torch.cat([grad_a, grad_b]))
    return loss, view_a, view_b


def _both_views(views: UInt8[Tensor, "n 2 h w 3"]) -> UInt8[Tensor, "2*n h w 3"]:
    """All first views, then all second ones: they share one forward, and so one BatchNorm."""
    return views.transpose(0, 1).flatten(0, 1)
